"""The sample population's resources, one function each: https://hl7.org/fhir/R4/resourcelist.html"""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from fhir_server.cli.population.course import Dice, Visit
from fhir_server.cli.population.people import Person, names, table

Json = dict[str, Any]

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
ICD10 = "http://hl7.org/fhir/sid/icd-10"
ATC = "http://www.whocc.no/atc"
UCUM = "http://unitsofmeasure.org"
HL7 = "http://terminology.hl7.org/CodeSystem"
ORGANIZATION = "sample-organization"
ZONE = "+08:00"

# Whoever meets one of these records knows that nobody's health is in it: https://terminology.hl7.org/CodeSystem-v3-ActReason.html
TEST_DATA: Json = {
    "security": [{"system": f"{HL7}/v3-ActReason", "code": "HTEST", "display": "test health data"}],
}


def bilingual(system: str, code: str, display: str, english: str, chinese: str) -> Json:
    """A CodeableConcept whose coding carries its Chinese name by the translation extension."""
    translation = {
        "url": "http://hl7.org/fhir/StructureDefinition/translation",
        "extension": [{"url": "lang", "valueCode": "zh"}, {"url": "content", "valueString": chinese}],
    }
    coding = {"system": system, "code": code, "display": display, "_display": {"extension": [translation]}}
    return {"coding": [coding], "text": f"{chinese} {english}"}


def resource(resource_type: str, id: str, **elements: Any) -> Json:
    return {"resourceType": resource_type, "id": id, "meta": TEST_DATA, **elements}


def quantity(value: float, decimals: int, unit: str, ucum: str) -> Json:
    return {"value": Decimal(f"{value:.{decimals}f}"), "unit": unit, "system": UCUM, "code": ucum}


def organization() -> Json:
    return resource(
        "Organization",
        ORGANIZATION,
        active=True,
        type=[bilingual(f"{HL7}/organization-type", "prov", "Healthcare Provider", "Healthcare provider", "医疗机构")],
        name="示例健康管理中心 Sample Health Centre",
        alias=["示例健康管理中心", "Sample Health Centre"],
        telecom=[{"system": "url", "value": "http://example.org/sample"}],
        address=[{"use": "work", "city": "北京市", "country": "CN"}],
    )


def patient(person: Person, dice: Dice, today: date) -> Json:
    city, district, country, postal_code, street, telephone = person.city
    birth = date(today.year - person.age, dice.whole(1, 9), dice.whole(1, 28))
    number = dice.whole(1, 299)
    line = f"{street}{number}号" if country == "CN" else f"{number} {street}"
    text = f"{city}{district}{line}" if country == "CN" else f"{line}, {postal_code} {city}, {country}"
    language = "zh-CN" if person.chinese else "en"
    return resource(
        "Patient",
        person.id,
        identifier=[
            {
                "use": "usual",
                "type": bilingual(f"{HL7}/v2-0203", "MR", "Medical record number", "Medical record number", "病历号"),
                "system": "http://example.org/sample/mrn",
                "value": f"M{1000 + int(person.id.rsplit('-', 1)[1])}",
                "assigner": {"reference": f"Organization/{ORGANIZATION}"},
            }
        ],
        active=True,
        name=names(person.family, person.given, person.usual_family, person.usual_given),
        telecom=[{"system": "phone", "value": f"{telephone}{dice.whole(100, 199)}", "use": "mobile"}],
        gender=person.gender,
        birthDate=birth.isoformat(),
        address=[
            {
                "use": "home",
                "text": text,
                "line": [line],
                "city": city,
                "district": district,
                "postalCode": postal_code,
                "country": country,
            }
        ],
        communication=[{"language": {"coding": [{"system": "urn:ietf:bcp:47", "code": language}]}, "preferred": True}],
        generalPractitioner=[{"reference": f"Practitioner/sample-practitioner-{dice.whole(1, 3)}"}],
        managingOrganization={"reference": f"Organization/{ORGANIZATION}"},
    )


def encounter(person: Person, visit: Visit, day: date) -> Json:
    return resource(
        "Encounter",
        f"{person.id}-{visit.year}",
        status="finished",
        **{"class": {"system": f"{HL7}/v3-ActCode", "code": "AMB", "display": "ambulatory"}},
        type=[bilingual(SNOMED, "185349003", "Encounter for check up", "Annual check-up", "年度体检")],
        subject={"reference": f"Patient/{person.id}"},
        period={"start": f"{day}T08:00:00{ZONE}", "end": f"{day}T10:30:00{ZONE}"},
        serviceProvider={"reference": f"Organization/{ORGANIZATION}"},
    )


