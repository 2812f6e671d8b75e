"""The short way for conditions says what FHIRPath says, on every condition of the content and on made-up ones."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server.automation import quick
from fhir_server.automation.content import definitions
from fhir_server.automation.formulas import Formula
from fhir_server.automation.rulebook import Rulebook
from fhir_server.errors import FhirError
from fhir_server.model import fhirpath

MADE_UP = [
    "%a > 1 and %b = 'x'", "%a != 1", "%a.not()", "(%a = true).not()", "'x' in %c", "%a in %c", "%c.count() = 2", "%c[1] = 'y'",
    "iif(%a > 1, 2, 3) + 1 > 3", "%a = true or %b.empty()", "%a = %b", "%a <= %b", "%c.exists() and %a >= 1.0",
]  # fmt: skip
CONTENT = sorted({f.text for rule in Rulebook(definitions()).rules for a in rule.actions() for f in a.conditions})

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([Decimal("1.0"), Decimal("1.00"), Decimal("139.9"), 140, 180]),
    st.sampled_from(["x", "y", "male", "high", ""]),
)  # fmt: skip
values = st.one_of(scalars, st.lists(scalars.filter(lambda one: one is not None), max_size=3))


def outcome(call: Any) -> Any:
    try:
        return call()
    except FhirError:
        return "refused"


@settings(max_examples=400, deadline=None)
@given(text=st.sampled_from([*MADE_UP, *CONTENT]), data=st.data())
def test_it_agrees_with_fhirpath(text: str, data: st.DataObject) -> None:
    formula = Formula(text)
    known = {name: data.draw(values, label=name) for name in formula.names}
    decide = quick.condition(fhirpath.parse(text))
    if decide is None:
        return
    try:
        short = decide(known.get) is True
    except quick.Unsure:
        return
    general = outcome(lambda: formula.holds_by_fhirpath(None, known.get))
    # A side that is never looked at may be one that FHIRPath refuses.
    assert general in (short, "refused")


def test_most_conditions_of_the_content_go_the_short_way() -> None:
    known = [text for text in CONTENT if quick.condition(fhirpath.parse(text)) is not None]
    assert len(known) / len(CONTENT) > 0.9


@pytest.mark.parametrize("text", ["%a.where($this > 1).exists()", "%a.b = 1", "today() > %a"])
def test_what_it_does_not_understand_is_left_alone(text: str) -> None:
    assert quick.condition(fhirpath.parse(text)) is None
