"""$assess-risk over HTTP: from given inputs, and from a patient's record."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from fhir_server.automation.risk.specification import chinese as specified
from fhir_server.model.content import read_yaml
from fhir_server.model.resource import load
from fhir_server.validation import Validator

pytestmark = pytest.mark.anyio

VECTORS = read_yaml((Path(__file__).parents[1] / "clinical" / "vectors.yaml").read_text(encoding="utf-8"))
FIRST = {row["score"]: row for row in reversed(VECTORS)}
YES_NO = "https://fhir-server.org/fhir/CodeSystem/score-inputs"
ICD = "http://hl7.org/fhir/sid/icd-10"


def body(score: str, inputs: dict[str, Any]) -> str:
    """A Parameters resource as a client would send it."""
    parts: list[dict[str, Any]] = [{"name": "score", "valueCode": score}]
    for name, value in inputs.items():
        kind = (
            "valueString" if isinstance(value, str) else "valueQuantity" if isinstance(value, dict) else "valueDecimal"
        )
        parts.append({"name": "input", "part": [{"name": "name", "valueString": name}, {"name": "value", kind: value}]})
    return json.dumps({"resourceType": "Parameters", "parameter": parts}, default=float)


async def asked(client: httpx.AsyncClient, score: str, inputs: dict[str, Any]) -> httpx.Response:
    return await client.post(
        "$assess-risk", content=body(score, inputs), headers={"Content-Type": "application/fhir+json"}
    )


def part(answer: httpx.Response, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in load(answer.content)["parameter"] if one["name"] == name)
    return found


def diagnostics(answer: httpx.Response) -> list[str]:
    return [issue["diagnostics"] for issue in answer.json()["issue"]]


def chinese(answer: httpx.Response) -> list[str]:
    """The translation beside each issue's text, which says in English what diagnostics does."""
    issues = answer.json()["issue"]
    assert [issue["details"]["text"] for issue in issues] == diagnostics(answer)
    return [specified(issue["details"], "text") for issue in issues]


@pytest.mark.parametrize("score", sorted(FIRST))
async def test_each_score_over_http(client: httpx.AsyncClient, score: str) -> None:
    row = FIRST[score]
    answer = await asked(client, score, row["inputs"])
    assert answer.status_code == 200, answer.text
    assert abs(part(answer, "result")["valueDecimal"] - Decimal(row["expected"])) <= Decimal(row["within"])
    assessment = part(answer, "assessment")["resource"]
    assert [issue for issue in Validator().check(assessment) if issue.is_error] == []
    used = [one for one in answer.json()["parameter"] if one["name"] == "input"]
    assert {one["part"][0]["valueString"] for one in used} >= set(row["inputs"])


async def test_the_band_has_both_languages(client: httpx.AsyncClient) -> None:
    answer = await asked(client, "china-par-10y", FIRST["china-par-10y"]["inputs"] | {"age": 60})
    band = part(answer, "band")["valueCoding"]
    assert (band["code"], band["display"]) == ("high", "High")
    assert band["_display"]["extension"][0]["extension"][1]["valueString"] == "高危"


async def test_percent_in_the_assessment_is_of_a_hundred(client: httpx.AsyncClient) -> None:
    answer = await asked(client, "prevent-base-10y", FIRST["prevent-base-10y"]["inputs"])
    prediction = part(answer, "assessment")["resource"]["prediction"][0]
    assert prediction["probabilityDecimal"] == part(answer, "result")["valueDecimal"] == Decimal("14.68")
    assert prediction["whenRange"]["high"]["value"] == 10


async def test_egfr_is_an_observation(client: httpx.AsyncClient) -> None:
    answer = await asked(
        client, "ckd-epi-2021", {"sex": "f", "age": 60, "scr_mgdl": {"value": 70.72, "code": "umol/L"}}
    )
    assessment = part(answer, "assessment")["resource"]
    assert assessment["resourceType"] == "Observation"
    assert assessment["valueQuantity"]["value"] == 84
    assert assessment["code"]["coding"][0]["code"] == "98979-8"


async def test_out_of_range_is_no_number(client: httpx.AsyncClient) -> None:
    answer = await asked(client, "score2", FIRST["score2"]["inputs"] | {"age": 75})
    assert answer.status_code == 422
    assert diagnostics(answer) == [
        "age (Age in completed years) is 75 a: outside of the range 40 to 69 a for which SCORE2, ten-year risk has been validated"
    ]
    assert "parameter" not in answer.json()
    assert chinese(answer) == ["年龄（周岁）为 75 a，不在SCORE2 十年风险的适用范围 40–69 a 之内"]


