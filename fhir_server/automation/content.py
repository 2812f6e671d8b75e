"""The content as rules: compiled, checked, its cases run, and stored at the first start. docs/hooks.md (Files)"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from fhir_server.auth.principal import Principal
from fhir_server.automation.cases import Case, Verdict, cases
from fhir_server.automation.cases import run as play
from fhir_server.automation.cross_references import problems as referred
from fhir_server.automation.cross_references import vocabulary
from fhir_server.automation.definitions import Definitions, version_key
from fhir_server.automation.drafts import BadCase
from fhir_server.automation.plans import check as check_plan
from fhir_server.automation.plans import is_rule
from fhir_server.automation.report import report as markdown
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.vocabulary import DEVICE, Element, part, structure
from fhir_server.errors import FhirError
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.write import commit, prepare
from fhir_server.model.content import files, folder, read
from fhir_server.model.resource import Resource, load
from fhir_server.store.protocol import Cause, Changed, Put
from fhir_server.validation import Validator

FOLDERS = ("terminology", "profiles", "resources")
BATCH = 40  # resources stored in one transaction

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    resource: Resource


def content(folders: Iterable[str] = FOLDERS) -> Iterator[File]:
    """Every resource of the content. Raises FhirError for a file that cannot be read."""
    for name in folders:
        for path in files(name):
            yield File(path, read(path))


def definitions() -> Definitions:
    return Definitions(file.resource for file in content())


def case_files() -> list[Path]:
    return sorted(path for path in folder("resources").rglob("cases/*.yaml"))


def check() -> list[str]:
    """What is wrong with the content, one line each: codes, canonicals, rules that do not compile, cases that fail."""
    problems: list[str] = []
    resources: list[File] = []
    for name in FOLDERS:
        for path in files(name):
            try:
                resources.append(File(path, read(path)))
            except FhirError as error:
                problems.append(f"{path}: {error.diagnostics}")
    known = Definitions(file.resource for file in resources)
    codes = vocabulary(file.resource for file in resources)
    for file in resources:
        if file.path.stem != file.resource.get("id") and file.path.is_relative_to(folder("resources")):
            problems.append(
                f"{file.path}: the id is {file.resource.get('id')!r}, the file's name says {file.path.stem!r}"
            )
        problems += [f"{file.path}: {line}" for line in referred(file.resource, codes, known)]
        try:
            problems += [f"{file.path}: {issue.diagnostics}" for issue in check_plan(file.resource, known)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{file.path}: cannot be compiled: {type(error).__name__} {error}")
    for verdict in run_cases(known):
        problems += [f"{verdict.case.path}: {verdict.case.name}: {problem}" for problem in verdict.problems]
    covered = {rule for case in _all_cases(problems) for rule in case.rules}
    for file in resources:
        if is_rule(file.resource) and file.resource.get("status") == "active" and file.resource["id"] not in covered:
            problems.append(f"{file.path}: no case names this rule")
    return problems


def report() -> str:
    """docs/content.md: every score, rule and questionnaire with its source and status, in Markdown."""
    counts: Counter[str] = Counter(rule for case in _all_cases() for rule in case.rules)
    return markdown((file.resource for file in content()), counts)


def _all_cases(problems: list[str] | None = None) -> Iterator[Case]:
    for path in case_files():
        try:
            yield from cases(path)
        except (BadCase, FhirError) as error:
            line = f"{path}: {error}"
            if problems is not None and line not in problems:
                problems.append(line)


def run_cases(known: Definitions | None = None) -> Iterator[Verdict]:
    """Every case of the content on the rules it names."""
    known = known or definitions()
    validator = Validator()
    books: dict[tuple[object, ...], Rulebook] = {}
    for path in case_files():
        try:
            found = cases(path)
        except (BadCase, FhirError) as error:
            yield Verdict(Case(path, "the file", (), {}), [str(error)])
            continue
        for case in found:
            try:
                key = (case.rules, case.parameters)
                book = books.get(key) or books.setdefault(key, book_of(known, case.rules, case.parameters))
            except FhirError as error:
                yield Verdict(case, [error.diagnostics])
                continue
            yield play(case, book, validator)


def book_of(known: Definitions, ids: Iterable[str], parameters: Iterable[tuple[str, Any]] = ()) -> Rulebook:
    """A rulebook of the rules with these ids (all if none is named), with these `parameters` in their Libraries.

    Drafts run, too, when a case names them.
    """
    wanted, values = set(ids), dict(parameters)
    if not wanted and not values:
        return Rulebook(known)
    chosen = Definitions()
    found: set[str] = set()
    used: set[str] = set()
    for resource_type in ("ActivityDefinition", "Library", "ValueSet"):
        for resource in known.all(resource_type):
            chosen.add(_with(resource, values, used) if values and resource_type == "Library" else resource)
    if strange := set(values) - used:
        raise FhirError(f"no Library has a parameter {', '.join(sorted(strange))}")
    for plan in known.all("PlanDefinition"):
        if plan["id"] in wanted or not wanted:
            chosen.add({**plan, "status": "active"})
            found.add(plan["id"])
    if wanted - found:
        raise FhirError(f"there is no rule {', '.join(sorted(wanted - found))}")
    book = Rulebook(chosen)
    if book.broken:
        raise FhirError("; ".join(f"{url} does not compile: {why}" for url, why in book.broken.items()))
    return book


def _with(library: Resource, values: Mapping[str, Any], used: set[str]) -> Resource:
    """The Library with other values of its parameters; the names it has are added to `used`."""
    return {**library, "extension": [_parameter(one, values, used) for one in library.get("extension", ())]}


def _parameter(extension: Element, values: Mapping[str, Any], used: set[str]) -> Element:
    name = str(part(extension, "name"))
    if extension["url"] != structure("parameter") or name not in values:
        return extension
    used.add(name)
    kind = "valueDecimal" if isinstance(values[name], (int, Decimal)) else "valueCode"
    return {**extension, "extension": [{"url": "name", "valueCode": name}, {"url": "value", kind: values[name]}]}


async def store(server: Server) -> int:
    """Stores what is new in the content: what is not there yet, and newer versions of what nobody deleted.

    What was changed at run time under the same or a higher version stays. Returns how many resources were written.
    """
    found = list(content())
    keys = [(file.resource["resourceType"], file.resource["id"]) for file in found]
    present = await server.store.read_many(keys)
    context = Context(Principal.automation(), server.settings.public_url, cause=Cause(agent=DEVICE))
    puts: list[Put] = []
    for file, key in zip(found, keys, strict=True):
        previous = present.get(key)
        if previous is not None and (previous.deleted or not _newer(file.resource, load(previous.raw))):
            continue
        try:
            put, _ = prepare(server, context, file.resource, key[1], previous, interaction="update")
        except FhirError as error:
            log.error("%s is not stored: %s", file.path, "; ".join(issue.diagnostics for issue in error.issues))
            continue
        if put is not None:
            puts.append(put)
    written = 0
    for start in range(0, len(puts), BATCH):
        try:
            await commit(server, puts[start : start + BATCH])
            written += len(puts[start : start + BATCH])
        except Changed:  # another process of this server stores the same
            continue
    return written


def _newer(ours: Resource, theirs: Resource) -> bool:
    if "version" not in ours or "version" not in theirs:
        return False
    return version_key(str(ours["version"])) > version_key(str(theirs["version"]))
