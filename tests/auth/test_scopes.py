"""SMART scopes v1 and v2: https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.auth.scopes import PERMISSIONS, Scope, granted, resource_scopes, split

TABLE = yaml.safe_load((Path(__file__).parent / "scopes.yaml").read_text())


@pytest.mark.parametrize("row", TABLE["valid"], ids=lambda row: row["text"])
def test_a_scope_is_read_and_printed(row: dict[str, Any]) -> None:
    scope = Scope.parse(row["text"])
    context, resource_type, permissions, *rest = row["is"]
    parameters = tuple((name, value) for name, value in rest[0]) if rest else ()
    assert scope == Scope(context, resource_type, permissions, parameters)
    assert str(scope) == row.get("prints", row["text"])
    assert Scope.parse(str(scope)) == scope


@pytest.mark.parametrize("text", TABLE["invalid"])
def test_what_is_no_scope_grants_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"scope|query"):
        Scope.parse(text)
    assert resource_scopes([text]) == ()


@pytest.mark.parametrize("row", TABLE["granted"], ids=lambda row: " ".join(row["requested"]))
def test_what_is_granted(row: dict[str, Any]) -> None:
    assert granted(row["requested"], row["allowed"]) == row["is"]


_scopes = st.builds(
    Scope,
    st.sampled_from(["patient", "user", "system"]),
    st.sampled_from(["*", "Patient", "Observation", "Condition"]),
    st.lists(st.sampled_from(PERMISSIONS), min_size=1, unique=True).map(
        lambda letters: "".join(letter for letter in PERMISSIONS if letter in letters)
    ),
    st.lists(
        st.tuples(st.sampled_from(["category", "code", "code:in", "date"]), st.text(min_size=1, max_size=8)),
        max_size=2,
        unique=True,
    ).map(lambda pairs: tuple(sorted(pairs))),
)


@given(_scopes)
def test_print_and_parse_are_inverse(scope: Scope) -> None:
    assert Scope.parse(str(scope)) == scope


@given(_scopes, _scopes)
def test_the_meet_is_covered_by_both(one: Scope, other: Scope) -> None:
    meet = one.meet(other)
    assert meet == other.meet(one)
    if meet is not None:
        assert one.covers(meet)
        assert other.covers(meet)
    if one.covers(other):
        assert meet == other


@given(st.lists(_scopes, max_size=4), st.lists(_scopes, max_size=4))
def test_nothing_is_granted_that_is_not_allowed(requested: list[Scope], allowed: list[Scope]) -> None:
    for text in granted([str(scope) for scope in requested], [str(scope) for scope in allowed]):
        given_scope = Scope.parse(text)
        assert any(limit.covers(given_scope) for limit in allowed)
        assert any(limit.covers(given_scope) for limit in requested)


def test_a_scope_parameter_is_split_once_each() -> None:
    assert split("") == []
    assert split("openid fhirUser openid") == ["openid", "fhirUser"]
