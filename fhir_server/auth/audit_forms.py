"""AuditEvents by form: what all accesses of one kind by one token have in common is worked out once.

`Forms.stored` gives the very bytes and search entries that `audit_event` and `search.index` give, at a fifth of their
cost: there are as many events as requests (tests/auth/test_audit_forms.py compares the two).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhir_server.auth.audit_event import Access, audit_event, coded
from fhir_server.model.dates import instant
from fhir_server.model.resource import dump
from fhir_server.search.entries import IDENTIFIER, VERSION
from fhir_server.search.fulltext import CONTENT
from fhir_server.search.index import index
from fhir_server.search.registry import Registry
from fhir_server.search.text import MOST_WORDS, words
from fhir_server.search.types import reference, token
from fhir_server.store.audit import TYPE
from fhir_server.store.protocol import Stored

REMEMBERED = 4_096  # forms
ENTITIES = ("object", "patient", "query", "request")


@dataclass(frozen=True, slots=True)
class _Form:
    """An event without what is its own: id, times, entities."""

    before: bytes  # between the times
    after: bytes
    entries: Mapping[str, Any]
    agents: tuple[str, ...]  # patients among the agents
    words: Sequence[str]


class Forms:
    def __init__(self, registry: Registry, base: str = "") -> None:
        self._registry = registry
        self._base = base
        self._version = -1
        self._custom = False
        self._forms: dict[tuple[str | int, ...], _Form] = {}
        self._codes: dict[str, tuple[bytes, Sequence[str], Sequence[str]]] = {}
        self._instant = (0, "")

    def stored(self, access: Access, id: str, updated: int) -> Stored:
        """The access as the AuditEvent `id`, taken over at `updated` (ms)."""
        if self._version != self._registry.version:
            self._learn()
        if self._custom:  # whose expressions may look at anything
            return self._slowly(access, id, updated)
        key = (
            access.interaction, access.status, access.subject, access.client, access.user, access.address,
            access.purpose, access.token_id,
        )  # fmt: skip
        form = self._forms.get(key)
        if form is None:
            form = self._remember(key, access)
        if self._instant[0] != updated:
            self._instant = (updated, instant(updated))
        text, entries, patients = self._entities(access, form)
        entries["date"] = {"lo": access.when, "hi": access.when + 1}
        raw = b'{"resourceType":"AuditEvent","id":"%b","meta":{"versionId":"1","lastUpdated":"%b"},%b"%b",%b%b}' % (
            id.encode(), self._instant[1].encode(), form.before, instant(access.when).encode(), form.after, text,
        )  # fmt: skip
        return Stored(TYPE, id, 1, updated, raw, patients=patients, entries=entries)

    def _slowly(self, access: Access, id: str, updated: int) -> Stored:
        resource = audit_event(access, id, updated, self._base)
        indexed = index(self._registry, resource)
        return Stored(TYPE, id, 1, updated, dump(resource), patients=indexed.patients, entries=indexed.entries)

    def _entities(self, access: Access, form: _Form) -> tuple[bytes, dict[str, Any], tuple[str, ...]]:
        """What the entities add: to the bytes, to the form's entries; and the patients whose compartments hold it."""
        entries = dict(form.entries)
        texts: list[bytes] = []
        types: list[str] = []
        roles: list[str] = []
        named: list[str] = []
        versions: list[str] = []
        more: list[str] = []

        def add(kind: str, text: bytes) -> None:
            codes, kind_types, kind_roles = self._codes[kind]
            texts.append(b"{%b%b}" % (text, codes))
            types.extend(kind_types)
            roles.extend(kind_roles)

        if access.resource_type and access.id:
            what = f"{access.resource_type}/{access.id}" + (f"/_history/{access.version}" if access.version else "")
            add("object", b'"what":{"reference":%b},' % dump(what))
            local, version = reference.local(what, "")
            named.append(local)
            if version:
                versions.append(f"{local}/_history/{version}")
        for patient in access.patients:
            what = f"Patient/{patient}"
            add("patient", b'"what":{"reference":%b},' % dump(what))
            local, version = reference.local(what, "")
            named.append(local)
            if version:
                versions.append(f"{local}/_history/{version}")
        if access.query:
            query = base64.b64encode(access.query.encode()).decode()
            codes, kind_types, kind_roles = self._codes["query"]
            texts.append(b'{%b,"query":"%b"}' % (codes, query.encode()))
            types.extend(kind_types)
            roles.extend(kind_roles)
            more.append(query)
        if access.request_id:
            add("request", b'"what":{"identifier":{"value":%b}},' % dump(access.request_id))
            found = token.identifier({"value": access.request_id})
            for field in ("entity", "patient"):
                entries[field + IDENTIFIER] = [*entries.get(field + IDENTIFIER, ()), *found]
            more.append(access.request_id)
        if not texts:
            return b"", entries, form.agents
        _extend(entries, "entity", named)
        _extend(entries, "entity" + VERSION, versions)
        _extend(entries, "patient", [one for one in named if reference.type_of(one) == "Patient"])
        _extend(entries, "patient" + VERSION, [one for one in versions if reference.type_of(one) == "Patient"])
        _extend(entries, "entity-type", types)
        _extend(entries, "entity-role", roles)
        if found_words := [word for text in more if text[:1].isalpha() for word in words(text)]:
            entries[CONTENT] = list(dict.fromkeys([*form.words, *found_words]))[:MOST_WORDS]
        patients = dict.fromkeys(form.agents)
        for one in entries.get("patient", ()):
            if one.startswith("Patient/"):
                patients[one[8:]] = None
        return b',"entity":[%b]' % b",".join(texts), entries, tuple(patients)

    def _remember(self, key: tuple[str | int, ...], access: Access) -> _Form:
        bare = Access(
            0, access.interaction, access.status, access.subject, access.client, access.user, access.address,
            purpose=access.purpose, token_id=access.token_id,
        )  # fmt: skip
        event = audit_event(bare, "", 0, self._base)
        names = list(event)
        recorded = names.index("recorded")
        before = dump({name: event[name] for name in names[3:recorded]})[1:-1] + b',"recorded":'
        after = dump({name: event[name] for name in names[recorded + 1 :]})[1:-1]
        del event["recorded"]
        indexed = index(self._registry, event)
        found = _Form(before, after, indexed.entries, indexed.patients, indexed.entries.get(CONTENT, ()))
        if len(self._forms) >= REMEMBERED:
            self._forms.clear()
        self._forms[key] = found
        return found

    def _learn(self) -> None:
        self._version = self._registry.version
        self._custom = any(parameter.custom for parameter in self._registry.parameters(TYPE).values())
        self._forms.clear()
        for kind in ENTITIES:
            codes = coded(kind)
            entries = index(self._registry, {"resourceType": TYPE, "entity": [codes]}).entries
            self._codes[kind] = (dump(codes)[1:-1], entries.get("entity-type", ()), entries.get("entity-role", ()))


def _extend(entries: dict[str, Any], field: str, found: list[str]) -> None:
    if found:
        entries[field] = [*entries.get(field, ()), *found]