async def test_everything_that_is_missing_is_named(client: httpx.AsyncClient) -> None:
    answer = await asked(client, "fib-4", {"age": 50, "ast": 40})
    assert answer.status_code == 422
    assert [text.split(" (")[0] for text in diagnostics(answer)] == ["The input alt", "The input plt_1e9"]
    assert chinese(answer) == ["缺少丙氨酸氨基转移酶", "缺少血小板计数"]


@pytest.mark.parametrize(
    ("score", "inputs", "status", "says"),
    [
        ("astrology", {"age": 50}, 400, "There is no score 'astrology'"),
        ("fib-4", {"age": "old", "ast": 40, "alt": 40, "plt_1e9": 200}, 422, "age: 'old' is not a number"),
        (
            "pce-2013",
            FIRST["pce-2013"]["inputs"] | {"race": "blue"},
            422,
            "race: 'blue' is not one of black, white/other",
        ),
    ],
)
async def test_what_cannot_be_understood(
    client: httpx.AsyncClient, score: str, inputs: dict[str, Any], status: int, says: str
) -> None:
    answer = await asked(client, score, inputs)
    assert answer.status_code == status
    assert says in diagnostics(answer)[0]


@pytest.mark.parametrize("number", ["1e9999999", "1e-9999999", "0e9999999", "1e300", "-1e16"])
@pytest.mark.parametrize("form", ["valueDecimal", "valueQuantity"])
async def test_what_nobody_can_have_measured_costs_nothing(client: httpx.AsyncClient, number: str, form: str) -> None:
    """Converted exactly, a number of ten million digits would keep the server from everybody else."""
    value = number if form == "valueDecimal" else f'{{"value": {number}, "code": "umol/L"}}'
    inputs = [("sex", '"valueString": "f"'), ("age", '"valueDecimal": 60'), ("scr_mgdl", f'"{form}": {value}')]
    parts = [
        f'{{"name": "input", "part": [{{"name": "name", "valueString": "{name}"}}, {{"name": "value", {said}}}]}}'
        for name, said in inputs
    ]
    score = '{"name": "score", "valueCode": "ckd-epi-2021"}'
    body = f'{{"resourceType": "Parameters", "parameter": [{", ".join([score, *parts])}]}}'
    answer = await client.post("$assess-risk", content=body, headers={"Content-Type": "application/fhir+json"})
    assert answer.status_code == 422
    assert "scr_mgdl" in diagnostics(answer)[0]


async def test_a_value_of_no_known_form_is_no_value(client: httpx.AsyncClient) -> None:
    parts = [{"name": "name", "valueString": "age"}, {"name": "value", "valueCodeableConcept": {"coding": [1]}}]
    body = {"resourceType": "Parameters", "parameter": [
        {"name": "score", "valueCode": "ckd-epi-2021"}, {"name": "input", "part": parts}]}  # fmt: skip
    answer = await client.post(
        "$assess-risk", content=json.dumps(body), headers={"Content-Type": "application/fhir+json"}
    )
    assert answer.status_code == 422


async def test_a_score_must_be_named(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "$assess-risk",
        content='{"resourceType": "Parameters", "parameter": [{"name": "input", "part": []}]}',
        headers={"Content-Type": "application/fhir+json"},
    )
    assert answer.status_code == 400


# The record


async def put(client: httpx.AsyncClient, resource: dict[str, Any]) -> None:
    answer = await client.put(
        f"{resource['resourceType']}/{resource['id']}",
        content=json.dumps(resource),
        headers={"Content-Type": "application/fhir+json"},
    )
    assert answer.status_code in (200, 201), answer.text


def observation(
    id: str, code: str, value: Any, unit: str = "", when: str = "2025-12-20", patient: str = "wang"
) -> dict[str, Any]:
    system, _, code = code.rpartition("|")
    quantity = {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}
    return {
        "resourceType": "Observation",
        "id": id,
        "status": "final",
        "code": {"coding": [{"system": system or "http://loinc.org", "code": code}]},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": when,
        **({"valueBoolean": value} if isinstance(value, bool) else {"valueQuantity": quantity}),
    }


