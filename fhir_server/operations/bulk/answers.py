"""What a client is told about its job: how far it is, the manifest, the files. For anybody else the job is not there.

[base]/$export/{job} is the status; [base]/$export/{job}/{file} a file. The token must be of the client, and the user, who asked,
and allow at least what the one they asked with did.
"""

from __future__ import annotations

from typing import Any

from fhir_server.auth.principal import Principal
from fhir_server.auth.scopes import Scope
from fhir_server.errors import Forbidden, Issue, NotFound, Unauthorized
from fhir_server.interactions.call import Answer, Call, Packed
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.write import http_date
from fhir_server.model.dates import instant
from fhir_server.model.resource import dump
from fhir_server.operations.bulk.files import packed
from fhir_server.operations.bulk.request import owner_of
from fhir_server.operations.bulk.worker import exporter_of
from fhir_server.store.exports import File, Job

NAME = "$export"
SUFFIX = ".ndjson"
NDJSON = "application/fhir+ndjson"
MANIFEST = "application/json"
SOONEST, LATEST = 1, 30  # seconds that a client is asked to wait before it looks again


async def status(server: Server, context: Context, call: Call) -> Answer:
    job = await _job(server, context.principal, call)
    _check_scopes(context.principal, job)
    if job.state == "failed":
        return Answer(500, issues=[Issue("error", "processing", job.error)], headers=_expires(job))
    if job.state != "done":
        waited = (exporter_of(server).now() - job.created) // 1000
        wait = min(max(waited // 4, SOONEST), LATEST)
        count = sum(file.count for file in job.files)
        said = f"{count} resources in {len(job.files)} files" if job.state == "running" else "waiting"
        return Answer(202, headers={"X-Progress": said, "Retry-After": str(wait)}, empty=True)
    return Answer(200, body=_manifest(server, context, job), media_type=MANIFEST, headers=_expires(job))


async def file(server: Server, context: Context, call: Call) -> Answer:
    job = await _job(server, context.principal, call)
    _check_scopes(context.principal, job)
    found = next((one for one in job.files if job.state == "done" and one.name + SUFFIX == call.path[2]), None)
    if found is None:
        raise NotFound("There is no such file")
    exports = exporter_of(server).exports
    return Answer(
        200,
        packed=Packed(packed(exports, job.id, found), found.size, found.packed),
        media_type=NDJSON,
        headers=_expires(job),
    )


async def cancel(server: Server, context: Context, call: Call) -> Answer:
    """Ends the job, or removes its files."""
    job = await _job(server, context.principal, call)
    if not await exporter_of(server).exports.cancel(job.id, job.owner):
        raise _not_there()
    return Answer(202, issues=[Issue("information", "informational", "The export and its files are removed")])


async def _job(server: Server, principal: Principal, call: Call) -> Job:
    if call.path[0] != NAME:
        raise NotFound(f"No FHIR interaction has the URL {'/'.join(call.path)[:200]!r}")
    if not principal.subject:
        refused = Unauthorized("An access token is needed")
        refused.headers["WWW-Authenticate"] = "Bearer"
        raise refused
    exporter = exporter_of(server)
    job = await exporter.exports.find(call.path[1], owner_of(principal), exporter.now())
    if job is None:
        raise _not_there()
    return job


def _not_there() -> NotFound:
    return NotFound("There is no such export: it has ended, was removed, or never was")


def _check_scopes(principal: Principal, job: Job) -> None:
    """Reading what a wider token found needs a token as wide. Raises Forbidden."""
    for text in job.about["scopes"]:
        wanted = Scope.parse(text)
        if not any(scope.covers(wanted) for scope in principal.scopes):
            raise Forbidden(f"The export was asked for with the scope {text}, which this token does not have")


def _manifest(server: Server, context: Context, job: Job) -> bytes:
    def items(kind: str) -> list[dict[str, Any]]:
        return [_item(context.base, job, one) for one in job.files if one.kind == kind]

    manifest: dict[str, Any] = {
        "transactionTime": instant(job.about["moment"]),
        "request": job.about["url"],
        "requiresAccessToken": not server.settings.open,
        "output": items("output"),
        "deleted": items("deleted"),
        "error": items("error"),
    }
    return dump(manifest)


def _item(base: str, job: Job, one: File) -> dict[str, Any]:
    return {"type": one.resource_type, "url": f"{base}/{NAME}/{job.id}/{one.name}{SUFFIX}", "count": one.count}


def _expires(job: Job) -> dict[str, str]:
    return {"Expires": http_date(job.expires)}
