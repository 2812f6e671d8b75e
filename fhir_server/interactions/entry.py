"""One entry of a batch or transaction: read from its Bundle, named in errors, answered in the response's.

https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

from fhir_server.errors import BadRequest, FhirError, Issue
from fhir_server.interactions.call import Answer, Call, split_url
from fhir_server.interactions.context import Context
from fhir_server.model import dates
from fhir_server.model.resource import Resource
from fhir_server.store.protocol import Claim, Key, Put, Stored

Result = TypeVar("Result")

ORDER = {"DELETE": 0, "POST": 1, "PUT": 2, "PATCH": 2, "GET": 3, "HEAD": 3}


@dataclass(slots=True)
class Entry:
    """One Bundle.entry with its request, and what became of it."""

    index: int
    call: Call
    full_url: str = ""
    new_id: str = ""  # of a resource that does not exist yet; kept when the transaction is worked out again
    target: Key | None = None
    match: Stored | None = None  # what a conditional request found
    claim: Claim | None = None
    put: Put | None = None
    issues: list[Issue] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"Bundle.entry[{self.index}]"


def entry_of(index: int, item: object, context: Context) -> Entry:
    where = f"Bundle.entry[{index}]"
    if not isinstance(item, dict) or not isinstance(item.get("request"), dict):
        raise BadRequest(f"{where} has no request", expression=[f"{where}.request"])
    request = item["request"]
    method, url = request.get("method"), request.get("url")
    if not isinstance(method, str) or method not in ORDER or not isinstance(url, str):
        raise BadRequest(
            f"{where}.request needs a method ({', '.join(ORDER)}) and a url", expression=[f"{where}.request"]
        )
    try:
        path, query = split_url(url, context.base)
    except BadRequest as error:
        raise BadRequest(f"{where}: {error.diagnostics}", expression=[f"{where}.request.url"]) from None
    headers = {
        header: str(request[name])
        for name, header in (
            ("ifMatch", "if-match"),
            ("ifNoneMatch", "if-none-match"),
            ("ifModifiedSince", "if-modified-since"),  # an instant; read.not_modified knows both forms
            ("ifNoneExist", "if-none-exist"),
        )
        if name in request
    }
    resource = item.get("resource")
    if resource is not None and not isinstance(resource, dict):
        raise BadRequest(f"{where}.resource must be a resource", expression=[f"{where}.resource"])
    if resource is None and method in ("POST", "PUT", "PATCH") and not any(part.startswith("$") for part in path):
        raise BadRequest(f"{where} needs a resource for its {method}", expression=[f"{where}.resource"])
    full_url = item.get("fullUrl")
    return Entry(index, Call(method, path, query, headers, resource), full_url if isinstance(full_url, str) else "")


def request_of(entry: object) -> dict[str, Any]:
    """Bundle.entry.request; nothing where there is none, or what is there is something else."""
    request = entry.get("request") if isinstance(entry, dict) else None
    return request if isinstance(request, dict) else {}


async def within(entry: Entry, work: Awaitable[Result]) -> Result:
    try:
        return await work
    except FhirError as error:
        raise named(entry, error) from None


def named(entry: Entry, error: FhirError) -> FhirError:
    """The same error, saying which entry it is about."""
    one = type(error).__new__(type(error))
    FhirError.__init__(one, f"{entry.name}: {error.diagnostics}", issues=[at(entry, issue) for issue in error.issues])
    one.headers = error.headers
    return one


def at(entry: Entry, issue: Issue) -> Issue:
    where = tuple(".".join([f"{entry.name}.resource", *part.split(".")[1:]]) for part in issue.expression)
    return Issue(issue.severity, issue.code, f"{entry.name}: {issue.diagnostics}", where or (entry.name,))


def response_entry(answer: Answer, base: str, outcome: Resource | None) -> dict[str, object]:
    """One entry of a batch-response or transaction-response; the resource's bytes are spliced in by the wire."""
    response: dict[str, object] = {"status": f"{answer.status} {HTTPStatus(answer.status).phrase}"}
    if answer.location:
        response["location"] = f"{base}/{answer.location}"
    if answer.stored is not None:
        response["etag"] = f'W/"{answer.stored.version}"'
        response["lastModified"] = dates.instant(answer.stored.updated)
    if outcome is not None:
        response["outcome"] = outcome
    return {"response": response}