def _category(code: str) -> list[Json]:
    shown = {
        "vital-signs": ("Vital Signs", "Vital signs", "生命体征"),
        "laboratory": ("Laboratory", "Laboratory", "检验"),
        "exam": ("Exam", "Examination", "体格检查"),
        "social-history": ("Social History", "Social history", "社会史"),
    }[code]
    return [bilingual(f"{HL7}/observation-category", code, *shown)]


def measurement(person: Person, name: str, value: float, when: str, visit: Visit) -> Json:
    """One measured value; conventional units for people who live where those are printed."""
    measure = table("measures")[name]
    given = measure if person.chinese or "mass" not in measure else {**measure, **measure["mass"]}
    factor = given.get("factor", 1.0)
    observation = resource(
        "Observation",
        f"{person.id}-{visit.year}-{name.replace('_', '-')}",
        status="final",
        category=_category(measure["category"]),
        code=bilingual(LOINC, given["code"], given["display"], measure["en"], measure["zh"]),
        subject={"reference": f"Patient/{person.id}"},
        encounter={"reference": f"Encounter/{person.id}-{visit.year}"},
        effectiveDateTime=when,
        issued=when,
        performer=[{"reference": f"Organization/{ORGANIZATION}"}],
        valueQuantity=quantity(value * factor, given["decimals"], given["unit"], given["ucum"]),
    )
    limits = {
        bound: quantity(measure[bound] * factor, given["decimals"], given["unit"], given["ucum"])
        for bound in ("low", "high")
        if bound in measure
    }
    if limits:
        observation["referenceRange"] = [limits]
    return observation


def blood_pressure(
    person: Person, id: str, systolic: float, diastolic: float, when: str, *, encounter: str | None
) -> Json:
    """The panel of two components; measured at home where there is no encounter."""

    def component(code: str, display: str, english: str, chinese: str, value: float) -> Json:
        return {
            "code": bilingual(LOINC, code, display, english, chinese),
            "valueQuantity": quantity(value, 0, "mmHg", "mm[Hg]"),
        }

    elements: Json = {"status": "final", "category": _category("vital-signs")}
    elements["code"] = bilingual(
        LOINC, "85354-9", "Blood pressure panel with all children optional", "Blood pressure", "血压"
    )
    elements["subject"] = {"reference": f"Patient/{person.id}"}
    if encounter:
        elements["encounter"] = {"reference": f"Encounter/{encounter}"}
    elements["effectiveDateTime"] = when
    elements["performer"] = [{"reference": f"Organization/{ORGANIZATION}" if encounter else f"Patient/{person.id}"}]
    if not encounter:
        elements["note"] = [{"text": "家庭自测 Measured at home"}]
    elements["component"] = [
        component("8480-6", "Systolic blood pressure", "Systolic", "收缩压", systolic),
        component("8462-4", "Diastolic blood pressure", "Diastolic", "舒张压", diastolic),
    ]
    return resource("Observation", id, **elements)


def smoking_status(person: Person, visit: Visit, when: str) -> Json:
    code, display, english, chinese = {
        "never": ("266919005", "Never smoked tobacco", "Never smoked", "从不吸烟"),
        "former": ("8517006", "Ex-smoker", "Former smoker", "已戒烟"),
        "current": ("449868002", "Smokes tobacco daily", "Smokes daily", "每日吸烟"),
    }[visit.smoking]
    return resource(
        "Observation",
        f"{person.id}-{visit.year}-smoking",
        status="final",
        category=_category("social-history"),
        code=bilingual(LOINC, "72166-2", "Tobacco smoking status", "Smoking status", "吸烟状况"),
        subject={"reference": f"Patient/{person.id}"},
        encounter={"reference": f"Encounter/{person.id}-{visit.year}"},
        effectiveDateTime=when,
        valueCodeableConcept=bilingual(SNOMED, code, display, english, chinese),
    )


def report(person: Person, visit: Visit, when: str, results: list[Json]) -> Json:
    return resource(
        "DiagnosticReport",
        f"{person.id}-{visit.year}-report",
        status="final",
        category=[bilingual(f"{HL7}/v2-0074", "LAB", "Laboratory", "Laboratory", "检验")],
        code=bilingual(LOINC, "11502-2", "Laboratory report", "Annual check-up report", "年度体检报告"),
        subject={"reference": f"Patient/{person.id}"},
        encounter={"reference": f"Encounter/{person.id}-{visit.year}"},
        effectiveDateTime=when,
        issued=when,
        performer=[{"reference": f"Organization/{ORGANIZATION}"}],
        result=[{"reference": f"Observation/{result['id']}"} for result in results],
    )


