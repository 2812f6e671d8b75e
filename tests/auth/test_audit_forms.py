"""The quick way to an AuditEvent gives what the plain way gives: bytes, entries and compartments."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fhir_server.auth.audit_event import Access, audit_event, line
from fhir_server.auth.audit_forms import Forms
from fhir_server.auth.principal import Principal
from fhir_server.http.audited import accesses, lines
from fhir_server.interactions.call import Answer, Call
from fhir_server.model.resource import dump
from fhir_server.search.index import index
from fhir_server.search.registry import Registry, standard
from fhir_server.store.protocol import Stored

BASE = "http://example.org/fhir"
TEXT = st.text(max_size=12) | st.sampled_from(["", "ann", "王小明", "Müller-Lüdenscheidt", 'a"b\\c', "x" * 300])
ID = st.sampled_from(["p1", "p2", "00000000-0000-4000-8000-000000000000", "a.b-c"])
ACCESS = st.builds(
    Access,
    when=st.integers(0, 4_000_000_000_000),
    interaction=st.sampled_from(
        ["read", "vread", "history-type", "create", "update", "delete", "patch", "search-type", "batch", "login",
         "logout", "operation", "operation:$everything"]
    ),
    status=st.sampled_from([200, 201, 204, 304, 401, 403, 404, 410, 422, 500, 503]),
    subject=TEXT,
    client=TEXT,
    user=st.sampled_from(["", "Patient/p1", "Practitioner/d1", "RelatedPerson/r1", "https://elsewhere/Patient/p9"]),
    address=st.sampled_from(["", "127.0.0.1", "::1", "2001:db8::17"]),
    request_id=st.sampled_from(["", "abc-12", "12-abc"]) | TEXT,
    resource_type=st.sampled_from(["", "Patient", "Observation", "AuditEvent"]),
    id=st.just("") | ID,
    version=st.integers(0, 3),
    patients=st.lists(ID | TEXT | st.just("p1/_history/4"), max_size=3).map(tuple),
    query=st.sampled_from(["", "Patient?name=x", "Patient?name=" + "王" * 40]) | TEXT,
    purpose=TEXT,
    token_id=TEXT,
)  # fmt: skip


def same(forms: Forms, registry: Registry, access: Access) -> None:
    resource = audit_event(access, "e1", 1_767_323_045_123, BASE)
    indexed = index(registry, resource)
    stored = forms.stored(access, "e1", 1_767_323_045_123)
    assert stored.raw == dump(resource)
    assert stored.entries == indexed.entries
    assert stored.patients == indexed.patients


@settings(max_examples=400, deadline=None)
@given(st.lists(ACCESS, min_size=1, max_size=3))
@example([Access(1, "search-type", 200, query=" ".join(f"w{n}" for n in range(9_000)))])
def test_both_ways_agree(accesses: list[Access]) -> None:
    registry = standard()
    forms = Forms(registry, BASE)
    for access in [*accesses, *accesses]:  # a form that is new, and one that is remembered
        same(forms, registry, access)


CUSTOM: dict[str, Any] = {
    "resourceType": "SearchParameter", "id": "request", "url": "http://example.org/request", "name": "request",
    "status": "active", "description": "x", "code": "request", "base": ["AuditEvent"], "type": "token",
    "expression": "AuditEvent.entity.what.identifier",
}  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_a_custom_parameter_is_not_forgotten(first: bool) -> None:
    registry = Registry.standard()
    forms = Forms(registry, BASE)
    access = Access(1, "read", 200, subject="a", client="b", request_id="r1", resource_type="Patient", id="p1")
    if not first:
        same(forms, registry, access)
    registry.add(CUSTOM)
    same(forms, registry, access)
    assert "request" in forms.stored(access, "e1", 1).entries


@settings(max_examples=200, deadline=None)
@given(TEXT, TEXT, TEXT, ID, st.lists(ID, max_size=3).map(tuple), st.sampled_from(["GET", "HEAD"]), st.booleans())
def test_a_read_is_written_as_any_access(
    subject: str, token: str, request_id: str, id: str, patients: tuple[str, ...], method: str, asked: bool
) -> None:
    principal = Principal(subject, "app", fhir_user=subject, token_id=token, purpose=token)
    call = Call(method, ("Patient", id), [("_summary", "true")] if asked else [], {})
    answer = Answer(200, stored=Stored("Patient", id, 7, 0, b"{}", patients=patients))
    scope = {"client": ("127.0.0.1", 1)} if asked or len(id) > 2 else {}
    for _ in range(2):  # a token that is new, and one that is remembered
        quick = lines(scope, call, answer, principal, request_id)
        (plain,) = accesses(scope, call, answer, principal, request_id)
        (read,) = [msgspec.json.decode(one, type=Access) for one in quick.splitlines()]
        assert abs(read.when - plain.when) < 5_000
        assert msgspec.structs.replace(read, when=plain.when) == plain
        assert line(msgspec.structs.replace(plain, when=read.when)) == quick