@pytest.fixture(scope="module")
async def wang(client: httpx.AsyncClient) -> str:
    """A man of 60 with what China-PAR needs, cholesterol in mmol/L: the example of the paper, 11.0 %."""
    await put(client, {"resourceType": "Patient", "id": "wang", "gender": "male", "birthDate": "1965-06-01"})
    await put(client, observation("tc", "14647-2", 5.439, "mmol/L"))
    await put(client, observation("hdl", "14646-4", 1.4245, "mmol/L"))
    await put(client, observation("waist", "8280-0", 80, "cm"))
    panel = observation("bp", "85354-9", 0)
    del panel["valueQuantity"]
    panel["component"] = [
        {"code": {"coding": [{"system": "http://loinc.org", "code": code}]},
         "valueQuantity": {"value": value, "unit": "mmHg", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}}
        for code, value in (("8480-6", 130), ("8462-4", 80))
    ]  # fmt: skip
    await put(client, panel)
    for code, value in (("on-antihypertensives", False), ("current-smoker", False), ("lives-north-of-yangtze", True),
                        ("lives-in-city", True), ("family-history-ascvd", False)):  # fmt: skip
        await put(client, observation(code, f"{YES_NO}|{code}", value))
    await put(
        client,
        {
            "resourceType": "Condition",
            "id": "diabetes",
            "subject": {"reference": "Patient/wang"},
            "code": {"coding": [{"system": ICD, "code": "E11.9"}]},
        },
    )
    return "wang"


async def test_a_patient_s_record(client: httpx.AsyncClient, wang: str) -> None:
    answer = await client.get(f"Patient/{wang}/$assess-risk", params={"score": "china-par-10y"})
    assert answer.status_code == 200, answer.text
    assert abs(part(answer, "result")["valueDecimal"] - 11) <= Decimal("0.1")
    assessment = part(answer, "assessment")["resource"]
    assert assessment["subject"] == {"reference": "Patient/wang"}
    basis = {one["reference"] for one in assessment["basis"]}
    assert basis >= {"Observation/tc", "Observation/hdl", "Observation/waist", "Observation/bp", "Condition/diabetes"}
    inputs = {
        one["part"][0]["valueString"]: one["part"] for one in answer.json()["parameter"] if one["name"] == "input"
    }
    assert {"name": "source", "valueReference": {"reference": "Observation/tc"}} in inputs["tc_mgdl"]
    assert (await client.get("RiskAssessment", params={"_summary": "count"})).json()["total"] == 0


async def test_the_record_lacks_something(client: httpx.AsyncClient, wang: str) -> None:
    answer = await client.get(f"Patient/{wang}/$assess-risk", params={"score": "fib-4"})
    assert answer.status_code == 422
    assert diagnostics(answer) == [
        "The record has no ast (Aspartate aminotransferase)",
        "The record has no alt (Alanine aminotransferase)",
        "The record has no plt_1e9 (Platelets)",
    ]
    assert chinese(answer) == [
        "病历中没有天门冬氨酸氨基转移酶",
        "病历中没有丙氨酸氨基转移酶",
        "病历中没有血小板计数",
    ]


async def test_the_record_has_something_too_old_or_unreadable(client: httpx.AsyncClient, wang: str) -> None:
    await put(client, observation("ast", "1920-8", 40, "U/L", when="2019-03-01"))
    await put(client, observation("alt", "1742-6", 40, "mmol/L"))
    await put(client, observation("plt", "777-3", 200, "10*9/L"))
    answer = await client.get(f"Patient/{wang}/$assess-risk", params={"score": "fib-4"})
    assert answer.status_code == 422
    assert [issue["code"] for issue in answer.json()["issue"]] == ["expired", "required"]
    assert diagnostics(answer) == [
        "The newest ast (Aspartate aminotransferase) is of 2019-03-01; it may be 365 days old",
        "The record has no alt (Alanine aminotransferase) (Observation/alt: 40 mmol/L cannot be read as U/L)",
    ]
    assert chinese(answer) == [
        "最近一次天门冬氨酸氨基转移酶的日期为 2019-03-01，须在 365 天之内",
        "病历中没有丙氨酸氨基转移酶（现有值无法使用）",
    ]


async def test_the_patient_must_exist(client: httpx.AsyncClient) -> None:
    answer = await client.get("Patient/nobody/$assess-risk", params={"score": "fib-4"})
    assert answer.status_code == 404


async def test_inputs_are_not_mixed_with_the_record(client: httpx.AsyncClient, wang: str) -> None:
    answer = await client.post(
        f"Patient/{wang}/$assess-risk",
        content=body("fib-4", {"ast": 40}),
        headers={"Content-Type": "application/fhir+json"},
    )
    assert answer.status_code == 400
