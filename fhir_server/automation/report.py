"""The content as a page to read: every score, rule and questionnaire with source, licence, verification, inputs and limits.

Pure: resources and cases in, Markdown out. `fhir-server content report` writes docs/content.md with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from fhir_server.automation.plans import is_rule
from fhir_server.automation.risk.specification import BAND, Input, Specification, specification
from fhir_server.automation.vocabulary import Element, extension, extension_value, parts, split_canonical
from fhir_server.model.resource import Resource

HEAD = """# Clinical content

Made by `fhir-server content report`; do not edit. What stands here is reference material, not medical advice:
every limit is content that a clinician signs off before it is switched on, and that a clinician changes without code.

Verification: **verified** seen in the named source · **recomputed** the formula reproduces published values ·
**secondary** seen in secondary sources only · **unconfirmed** from memory, to be compared with the source ·
**default** an engineering default without a clinical source. *experimental* marks what should not yet be relied on.
Rows of a rule that stand under one condition are tried in order where only one can hold (the first grade that applies).

Left out because their owners forbid or restrict it: STOP-Bang, PSQI, MMAS-4 and MMAS-8, MMSE, MoCA, QRISK3.
"""


def report(resources: Iterable[Resource], cases: Mapping[str, int]) -> str:
    """The whole page. `cases`: rule id → how many cases name it."""
    known = sorted(resources, key=lambda resource: str(resource.get("id")))
    lines = [HEAD]
    lines += _scores([one for one in known if extension(one, "score") is not None])
    lines += _rules([one for one in known if is_rule(one)], known, cases)
    lines += _questionnaires([one for one in known if one["resourceType"] == "Questionnaire"])
    return "\n".join(lines) + "\n"


def _scores(libraries: Sequence[Resource]) -> Iterator[str]:
    yield f"## Risk scores ({len(libraries)})\n"
    for library in libraries:
        spec = specification(library)
        yield f"### {spec.code}: {spec.title}\n"
        yield f"{spec.zh} · version {spec.version} · {_verification(library)} · gives {spec.produces} in `{spec.unit}`\n"
        yield f"- Source: {_sources(library)}"
        yield f"- Licence: {library.get('copyright', '–')}"
        yield f"- Note: {_note(library)}\n"
        yield "| input | what | unit or values | validated range | not older than |"
        yield "|---|---|---|---|---|"
        ages = _ages(library)
        for item in spec.inputs:
            yield _row(item.name, f"{item.display} · {item.zh}", _values(item), _range(item), ages.get(item.name, "–"))
        yield ""
        if spec.bands:
            yield "| class | from | below | where |"
            yield "|---|---|---|---|"
            yield from _bands(spec, library)
            yield ""


def _bands(spec: Specification, library: Resource) -> Iterator[str]:
    assert sum(1 for one in library["extension"] if one["url"] == BAND) == len(spec.bands)
    for band in spec.bands:
        where = ", ".join(f"{when.name} {when.op} {when.value}" for when in band.when)
        yield _row(f"{band.display} · {band.zh}", _shown(band.low), _shown(band.below), where or "–")


def _values(item: Input) -> str:
    choices = ", ".join(item.codes) or f"`{item.unit}`" if item.unit or item.codes else item.kind
    when = "; ".join(f"{one.name} {one.op} {one.value}" for one in item.when)
    return f"{choices} (only if {when})" if when else choices


def _range(item: Input) -> str:
    return "–" if item.low is None and item.high is None else f"{_shown(item.low)} to {_shown(item.high)}"


def _ages(library: Resource) -> dict[str, str]:
    """How old each input may be, by the facts of its name."""
    found: dict[str, str] = {}
    for requirement in library.get("dataRequirement", ()):
        fact = extension(requirement, "fact")
        bound = next((one["valueDuration"] for one in requirement.get("dateFilter", ())), None)
        if fact is not None and bound is not None:
            found.setdefault(str(parts(fact, "name")[0]), f"{bound['value']} {bound['code']}")
    return found


def _rules(plans: Sequence[Resource], known: Sequence[Resource], cases: Mapping[str, int]) -> Iterator[str]:
    libraries = {one["url"]: one for one in known if one["resourceType"] == "Library"}
    yield f"## Rules ({len(plans)})\n"
    for plan in plans:
        yield f"### {plan['id']}: {plan['title']}\n"
        off = " · switched off (draft)" if plan.get("status") != "active" else ""
        count = cases.get(str(plan["id"]), 0)
        yield f"{_chinese(plan)} · version {plan['version']} · {_verification(plan)} · {count} cases{off}\n"
        yield f"- Source: {_sources(plan)}"
        yield f"- Note: {_note(plan)}"
        yield f"- Reads: {_facts(plan, libraries) or 'what its score reads'}"
        parameters = ", ".join(_parameters(plan, libraries))
        if parameters:
            yield f"- Parameters: {parameters}"
        yield "\n| when | then |"
        yield "|---|---|"
        for action in plan.get("action", ()):
            yield from _actions(action, ())
        yield ""


def _facts(plan: Resource, libraries: Mapping[str, Resource]) -> str:
    text = str(plan.get("action", ()))
    named: dict[str, None] = {}
    for canonical in plan.get("library", ()):
        library = libraries.get(split_canonical(canonical)[0], {})
        for requirement in library.get("dataRequirement", ()):
            fact = extension(requirement, "fact")
            if fact is not None and re.search(rf"%{parts(fact, 'name')[0]}\b", text):
                unit = next(iter(parts(fact, "unit")), "")
                named.setdefault(f"{parts(fact, 'name')[0]}{f' (`{unit}`)' if unit else ''}")
    return ", ".join(named)


def _parameters(plan: Resource, libraries: Mapping[str, Resource]) -> Iterator[str]:
    for canonical in plan.get("library", ()):
        library = libraries.get(split_canonical(canonical)[0], {})
        for one in library.get("extension", ()):
            if str(one["url"]).endswith("/parameter"):
                value = next(iter(parts(one, "value")), "")
                yield f"{parts(one, 'name')[0]} = {_shown(value) if isinstance(value, Decimal) else value}"


def _actions(action: Element, path: tuple[str, ...]) -> Iterator[str]:
    own = tuple(str(one.get("expression", {}).get("expression", "")) for one in action.get("condition", ()))
    if "timingDuration" in action:
        own += (f"{action['timingDuration']['value']} {action['timingDuration']['code']} after the anchor",)
    for one in action.get("relatedAction", ()):
        own += (f"{one['offsetDuration']['value']} {one['offsetDuration']['code']} after {one['actionId']}",)
    path += own
    outcome = ", ".join(_outcomes(action))
    if outcome:
        yield _row(" **and** ".join(f"`{one}`" for one in path) or "always", outcome)
    for child in action.get("action", ()):
        yield from _actions(child, path)


def _outcomes(action: Element) -> Iterator[str]:
    for name in ("tag", "interpretation"):
        coding = extension_value(action, name)
        if coding:
            yield f"{name} `{coding['code']}`"
    score = extension(action, "assess")
    if score is not None:
        yield f"score `{parts(score, 'code')[0]}`"
        for missing in parts(score, "missing"):
            yield f"if something is missing: `{_last(missing)}`"
    if "definitionCanonical" in action:
        yield f"`{_last(action['definitionCanonical'])}`"


def _questionnaires(found: Sequence[Resource]) -> Iterator[str]:
    yield f"## Questionnaires ({len(found)})\n"
    yield "| questionnaire | version | licence |"
    yield "|---|---|---|"
    for one in found:
        yield _row(f"{one['id']}: {one['title']} · {_chinese(one)}", one["version"], one.get("copyright", "–"))


def _verification(resource: Resource) -> str:
    found = extension(resource, "verification")
    status = next(iter(parts(found, "status")), "unconfirmed") if found is not None else "unconfirmed"
    return f"**{status}**" + (", *experimental*" if resource.get("experimental") else "")


def _note(resource: Resource) -> str:
    found = extension(resource, "verification")
    return str(next(iter(parts(found, "note")), "–")) if found is not None else "–"


def _sources(resource: Resource) -> str:
    shown = []
    for artifact in resource.get("relatedArtifact", ()):
        text = str(artifact.get("citation") or artifact.get("display") or artifact.get("url", ""))
        shown.append(f"[{text}]({artifact['url']})" if "url" in artifact else text)
    return "; ".join(shown) or "–"


def _chinese(resource: Resource) -> str:
    for one in resource.get("_title", {}).get("extension", ()):
        return str(next(iter(parts(one, "content")), ""))
    return ""


def _last(canonical: str) -> str:
    return split_canonical(canonical)[0].rpartition("/")[2]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