def condition(person: Person, name: str, visit: Visit, day: date) -> Json:
    known = table("conditions")[name]
    code = bilingual(ICD10, known["icd10"], known["display"], known["en"], known["zh"])
    code["coding"].append({"system": SNOMED, "code": known["snomed"]})
    return resource(
        "Condition",
        f"{person.id}-{name}",
        clinicalStatus={"coding": [{"system": f"{HL7}/condition-clinical", "code": "active"}]},
        verificationStatus={"coding": [{"system": f"{HL7}/condition-ver-status", "code": "confirmed"}]},
        category=[
            bilingual(
                f"{HL7}/condition-category", "problem-list-item", "Problem List Item", "Problem list item", "问题列表"
            )
        ],
        code=code,
        subject={"reference": f"Patient/{person.id}"},
        encounter={"reference": f"Encounter/{person.id}-{visit.year}"},
        onsetDateTime=day.isoformat(),
        recordedDate=day.isoformat(),
    )


def prescription(person: Person, name: str, visit: Visit, day: date) -> Json:
    medicine = table("conditions")[name]["medicine"]
    return resource(
        "MedicationRequest",
        f"{person.id}-{name}-medicine",
        status="active",
        intent="order",
        medicationCodeableConcept=bilingual(ATC, medicine["atc"], medicine["display"], medicine["en"], medicine["zh"]),
        subject={"reference": f"Patient/{person.id}"},
        encounter={"reference": f"Encounter/{person.id}-{visit.year}"},
        authoredOn=day.isoformat(),
        requester={"reference": "Practitioner/sample-practitioner-1"},
        reasonReference=[{"reference": f"Condition/{person.id}-{name}"}],
        dosageInstruction=[{"text": medicine["dose"]}],
    )


def taken(person: Person, name: str, day: date) -> Json:
    """What the patient says to take: the statement to the prescription."""
    medicine = table("conditions")[name]["medicine"]
    return resource(
        "MedicationStatement",
        f"{person.id}-{name}-taken",
        status="active",
        medicationCodeableConcept=bilingual(ATC, medicine["atc"], medicine["display"], medicine["en"], medicine["zh"]),
        subject={"reference": f"Patient/{person.id}"},
        effectivePeriod={"start": day.isoformat()},
        dateAsserted=day.isoformat(),
        informationSource={"reference": f"Patient/{person.id}"},
        basedOn=[{"reference": f"MedicationRequest/{person.id}-{name}-medicine"}],
    )


_PHQ9_ANSWERS = (
    ("LA6568-5", "Not at all"),
    ("LA6569-3", "Several days"),
    ("LA6570-1", "More than half the days"),
    ("LA6571-9", "Nearly every day"),
)
PHQ9 = "https://fhir-server.org/fhir/Questionnaire/phq-9"


def phq9(person: Person, visit: Visit, day: date, dice: Dice, expected: float) -> Json:
    """Nine answers of 0 to 3 that come out near the expected total; the last item (self-harm) is always 0."""
    items = []
    for number in range(1, 10):
        grade = 0 if number == 9 else max(0, min(3, round(expected / 8 + dice.noise(0.5))))
        code, display = _PHQ9_ANSWERS[grade]
        items.append(
            {
                "linkId": str(number),
                "answer": [{"valueCoding": {"system": LOINC, "code": code, "display": display}}],
            }
        )
    return resource(
        "QuestionnaireResponse",
        f"{person.id}-{visit.year}-phq9",
        questionnaire=PHQ9,
        status="completed",
        subject={"reference": f"Patient/{person.id}"},
        encounter={"reference": f"Encounter/{person.id}-{visit.year}"},
        authored=f"{day}T08:20:00{ZONE}",
        source={"reference": f"Patient/{person.id}"},
        item=items,
    )


def home_readings(person: Person, visit: Visit, today: date, dice: Dice) -> list[Json]:
    """Two months of self-measured blood pressure, three mornings a week, a little below the office's."""
    readings = []
    for number in range(24):
        day = today - timedelta(days=60 - number * 60 // 24)
        systolic, diastolic = visit.systolic - 4 + dice.noise(6), visit.diastolic - 2 + dice.noise(4)
        when = f"{day}T07:{dice.whole(10, 50)}:00{ZONE}"
        id = f"{person.id}-home-{number + 1:02}"
        readings.append(blood_pressure(person, id, systolic, diastolic, when, encounter=None))
    return readings
