"""$assess-risk: a named score of given inputs, or of a patient's record; nothing is stored. docs/risk-scores.md

The answer is Parameters: result, band, assessment (a RiskAssessment or Observation) and each input that was used.
What is missing, too old, out of range or unreadable is named in an OperationOutcome (422); then there is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from fhir_server.automation import scores
from fhir_server.automation.facts import Facts, Moment
from fhir_server.automation.record import chart_for, score_named, stale
from fhir_server.automation.risk import RISK_SCORES
from fhir_server.automation.risk.assessment import InvalidInput, MissingInput, OutOfRange, Result, compute, plain
from fhir_server.automation.risk.specification import BANDS, Input
from fhir_server.automation.scores import Assessed, Score
from fhir_server.automation.vocabulary import translation
from fhir_server.errors import BadRequest, Issue, Unprocessable
from fhir_server.interactions.call import Answer, Call, parameters
from fhir_server.interactions.context import Context, Server
from fhir_server.model.dates import instant
from fhir_server.model.resource import Resource, dump


async def assess_risk(server: Server, context: Context, call: Call) -> Answer:
    """`[base]/$assess-risk` with `score` and `input`s, or `Patient/[id]/$assess-risk?score=…`."""
    before = call.path[: call.path.index("$assess-risk")]
    score, outcome, given = _asked(server, call)
    now = int(server.now().timestamp() * 1000)
    if not before:
        if outcome is not None:
            given.setdefault("outcome", outcome)
        return _computed(score, given, now)
    if given:
        raise BadRequest("Inputs come from the record here; to give them use [base]/$assess-risk")
    chart = await chart_for(server, context, score, before[1])
    moment = Moment(chart, now)
    facts = Facts(moment, {}, {})
    found, _ = scores.inputs(score, facts)
    if outcome is not None:
        found["outcome"] = outcome
    try:
        result = compute(score.specification, found)
    except MissingInput as error:
        raise Unprocessable(str(error), issues=[_lacking(score, name, moment) for name in error.names]) from None
    except (OutOfRange, InvalidInput) as error:
        raise _refused(score, error) from None
    origins = {name: moment.find(score.facts[name]) for name in found if name in score.facts}
    sources = list(dict.fromkeys(r.reference for origin in origins.values() for r in origin.sources))
    at = max([origin.at for origin in origins.values() if origin.at is not None], default=now)
    patient = f"Patient/{chart.id}"
    if any(name in ("age", "sex") for name in found):
        sources.append(patient)
    assessment = scores.resource(score, Assessed((result,), (), tuple(dict.fromkeys(sources))), chart.id, at, "")
    used = []
    for name, value in result.inputs.items():
        origin = origins.get(name)
        references = [reading.reference for reading in origin.sources] if origin else []
        if not references and name in ("age", "sex"):
            references = [patient]
        used.append(_input(score.specification.input(name), name, value, references, origin.at if origin else None))
    return _answer(result, assessment, used)


def _computed(score: Score, given: Mapping[str, Any], now: int) -> Answer:
    try:
        result = compute(score.specification, given)
    except MissingInput as error:
        issues = [
            _issue("required", f"The input {_called(score, name)} is missing", f"缺少{_zh(score, name)}")
            for name in error.names
        ]
        raise Unprocessable(str(error), issues=issues) from None
    except (OutOfRange, InvalidInput) as error:
        raise _refused(score, error) from None
    assessment = scores.resource(score, Assessed((result,), (), ()), "unknown", now, "")
    assessment["subject"] = {"display": "The person described by the inputs of the request"}
    assessment.pop("basis", None)
    used = [_input(score.specification.input(name), name, value, [], None) for name, value in result.inputs.items()]
    return _answer(result, assessment, used)


def _asked(server: Server, call: Call) -> tuple[Score, str | None, dict[str, Any]]:
    """(score, outcome, inputs) of query and body. Raises BadRequest."""
    code, outcome = call.first("score"), call.first("outcome")
    given: dict[str, Any] = {}
    body = call.resource or {}
    if body and body.get("resourceType") != "Parameters":
        raise BadRequest("$assess-risk takes a Parameters resource", expression=["resourceType"])
    for index, part in enumerate(body.get("parameter", ())):
        where = f"Parameters.parameter[{index}]"
        name = part.get("name")
        if name == "score":
            code = str(_value(part))
        elif name == "outcome":
            outcome = str(_value(part))
        elif name == "input":
            key, value = _pair(part, where)
            if key in given:
                raise BadRequest(f"The input {key!r} is given twice", expression=[where])
            given[key] = value
        else:
            raise BadRequest(
                f"$assess-risk has no parameter {name!r}; it has score, outcome, input", expression=[where]
            )
    if not code:
        raise BadRequest(f"The parameter 'score' is missing; scores are {', '.join(sorted(RISK_SCORES))}")
    score = score_named(server, code)
    if score is None:
        raise BadRequest(f"There is no score {code[:60]!r}; scores are {', '.join(sorted(RISK_SCORES))}")
    return score, outcome, given


def _pair(part: Mapping[str, Any], where: str) -> tuple[str, Any]:
    parts = {one.get("name"): _value(one) for one in part.get("part", ())}
    if not isinstance(parts.get("name"), str) or "value" not in parts:
        raise BadRequest("An input has the parts name and value", expression=[where])
    return parts["name"], parts["value"]


def _value(part: Mapping[str, Any]) -> Any:
    value = next((content for key, content in part.items() if key.startswith("value")), None)
    if isinstance(value, dict) and "value" not in value:
        codings = value.get("coding")
        first = codings[0] if isinstance(codings, list) and codings else value
        return first.get("code") if isinstance(first, dict) else None
    return value


def _refused(score: Score, error: OutOfRange | InvalidInput) -> Unprocessable:
    if isinstance(error, OutOfRange):
        limits = " to ".join("…" if limit is None else plain(limit) for limit in (error.low, error.high))
        text = (
            f"{_called(score, error.name)} is {plain(round(error.value, 6))} {error.unit}: outside of the range "
            f"{limits} {error.unit} for which {score.specification.title} has been validated"
        )
        said = (
            f"{_zh(score, error.name)}为 {plain(round(error.value, 6))} {error.unit}，不在"
            f"{score.specification.zh}的适用范围 {limits.replace(' to ', '–')} {error.unit} 之内"
        )
        return Unprocessable(text, issues=[_issue("value", text, said)])
    text = f"{score.specification.code}: {error}"
    return Unprocessable(text, issues=[_issue("value", text, f"{_zh(score, error.name)}的值无法使用")])


def _lacking(score: Score, name: str, moment: Moment) -> Issue:
    old = stale(score.facts.get(name, ()), moment)
    if old is not None:
        text = f"The newest {_called(score, name)} is of {instant(old.at)[:10]}; it may be {old.within} days old"
        said = f"最近一次{_zh(score, name)}的日期为 {instant(old.at)[:10]}，须在 {old.within} 天之内"
        return _issue("expired", text, said)
    problems = moment.find(score.facts[name]).problems if name in score.facts else ()
    because = f" ({'; '.join(problems)})" if problems else ""
    said = f"病历中没有{_zh(score, name)}" + ("（现有值无法使用）" if problems else "")
    return _issue("required", f"The record has no {_called(score, name)}{because}", said)


def _issue(code: str, english: str, chinese: str) -> Issue:
    return Issue("error", code, english, details=_translated("text", english, chinese))


def _called(score: Score, name: str) -> str:
    item = score.specification.input(name)
    return f"{name} ({item.display})" if item is not None and item.display else name


def _zh(score: Score, name: str) -> str:
    item = score.specification.input(name)
    return item.zh if item is not None and item.zh else name


def _input(item: Input | None, name: str, value: Any, references: list[str], at: int | None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"name": "name", "valueString": name}]
    if isinstance(value, bool):
        parts.append({"name": "value", "valueBoolean": value})
    elif isinstance(value, Decimal):
        parts.append({"name": "value", "valueDecimal": value})
        if item is not None and item.unit:
            parts.append({"name": "unit", "valueCode": item.unit})
    else:
        parts.append({"name": "value", "valueString": value})
    if item is not None and item.display:
        parts.append({"name": "display", **_translated("valueString", item.display, item.zh)})
    parts += [{"name": "source", "valueReference": {"reference": reference}} for reference in references]
    if at is not None:
        parts.append({"name": "at", "valueDateTime": instant(at)})
    return {"name": "input", "part": parts}


def _answer(result: Result, assessment: Resource, used: list[dict[str, Any]]) -> Answer:
    specification = result.specification
    found: list[dict[str, Any]] = [
        {"name": "result", "valueDecimal": result.value},
        {"name": "unit", "valueCode": result.unit},
        {"name": "method", "valueCanonical": f"{specification.url}|{specification.version}"},
    ]
    if result.outcome:
        found.append({"name": "outcome", "valueCode": result.outcome})
    if result.band is not None:
        coding = {
            "system": BANDS,
            "code": result.band.code,
            **_translated("display", result.band.display, result.band.zh),
        }
        found.append({"name": "band", "valueCoding": coding})
    found.append({"name": "assessment", "resource": assessment})
    return Answer(200, body=dump(parameters(*found, *used)))


def _translated(name: str, text: str, chinese: str) -> dict[str, Any]:
    """A text with its Chinese translation."""
    if not chinese:
        return {name: text}
    return {name: text, f"_{name}": translation(chinese)}
