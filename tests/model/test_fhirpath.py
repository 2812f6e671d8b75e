"""FHIRPath on our own resources: results, types, failures, surroundings, and what holds for every expression."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server.errors import BadRequest
from fhir_server.model.definitions import search_parameters, type_definition, type_names
from fhir_server.model.fhirpath import Expression, FhirPathError, Host, ast, compile, parse
from fhir_server.model.fhirpath.functions import FUNCTIONS
from fhir_server.model.resource import load

TABLE = yaml.safe_load((Path(__file__).parent / "fhirpath_cases.yaml").read_text())


def _decimals(value: Any) -> Any:
    """As the server reads JSON: numbers with a point are Decimals."""
    if isinstance(value, dict):
        return {key: _decimals(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_decimals(child) for child in value]
    return Decimal(str(value)) if isinstance(value, float) else value


RESOURCES: dict[str, dict[str, Any]] = {name: _decimals(value) for name, value in TABLE["resources"].items()}
CASES = [
    pytest.param(name, case[0], _decimals(case[1:]), id=case[0])
    for name in TABLE["cases"]
    for case in TABLE["cases"][name]
]
PATIENT, OBSERVATION, BUNDLE = RESOURCES["patient"], RESOURCES["observation"], RESOURCES["bundle"]


@pytest.mark.parametrize("typed", [True, False], ids=["root type known", "root type from the data"])
@pytest.mark.parametrize(("name", "expression", "expected"), CASES)
def test_result(name: str, expression: str, expected: list[Any], typed: bool) -> None:
    resource = RESOURCES[name]
    found = compile(expression, resource["resourceType"] if typed else None)(resource)
    assert found == expected
    # True == 1 in Python, not in FHIRPath.
    assert [isinstance(value, bool) for value in found] == [isinstance(value, bool) for value in expected]


@pytest.mark.parametrize(("expression", "message"), TABLE["errors"])
def test_failure(expression: str, message: str) -> None:
    with pytest.raises(FhirPathError) as caught:
        compile(expression, "Patient")(PATIENT)
    assert message in caught.value.diagnostics
    assert isinstance(caught.value, BadRequest)
    assert isinstance(caught.value, ValueError)


def test_a_failure_says_where() -> None:
    with pytest.raises(FhirPathError) as caught:
        compile("name\n  .frist()")
    assert caught.value.position == 8
    assert "line 2, column 4" in caught.value.diagnostics


def test_digits_of_a_literal_are_kept() -> None:
    (value,) = compile("1.500")({"resourceType": "Basic"})
    assert str(value) == "1.500"


# --- types


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Observation.status", [("code", "final")]),
        ("Observation.code.text", [("string", "Blood Pressure")]),
        ("Observation.effective", [("dateTime", "2024-05-01T08:30:00+08:00")]),
        ("Observation.subject", [("Reference", {"reference": "Patient/p1"})]),
        ("Observation.component[2]", [("Observation.component", OBSERVATION["component"][2])]),
        ("(Observation.component.value as CodeableConcept)", [("CodeableConcept", {"text": "sitting"})]),
        ("Observation.component.value.ofType(Range)", []),
        ("Observation.status = 'final'", [("System.Boolean", True)]),
        ("Observation.component.count()", [("System.Integer", 3)]),
        ("Patient.gender | Observation.status", [("code", "final")]),
        ("Resource.id", [("id", "bp")]),
    ],
)
def test_typed(expression: str, expected: list[tuple[str, Any]]) -> None:
    assert compile(expression, "Observation").typed(OBSERVATION) == expected
    assert compile(expression).typed(OBSERVATION) == expected


def test_an_element_may_be_the_focus() -> None:
    component = OBSERVATION["component"][0]
    assert compile("value.ofType(Quantity).value", "Observation.component")(component) == [141]
    assert compile("value > 140", "Quantity")(component["valueQuantity"]) == [True]
    assert compile("code = %resource.code", "Observation.component")(component, resource=OBSERVATION) == [False]
    assert compile("%rootResource.id", "Quantity")({"value": 1}, resource=OBSERVATION, rootResource=BUNDLE) == []
    assert compile("%rootResource.type", "Quantity")({"value": 1}, rootResource=BUNDLE) == ["collection"]


def test_a_primitive_may_be_the_focus() -> None:
    rule = compile("hasValue() or (children().count() > id.count())", "string")
    assert rule.holds("x") is True
    assert rule.holds(None, element={"id": "a"}) is False
    assert rule.holds(None, element={"extension": [{"url": "u", "valueCode": "c"}]}) is True
    assert (
        compile("extension('u').value", "string").holds(
            "x", element={"extension": [{"url": "u", "valueBoolean": False}]}
        )
        is False
    )


@pytest.mark.parametrize(
    ("expression", "expected"), [("active", True), ("active.not()", False), ("link", None), ("active = {}", None)]
)
def test_holds(expression: str, expected: bool | None) -> None:
    assert compile(expression, "Patient").holds(PATIENT) is expected


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("Patient.name.family", ("name", "family")),
        ("name", ("name",)),
        ("Patient", ()),
        ("name.first()", None),
        ("name[0]", None),
        ("(name | contact)", None),
    ],
)
def test_the_path_of_names_alone(expression: str, path: tuple[str, ...] | None) -> None:
    assert compile(expression, "Patient").path == path


# --- strict


@pytest.mark.parametrize(
    ("expression", "root", "message"),
    [
        ("name.given1", "Patient", "did you mean 'given'?"),
        ("Patient.nam", "Patient", "Patient has no element 'nam'; did you mean 'name'?"),
        ("Observation.valueQuantity", "Observation", "write value.ofType(Quantity)"),
        ("(value as Period).unit", "Observation", "Period has no element 'unit'"),
        ("component.where(codes.exists())", "Observation", "Observation.component has no element 'codes'"),
        ("Patient.name", "Observation", "starts at Observation, not at Patient"),
        ("children().first()", "Patient", "needs an order"),
        ("name.where(use = 'x').select(given.fam)", "Patient", "string has no element 'fam'"),
        ("name.exists(useless)", "Patient", "HumanName has no element 'useless'"),
        ("extension('x').value1", "Patient", "Extension has no element"),
    ],
)
def test_strict_refuses_what_the_type_does_not_have(expression: str, root: str, message: str) -> None:
    with pytest.raises(FhirPathError) as caught:
        compile(expression, root, strict=True)
    assert message in caught.value.diagnostics
    compile(expression, root)


@pytest.mark.parametrize(
    "expression",
    [
        "value.ofType(Quantity).value > 140",
        "component.where(code.coding.exists(code = '8480-6')).value.ofType(Quantity) > 140 'mm[Hg]'",
        "contained.name",
        "subject.resolve().birthDate",
        "extension('http://example.org/x').value.unit",
        "%previous.anything",
        "descendants().code",
        "status.extension.url",
        "repeat(component).code",
        "(value as Quantity | component.value as Quantity).unit",
        "iif(status = 'final', value, component.value).exists()",
    ],
)
def test_strict_takes_what_may_be(expression: str) -> None:
    compile(expression, "Observation", strict=True)


# --- all of R4


def test_every_expression_of_r4_compiles_and_reads_back() -> None:
    count = 0
    for parameter in search_parameters():
        for base in parameter.base:
            if parameter.expression:
                compile(parameter.expression, base)
                count += 1
    for name in type_names():
        definition = type_definition(name)
        for invariant in (*definition.invariants, *(i for e in definition.elements.values() for i in e.invariants)):
            node = parse(invariant.expression)
            assert parse(str(node)) == node
            compile(invariant.expression)
            count += 1
    assert count > 2_000


# --- surroundings


def test_the_host_resolves_what_is_elsewhere() -> None:
    asked: list[str] = []

    def resolve(reference: str) -> Any:
        asked.append(reference)
        return {"resourceType": "Patient", "id": "p1", "gender": "female"} if reference == "Patient/p1" else None

    expression = compile("subject.resolve().gender | encounter.resolve().status", "Observation")
    observation = OBSERVATION | {"encounter": {"reference": "Encounter/9"}}
    assert expression(observation, host=Host(resolve=resolve)) == ["female"]
    assert asked == ["Patient/p1", "Encounter/9"]
    assert expression(observation) == []


def test_the_clock_is_the_host_s_and_stands_still() -> None:
    times = iter([datetime(2024, 5, 1, 10, 0, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC)])
    host = Host(now=lambda: next(times))
    assert compile("now() = now()")(PATIENT, host=host) == [True]
    host = Host(now=lambda: datetime(2024, 5, 1, 10, 30, 15, 250_000, tzinfo=UTC))
    assert compile("now() | today() | timeOfDay()")(PATIENT, host=host) == [
        "2024-05-01T10:30:15.250+00:00",
        "2024-05-01",
        "10:30:15.250",
    ]
    assert compile("birthDate + 63 years <= today()")(PATIENT, host=host) == [True]


def test_terminology_profiles_units_and_traces_come_from_the_host() -> None:
    seen: list[tuple[str, list[Any]]] = []
    host = Host(
        member_of=lambda coded, url: coded == "female" and url == "http://example.org/vs",
        conforms_to=lambda resource, url: resource["id"] == "p1",
        canonical=lambda value, unit: None,
        trace=lambda name, values: seen.append((name, values)),
    )
    assert compile("gender.memberOf('http://example.org/vs')")(PATIENT, host=host) == [True]
    assert compile("conformsTo('http://example.org/profile')")(PATIENT, host=host) == [True]
    assert compile("1 'kg' > 1 'g'")(PATIENT, host=host) == []
    assert compile("name.trace('used', use).given.trace('given').count()")(PATIENT, host=host) == [4]
    assert seen == [("used", ["official", "nickname"]), ("given", ["小红", None, "Hong", "Xiao"])]


def test_variables() -> None:
    expression = compile("component.value.ofType(Quantity).value.max() - %previous.component.value.value")
    earlier = {"resourceType": "Observation", "component": [{"valueQuantity": {"value": 120}}]}
    assert expression(OBSERVATION, previous=earlier) == [21]
    assert compile("%limits.where($this > 2)")(PATIENT, limits=[1, 2, 3]) == [3]
    assert compile("%none.empty()")(PATIENT, none=None) == [True]
    assert compile("%`a b`")(PATIENT, **{"a b": Decimal("1.0")}) == [Decimal("1.0")]
    assert compile("%row.system")(PATIENT, row={"system": "x"}) == ["x"]


def test_narrative_checks() -> None:
    narrative = {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'}
    rule = compile("htmlChecks()", "xhtml")
    assert rule.holds(narrative["div"]) is True
    assert rule.holds("<div><script>x</script></div>") is False
    assert rule.holds("<div/>", host=Host(html_checks=lambda markup: False)) is False


# --- patterns that could run for ever


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a*)*b",
        "(a|a)*b",
        "(a|aa)*c",
        "(x|a?|a?b)*c",
        "([a-z]+)*=",
        "(.*)*",
        "(a?b?)*c",
        "(\\\\w+\\\\s?)*$",
        "((a+b?)+)+",
    ],
)
def test_a_repeat_of_an_ambiguous_repeat_is_refused(pattern: str) -> None:
    with pytest.raises(FhirPathError, match="too long"):
        compile(f"'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!'.matches('{pattern}')")(PATIENT)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("[A-Z]([A-Za-z0-9_]){0,254}", "Name", True),
        ("^[A-Za-z][A-Za-z0-9]*(\\\\.[a-z][A-Za-z0-9]*(\\\\[x])?)*$", "Patient.name.given", True),
        ("^(\\\\d+,)*$", "1,22,333,", True),
        ("^(a|b)+$", "abba", True),
        ("^(a|ab)*$", "aaba", True),
        ("^([0-9]{3}-)+$", "123-456-", True),
    ],
)
def test_a_repeat_that_can_be_cut_in_one_way_only_is_taken(pattern: str, text: str, expected: bool) -> None:
    assert compile(f"'{text}'.matches('{pattern}')")(PATIENT) == [expected]


def test_many_wildcards_take_short_texts_only() -> None:
    expression = compile("%text.matches('.*a.*b.*c.*d.*e')")
    assert expression(PATIENT, text="abcde") == [True]
    with pytest.raises(FhirPathError, match="too long"):
        expression(PATIENT, text="x" * 10_000)


# --- size


@pytest.mark.parametrize(
    "text", ["(" * 5_000 + "1" + ")" * 5_000, "-" * 5_000 + "1", "1 + " * 3_000 + "1", "a" * 30_000]
)
def test_expressions_of_any_size_are_answered(text: str) -> None:
    with suppress(FhirPathError):
        assert compile(text)(PATIENT) in ([3_001], [])


@pytest.mark.parametrize(
    "expression",
    [
        "descendants().select(%resource.descendants()).select(%resource.descendants()).select(%resource.descendants()).count()",
        "%many.aggregate($total.combine($total), 1).count()",
        "%many.aggregate($total & $total, 'x').length()",
        "name.repeat($this | %many.select($this & 'x')).select(%many).select(%many).select(%many).count()",
    ],
)
def test_an_expression_that_grows_without_end_is_stopped(expression: str) -> None:
    with pytest.raises(FhirPathError, match="more than"):
        compile(expression)(
            PATIENT, many=list(range(100)) if "repeat" not in expression else [str(n) for n in range(100)]
        )


def test_numbers_stay_in_64_bits() -> None:
    def run(text: str) -> list[Any]:
        return compile(text)(PATIENT, many=list(range(1, 100)))

    assert run("%many.aggregate($total * $this, 1)") == []
    assert run("2.power(62)") == [2**62]
    assert run("2.power(63) | 3.power(1000000000) | 9223372036854775807 + 1") == []
    assert run("(-1).power(999999999) | 1.power(999999998) | 0.power(0)") == [-1, 1]
    assert run("'99999999999999999999'.toInteger()") == []
    with pytest.raises(FhirPathError, match="digits"):
        run("9" * 5_000)


def test_an_expression_tells_the_variables_it_needs() -> None:
    expression = compile("%previous.value > %`a b` and %resource.id = %ucum or iif(%x, {}, %y[%z]) is Patient")
    assert expression.variables == {"previous", "a b", "x", "y", "z"}


def test_temperatures_have_their_own_zero() -> None:
    from fhir_server.terminology.units import canonical

    host = Host(canonical=canonical)
    assert compile("37 'Cel' = 310.15 'K'")(PATIENT, host=host) == [True]
    assert compile("(98.6 '[degF]').toQuantity('Cel').value.round(3)")(PATIENT, host=host) == [37]
    assert compile("37 'Cel' > 98 '[degF]'")(PATIENT, host=host) == [True]


def test_compiling_is_cached() -> None:
    assert compile("Patient.id", "Patient") is compile("Patient.id", "Patient")
    assert isinstance(compile("Patient.id", "Patient"), Expression)


# --- for every expression

names = st.sampled_from(["name", "use", "given", "value", "contains", "is", "div", "a b", "ü", "Patient"])
literals = (
    st.builds(ast.Boolean, st.booleans())
    | st.builds(ast.String, st.text(max_size=5))
    | st.builds(ast.Number, st.integers(0, 10**12) | st.decimals("0.0", "99999", places=2))
    | st.builds(ast.Quantity, st.integers(0, 99), st.sampled_from(["mg", "kg/m2", "1"]))
    | st.builds(
        lambda value, unit: ast.Quantity(value, unit, True), st.integers(0, 99), st.sampled_from(["day", "year"])
    )
    | st.builds(ast.Moment, st.sampled_from(["2024", "2024-05-01", "2024-05-01T", "2024-05-01T10:00:00Z", "T10:30"]))
    | st.just(ast.Empty())
    | st.builds(ast.External, names)
    | st.builds(ast.Special, st.sampled_from(["this", "index", "total"]))
    | st.builds(ast.Name, names)
)


def _larger(inner: st.SearchStrategy[ast.Node]) -> st.SearchStrategy[ast.Node]:
    calls = st.builds(ast.Call, names, st.lists(inner, max_size=2).map(tuple))
    return (
        calls
        | st.builds(ast.Member, inner, st.builds(ast.Name, names) | calls)
        | st.builds(ast.Indexed, inner, inner)
        | st.builds(ast.Unary, st.sampled_from("+-"), inner)
        | st.builds(ast.Binary, st.sampled_from(sorted(set(ast.PRECEDENCE) - {"is", "as"})), inner, inner)
        | st.builds(
            ast.TypeTest, st.sampled_from(["is", "as"]), inner, st.sampled_from(["code", "System.String", "FHIR.x"])
        )
    )


expressions: st.SearchStrategy[ast.Node] = st.recursive(literals, _larger, max_leaves=12)


@given(expressions)
def test_an_expression_written_reads_back_as_itself(node: ast.Node) -> None:
    assert parse(str(node)) == node


@given(st.text(max_size=30) | expressions.map(str))
def test_any_text_gives_a_result_or_a_failure_of_its_own(text: str) -> None:
    try:
        found = compile(text)(PATIENT)
    except FhirPathError:
        return
    assert isinstance(found, list)


targets = st.sampled_from(
    [
        "{}",
        "true",
        "'abc'",
        "''",
        "-1",
        "0",
        "99999999999",
        "1.5",
        "0.0",
        "4 'mg'",
        "3 days",
        "@2024",
        "@2024-05-01T10:00:00Z",
        "@T10:30",
        "name",
        "name.given",
        "birthDate",
        "gender",
        "active",
        "extension.value",
        "(1 | 2)",
        "%resource",
        "$this",
        "meta",
        "managingOrganization",
        "'('",
        "'1 week'",
        "name.use",
        "contained",
        "$index",
        "$total",
        "Patient",
    ]
)


@settings(max_examples=400, deadline=None)
@given(targets, st.sampled_from(sorted(FUNCTIONS)), st.lists(targets, max_size=2))
def test_any_function_on_anything_gives_a_result_or_a_failure_of_its_own(
    target: str, name: str, given: list[str]
) -> None:
    try:
        found = compile(f"{target}.{name}({', '.join(given)})", "Patient")(PATIENT)
    except FhirPathError:
        return
    assert isinstance(found, list)


@settings(max_examples=400, deadline=None)
@given(targets, st.sampled_from(sorted(ast.PRECEDENCE)), targets)
def test_any_operator_between_anything_gives_a_result_or_a_failure_of_its_own(
    left: str, operator: str, right: str
) -> None:
    try:
        found = compile(f"{left} {operator} {right}", "Patient")(PATIENT)
    except FhirPathError:
        return
    assert isinstance(found, list)


@given(expressions.map(str))
def test_knowing_the_root_type_changes_no_result(text: str) -> None:
    def run(root: str | None) -> list[Any] | None:
        try:
            return compile(text, root)(PATIENT, host=Host(now=lambda: datetime(2024, 5, 1, tzinfo=UTC)))
        except FhirPathError:
            return None

    assert run(None) == run("Patient")


@given(st.lists(st.integers(-9, 9), max_size=6), st.integers(-2, 8))
def test_a_collection_is_its_head_and_tail(numbers: list[int], count: int) -> None:
    def run(text: str) -> list[Any]:
        return compile(text)(PATIENT, numbers=numbers, count=count)

    assert run("%numbers.take(%count).combine(%numbers.skip(%count))") == numbers
    assert run("%numbers.sort()") == sorted(numbers)
    assert run("%numbers.distinct()") == list(dict.fromkeys(numbers))
    assert run("%numbers.where($this > 0).count() + %numbers.where(($this > 0).not()).count()") == [len(numbers)]
    assert run("%numbers.sum()") == ([sum(numbers)] if numbers else [])


@given(st.binary(max_size=20))
def test_encoding_comes_back(raw: bytes) -> None:
    text = raw.decode("latin-1")
    for form in ("base64", "urlbase64", "hex"):
        assert compile(f"%text.encode('{form}').decode('{form}')")(PATIENT, text=text) == [text]


# --- an independent implementation


@pytest.mark.parametrize(
    "expression",
    [
        "Patient.telecom.count()",
        "Patient.name.where(use = 'nickname').given",
        "Patient.telecom.where(rank > 1).value",
        "Patient.name.use | Patient.gender",
        "Patient.name.exists(family.exists())",
        "Patient.telecom.rank.aggregate($this + $total, 0)",
        "Patient.birthDate < @2000-01-01",
        "@2024-01-31 + 1 month = @2024-02-29",
        "iif(Patient.active, 'a', 'b')",
        "Patient.telecom.value.first().substring(0, 3)",
        "(1 | 2 | 3).skip(1).take(1)",
        "'abc'.replace('b', 'x').upper()",
        "7 div 2 + 7 mod 2",
        "{} or true",
        "Patient.name.select(use).first().startsWith('off')",
    ],
)
def test_another_implementation_agrees(expression: str) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fhirpathpy

    theirs = fhirpathpy.evaluate(load(_json(PATIENT)), expression, {})
    assert compile(expression, "Patient")(PATIENT) == [_exact(value) for value in theirs]


def _json(resource: dict[str, Any]) -> bytes:
    from fhir_server.model.resource import dump

    return dump(resource)


def _exact(value: Any) -> Any:
    return Decimal(str(value)) if isinstance(value, float) else value
