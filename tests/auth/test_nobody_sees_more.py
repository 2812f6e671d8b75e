"""Random data, random tokens, random requests: no answer holds an id that is not the token's to see.

Three oracles: (1) no id of an invisible resource occurs anywhere in an answer, except where a visible resource itself says
it; (2) a search finds exactly what the same search, done in memory on the visible resources alone, finds, and counts it;
(3) a request for what is invisible is answered exactly like one for what never existed.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from fhir_server.auth.chain import chain_key, verify
from fhir_server.model.resource import load
from fhir_server.operations.bulk import job
from fhir_server.search.index import Indexed, index
from fhir_server.search.match import Candidate, World, matches
from fhir_server.search.parse import parse
from tests.auth.conftest import Secured, secured_application
from tests.auth.records import Records, add_services, change_of_mind, make_world
from tests.auth.world import (
    CATEGORIES,
    LABELS,
    NOBODYS,
    RANK,
    TYPES,
    Maker,
    Token,
    Version,
)  # fmt: skip
from tests.export.asking import ASYNC, finished, keys
from tests.export.asking import read as read_files

pytestmark = pytest.mark.anyio

CASES = int(os.environ.get("FHIR_POLICY_CASES", "2000"))
SEED = int(os.environ.get("FHIR_POLICY_SEED", "0")) or random.randrange(1, 2**32)
WORLDS = 4
ID = re.compile(r"(?<![0-9a-z-])[a-z]{3}-[0-9a-f]{12}")  # not the end of a UUID
AUDITED = '"resourceType":"AuditEvent"'


@pytest.fixture
async def world(mongo_url: str, tmp_path_factory: Any, anyio_backend: Any) -> AsyncIterator[Secured]:
    async with secured_application(mongo_url, tmp_path_factory.mktemp("world")) as secured:
        await add_services(secured)
        yield secured


def without_audit(text: str) -> str:
    """A bundle without its AuditEvents, for one who may see them: they name what a label hides."""
    if AUDITED not in text:
        return text
    bundle = json.loads(text)
    if bundle["resourceType"] == "AuditEvent":
        return ""
    for entry in bundle.get("entry", ()):
        inner = entry.get("resource", {})
        if inner.get("resourceType") == "Bundle":
            entry["resource"] = json.loads(without_audit(json.dumps(inner, separators=(",", ":"))))
    bundle["entry"] = [e for e in bundle.get("entry", ()) if e.get("resource", {}).get("resourceType") != "AuditEvent"]
    return json.dumps(bundle)


@dataclass
class Case:
    """One token's requests, judged."""

    records: Records
    token: Token
    headers: dict[str, str]
    chance: random.Random
    said: Counter[str]

    # Oracle 1

    def sees(self, version: Version, letter: str) -> bool:
        """As it was, and as its resource is now: a label or a correction counts for what was before it."""
        now = next(one for one in reversed(self.records.versions) if one.key == version.key)
        return self.token.sees(version, letter) and self.token.sees(now, letter)

    def allowed(self, letters: str) -> set[str]:
        """Ids that may be said: of what is visible, and what that itself refers to."""
        texts: list[str] = []
        for version in self.records.versions:
            if any(self.sees(version, letter) for letter in letters):
                texts.append(version.key)
                if not version.deleted:
                    texts.append(json.dumps(version.resource))
        return set(ID.findall(" ".join(texts)))

    def check(self, answer: httpx.Response, letters: str, asked: str) -> None:
        if self.token.audits:
            said = without_audit(answer.text)
        else:
            assert AUDITED not in answer.text, (asked, str(self.token))
            said = answer.text
        text = said + " " + " ".join(value for name, value in answer.headers.items() if name != "authorization")
        leaked = set(ID.findall(text)) - self.allowed(letters) - set(ID.findall(asked))
        around = [text[max(0, text.index(id) - 300) : text.index(id) + 60] for id in sorted(leaked)]
        assert not leaked, "\n".join([asked, str(answer.status_code), str(self.token), *around])
        assert answer.status_code < 500, (asked, answer.text)
        self.said[f"{answer.status_code}"] += 1

    async def get(self, url: str, letters: str) -> httpx.Response:
        answer = await self.records.secured.http.get(url, headers=self.headers)
        self.check(answer, letters, url)
        return answer

    # Oracle 2

    async def search(self, kind: str, pairs: list[tuple[str, str]], path: str = "") -> None:
        url = f"{path or kind}?{urlencode(pairs)}"
        answer = await self.get(url, "s")
        if answer.status_code != 200:
            assert answer.status_code in (400, 403), (url, answer.text)
            return
        found: list[str] = []
        total = answer.json().get("total")
        for _ in range(60):
            bundle = answer.json()
            for entry in bundle.get("entry", ()):
                if entry["search"]["mode"] == "outcome":
                    continue
                key = f"{entry['resource']['resourceType']}/{entry['resource']['id']}"
                if key.startswith("AuditEvent/") and self.token.audits:
                    assert entry["search"]["mode"] == "include"
                    continue
                version = next((v for v in self.records.current() if v.key == key), None)
                assert version is not None and self.token.sees(version, "s"), (url, key, self.token)
                if entry["search"]["mode"] == "match":
                    found.append(key)
            after = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), None)
            if after is None:
                break
            answer = await self.get(after, "s")
            assert answer.status_code == 200, answer.text
        expected = self.expected(kind, pairs, path)
        if ("_summary", "count") not in pairs:
            assert Counter(found) == Counter(expected), (url, self.token)
        if total is not None:
            assert total == len(expected), (url, total, expected, self.token)
        self.said["found" if expected else "found nothing"] += 1

    def expected(self, kind: str, pairs: list[tuple[str, str]], path: str) -> list[str]:
        """The search as a loop over what is visible; its chains and `_has` see nothing else either."""
        server = self.records.secured.server
        candidates: dict[str, list[Candidate]] = {}
        for version in self.records.current():
            if not version.deleted and self.token.sees(version, "s"):
                entries = index(server.registry, version.resource, base="http://test/fhir").entries
                candidates.setdefault(version.resource_type, []).append(
                    Candidate(version.resource_type, version.id, Indexed(entries, tuple(version.patients)))
                )
        within = tuple(path.split("/")[:2]) if path.count("/") == 2 else None
        query = parse(kind, pairs, registry=server.registry, compartment=within, base="http://test/fhir")  # type: ignore[arg-type]
        seen = World(candidates)
        return [f"{kind}/{one.id}" for one in candidates.get(kind, ()) if matches(query, one, seen)]

    # Oracle 3

    async def like_never_there(self, method: str, url: str, id: str, letters: str, **body: Any) -> None:
        """The same request for an id that nobody ever had."""
        never = f"{id[:3]}-{self.chance.getrandbits(48):012x}"
        http = self.records.secured.http
        answers = []
        for one in (id, never):
            content = json.loads(json.dumps(body).replace(id, one))
            answer = await http.request(
                method, url.replace(id, one), headers={**self.headers, **content.pop("headers", {})}, **content
            )
            self.check(answer, letters, f"{method} {url} {json.dumps(body)}".replace(id, f"{one} {id}"))
            fields = {n: v for n, v in answer.headers.items() if n not in ("x-request-id", "date")}
            text = re.sub(r"[0-9a-f]{10,}-?\d*", "#", answer.text.replace(one, "ID"))
            answers.append((answer.status_code, text, {n: v.replace(one, "ID") for n, v in fields.items()}))
        assert answers[0] == answers[1], (method, url, self.token)
        self.said["like never there"] += 1

    # The requests

    async def read(self) -> None:
        visible = [version for version in self.records.current() if self.token.sees(version, "r")]
        version = self.chance.choice(visible if visible and self.chance.random() < 0.5 else self.records.current())
        if not self.token.sees(version, "r"):
            await self.like_never_there("GET", version.key, version.id, "r")
            return
        answer = await self.get(version.key, "r")
        assert answer.status_code == (410 if version.deleted else 200)
        self.said["read"] += 1

    async def vread(self) -> None:
        version = self.chance.choice(self.records.versions)
        url = f"{version.key}/_history/{version.number}"
        if not self.sees(version, "r"):
            await self.like_never_there("GET", url, version.id, "r")
            return
        answer = await self.get(url, "r")
        assert answer.status_code == (410 if version.deleted else 200)

    async def history(self) -> None:
        version = self.chance.choice(self.records.versions)
        of_it = [one for one in self.records.versions if one.key == version.key]
        if not any(self.sees(one, "r") for one in of_it):
            await self.like_never_there("GET", f"{version.key}/_history", version.id, "r")
            return
        answer = await self.get(f"{version.key}/_history?_count=50", "r")
        shown = [int(entry["response"]["etag"][3:-1]) for entry in answer.json().get("entry", ())]
        assert shown == sorted((one.number for one in of_it if self.sees(one, "r")), reverse=True)

    async def history_of_many(self) -> None:
        kind = self.chance.choice([*TYPES, ""])
        count = self.chance.choice([1, 3, 50])
        url: str | None = f"{kind + '/' if kind else ''}_history?_count={count}"
        shown: list[tuple[str, int]] = []
        for _ in range(400):
            assert url is not None
            answer = await self.get(url, "s")
            if answer.status_code != 200:
                assert answer.status_code == 403
                return
            for entry in answer.json().get("entry", ()):
                key = "/".join(entry["fullUrl"].split("/")[-2:])
                shown.append((key, int(entry["response"]["etag"][3:-1])))
            url = next((link["url"] for link in answer.json()["link"] if link["relation"] == "next"), None)
            if url is None:
                break
        mine = [one for one in self.records.versions if kind in ("", one.resource_type) and self.sees(one, "s")]
        mine = [one for one in mine if one.resource_type != "AuditEvent"]
        if kind:
            assert sorted(shown) == sorted((one.key, one.number) for one in mine), (url, self.token)

    async def search_somehow(self) -> None:
        kind = self.chance.choice([*TYPES, "Observation", "Observation", "Patient"])
        pairs = self.criteria(kind)
        controls: list[tuple[str, str]] = [
            ("_total", "accurate"), ("_count", self.chance.choice(["1", "2", "50"])), ("_summary", "count"),
            ("_sort", self.chance.choice(["_id", "-_lastUpdated", "_lastUpdated"])),
        ]  # fmt: skip
        chosen = self.chance.sample(controls, self.chance.randint(0, 3))
        await self.search(kind, [*pairs, *chosen, *self.includes(kind)])

    def criteria(self, kind: str) -> list[tuple[str, str]]:
        """Searches that name others' ids, chain through them, or ask who refers to them."""
        chance, maker = self.chance, self.records.maker
        one, patient = chance.choice(self.records.current()), chance.choice(maker.patients)
        family, practitioner = chance.choice(["Lee", "Chen", "Diaz"]), chance.choice(maker.practitioners)
        of_type = [v.id for v in self.records.current() if v.resource_type == kind]
        options: list[list[tuple[str, str]]] = [[], [("_id", ",".join(chance.sample(of_type, min(2, len(of_type)))))]]
        if kind in ("Observation", "Condition", "Encounter", "MedicationRequest", "DocumentReference", "List"):
            options += [
                [("subject", f"Patient/{patient}")],
                [("subject:Patient.family", family)],
                [("patient.family", family)],
                [("patient:not", patient)] if chance.random() < 0 else [("patient", patient)],
            ]
        if kind == "Observation":
            options += [
                [("code", "http://loinc.org|8867-4")],
                [("code:not", "http://loinc.org|8867-4")],
                [("category", chance.choice(CATEGORIES))],
                [("has-member", f"Observation/{one.id}")],
                [("encounter.subject:Patient.family", family)],
                [("has-member.code", "2339-0")],
                [("_security", f"{LABELS}|{chance.choice('RV')}")],
                [("_security:not", f"{LABELS}|N")],
                [("performer:missing", chance.choice(["true", "false"]))],
            ]
        if kind == "Patient":
            options += [
                [("family", family)],
                [("_has:Observation:subject:code", "8867-4")],
                [("_has:Observation:patient:_has:Provenance:target:agent", f"Practitioner/{practitioner}")],
                [("_has:Condition:patient:_id", one.id)],
                [("link", f"Patient/{patient}")],
                [("general-practitioner.family", chance.choice(["Good", "Strange"]))],
            ]  # fmt: skip
        if kind in ("Practitioner", "Organization"):
            options += [[("_has:Patient:general-practitioner:family", family)], [("name", "Good")]]
        if kind == "Provenance":
            options += [[("target", one.key)], [("agent.family", "Good")]]
        if kind == "Encounter":
            options += [[("_has:Observation:encounter:code", "8867-4")], [("part-of.subject:Patient.family", family)]]
        if kind == "List":
            options += [[("item", one.key)]]
        return chance.choice(options)

    def includes(self, kind: str) -> list[tuple[str, str]]:
        options = {
            "Observation": ["Observation:has-member", "Observation:encounter", "Observation:subject", "Observation:*"],
            "Patient": ["Patient:link", "Patient:general-practitioner"],
            "List": ["List:item"],
            "Provenance": ["Provenance:target", "Provenance:agent"],
            "Condition": ["Condition:encounter", "Condition:subject"],
            "DocumentReference": ["DocumentReference:related"],
        }
        found: list[tuple[str, str]] = []
        if kind in options and self.chance.random() < 0.5:
            iterate = self.chance.choice(["", "", ":iterate"])
            found.append((f"_include{iterate}", self.chance.choice(options[kind])))
        if kind in ("Patient", "Encounter", "Observation") and self.chance.random() < 0.4:
            back = {
                "Patient": ["Observation:subject", "Patient:link", "List:subject", "Group:member", "Provenance:target"],
                "Encounter": ["Observation:encounter", "Encounter:part-of"],
                "Observation": ["Observation:has-member", "Provenance:target", "List:item"],
            }
            found.append(("_revinclude", self.chance.choice(back[kind])))
        return found

    async def search_everything(self) -> None:
        url = self.chance.choice(
            ["?_count=500", "?_type=Patient,Observation&_count=500", "?_lastUpdated=gt2000-01-01&_count=500"]
        )
        answer = await self.get(url, "s")
        if answer.status_code != 200:
            return
        keys = [
            f"{e['resource']['resourceType']}/{e['resource']['id']}"
            for e in answer.json().get("entry", ())
            if e["search"]["mode"] == "match"
        ]
        for _ in range(20):  # an administrator's is full of AuditEvents
            after = next((link["url"] for link in answer.json()["link"] if link["relation"] == "next"), None)
            if after is None or not self.token.audits:
                break
            answer = await self.get(after, "s")
            keys += [
                f"{e['resource']['resourceType']}/{e['resource']['id']}"
                for e in answer.json().get("entry", ())
                if e["search"]["mode"] == "match"
            ]
        mine = {v.key for v in self.records.current() if not v.deleted and self.token.sees(v, "s")}
        if "_type" in url:
            assert set(keys) <= mine
        else:
            assert {key for key in keys if not key.startswith("AuditEvent/")} == mine, (url, self.token)

    async def export(self) -> None:
        """Every line of every file, and the manifest: what is visible and may be both read and searched, all of it."""
        url = self.chance.choice(["$export", "$export", "Patient/$export"])
        http, headers = self.records.secured.http, {**self.headers, **ASYNC}
        answer = await http.get(url, headers=headers)
        self.check(answer, "s", url)
        if answer.status_code != 202:
            assert answer.status_code == 403, (answer.text, self.token)
            return
        location = answer.headers["content-location"]
        manifest = await finished(http, location, self.headers)
        if not self.token.audits:
            assert "AuditEvent" not in json.dumps(manifest), self.token
        manifest["output"] = [item for item in manifest["output"] if item["type"] != "AuditEvent"]
        resources = await read_files(http, manifest, self.headers)
        await http.delete(location, headers=self.headers)
        expected = [
            version.key
            for version in self.records.current()
            if not version.deleted and self.token.sees(version, "s") and self.readable(version.resource_type)
            if url == "$export" or version.patients
        ]
        assert keys(resources) == sorted(expected), (url, self.token)
        self.said["exported" if resources else "exported nothing"] += 1

    def readable(self, kind: str) -> bool:
        """Some scope says `r` for it, by a way that leads somewhere."""
        for context, of, letters, _ in self.token.scopes:
            if of not in ("*", kind) or "r" not in letters or (context == "patient" and not self.token.patient):
                continue
            if kind != "Group" or (context != "patient" and self.token.reach is None):  # it names several
                return True
        return False

    async def compartment(self) -> None:
        patient = self.chance.choice(self.records.maker.patients)
        kind = self.chance.choice(["Observation", "Condition", "Encounter", "Provenance", "List", "Task"])
        await self.search(kind, [("_total", "accurate")], f"Patient/{patient}/{kind}")

    async def post_search(self) -> None:
        kind = self.chance.choice(TYPES)
        form = urlencode(self.criteria(kind))
        answer = await self.records.secured.http.post(
            f"{kind}/_search", content=form,
            headers={**self.headers, "Content-Type": "application/x-www-form-urlencoded"},
        )  # fmt: skip
        self.check(answer, "s", f"{kind}?{form}")

    async def write_to_the_invisible(self) -> None:
        """Put, patch, delete on what is not there for this token; and its content must stay as it is."""
        version = self.chance.choice(self.records.current())
        if any(self.token.sees(version, letter) for letter in "ud"):
            return
        patient = self.token.patient or self.chance.choice(self.records.maker.patients)
        body = {"resourceType": version.resource_type, "id": version.id, "subject": {"reference": f"Patient/{patient}"}}
        if version.resource_type == "Patient":
            body.pop("subject")
        match self.chance.choice(["PUT", "PATCH", "DELETE", "PUT if", "PATCH if"]):
            case "PUT" if self.limited(version.resource_type):
                await self.like_never_there("PUT", version.key, version.id, "crud", json=body)
            case "PUT if":
                headers = {"If-Match": f'W/"{version.number}"'}
                await self.like_never_there("PUT", version.key, version.id, "crud", json=body, headers=headers)
            case "PATCH" | "PATCH if" as method:
                headers = {"Content-Type": "application/json-patch+json"}
                if method == "PATCH if":
                    headers["If-Match"] = f'W/"{version.number}"'
                patch = json.dumps([{"op": "replace", "path": "/status", "value": "amended"}])
                await self.like_never_there("PATCH", version.key, version.id, "crud", content=patch, headers=headers)
            case "DELETE":
                await self.like_never_there("DELETE", version.key, version.id, "crud")

    def limited(self, kind: str) -> bool:
        """One who sees every patient may choose ids, and learns which are taken (labels and objections are no limit here)."""
        return self.token.reach is not None or all(scope[0] == "patient" for scope in self.token.scopes)

    async def conditional(self) -> None:
        """Criteria that only an invisible resource meets must find nothing."""
        version = self.chance.choice(self.records.current())
        if version.deleted or any(self.token.sees(version, letter) for letter in "crudsv"):
            return
        headers = {"If-None-Exist": f"_id={version.id}"}
        method = self.chance.choice(["DELETE", "PATCH", "PUT", "POST"])
        content: dict[str, Any] = {}
        url = f"{version.resource_type}?_id={version.id}"
        if method == "PATCH":
            content = {
                "content": json.dumps([{"op": "remove", "path": "/status"}]),
                "headers": {"Content-Type": "application/json-patch+json"},
            }
        elif method in ("PUT", "POST"):
            # not valid, so that nothing is ever created; what is asked is whether there is a match
            content = {
                "json": {"resourceType": version.resource_type, "gender": 1, "status": 1, "type": 1, "recorded": 1}
            }
            if method == "POST":
                url, content["headers"] = version.resource_type, headers
        await self.like_never_there(method, url, version.id, "s", **content)

    async def bundle(self) -> None:
        kind = self.chance.choice(["batch", "transaction"])
        versions = self.chance.sample(self.records.current(), 4)
        entries = [{"request": {"method": "GET", "url": version.key}} for version in versions[:2]]
        one = self.chance.choice(TYPES)
        entries.append({"request": {"method": "GET", "url": f"{one}?{urlencode(self.criteria(one))}"}})
        hidden = versions[3]
        if not any(self.token.sees(hidden, letter) for letter in "ruds"):
            entries.append({"request": {"method": "DELETE", "url": hidden.key}})
        body = {"resourceType": "Bundle", "type": kind, "entry": entries}
        answer = await self.records.secured.http.post("", json=body, headers=self.headers)
        self.check(answer, "rs", json.dumps(body))

    async def reference_by_criteria(self) -> None:
        """A conditional reference to an invisible patient resolves to nothing."""
        patient = self.chance.choice([v for v in self.records.current() if v.resource_type == "Patient"])
        if self.token.sees(patient, "s"):
            return
        resource = {
            "resourceType": "Basic",
            "code": {"text": "x"},
            "subject": {"reference": f"Patient?_id={patient.id}"},
            "created": 1,
        }
        body = {"resourceType": "Bundle", "type": "transaction", "entry": [
            {"resource": resource, "request": {"method": "POST", "url": "Basic"}}]}  # fmt: skip
        await self.like_never_there("POST", "", patient.id, "s", json=body)

    async def operation(self) -> None:
        version = self.chance.choice(self.records.current())
        name = self.chance.choice(["$meta", "$validate", "$everything", "$assess-risk"])
        if not self.token.sees(version, "r"):
            await self.like_never_there("GET", f"{version.key}/{name}", version.id, "r")
            return
        await self.get(f"{self.chance.choice([version.key, version.resource_type, ''])}/{name}".lstrip("/"), "rs")

    async def into_anothers_record(self) -> None:
        """Nobody writes where they may not write: the resource would show up in another's compartment."""
        maker = self.records.maker
        for patient in maker.patients:
            would = Version("Observation", "new", 1, {}, False, frozenset({patient}))
            if any(self.token.sees(would, letter) for letter in "cu"):
                continue
            subject = {"reference": f"Patient/{patient}"}
            body = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": subject}
            if any(scope[3] for scope in self.token.scopes):
                continue
            answer = await self.records.secured.http.post("Observation", json=body, headers=self.headers)
            assert answer.status_code == 403, (answer.text, self.token)
            own = [self.token.patient] if self.token.patient else []
            for mine in own:
                both = {
                    **body,
                    "subject": {"reference": f"Patient/{mine}"},
                    "performer": [{"reference": f"Patient/{patient}"}],
                }
                answer = await self.records.secured.http.post("Observation", json=both, headers=self.headers)
                assert answer.status_code == 403, (answer.text, self.token)
            return

    async def audit(self) -> None:
        """AuditEvents name everybody's records: none, and nothing that follows from one, for who is no administrator."""
        chance, patient = self.chance, self.chance.choice(self.records.maker.patients)
        events = self.records.secured.server.store.database["AuditEvent"]
        found = await events.find({"p": patient}, {"_id": 1}, limit=40).to_list()
        id = str(chance.choice(found)["_id"]) if found else "none"
        if chance.random() < 0.3 and not self.token.audits:
            # As through a chain: the AuditEvents of this patient's records are not there to be referred from.
            await self.search("Patient", [("_has:AuditEvent:patient:action", "R"), ("_total", "accurate")])
            return
        url = chance.choice(
            [
                f"AuditEvent/{id}", f"AuditEvent/{id}/_history", f"AuditEvent/{id}/_history/1", "AuditEvent",
                f"AuditEvent/{id}/$meta", "AuditEvent/_history", "AuditEvent?_summary=count", f"AuditEvent?_id={id}",
                f"AuditEvent?patient=Patient/{patient}&_total=accurate", "AuditEvent?_include=AuditEvent:entity",
                f"Patient/{patient}/AuditEvent?_summary=count", f"Patient/{patient}/*?_count=500",
                f"Patient/{patient}/$everything?_count=500", "?_type=AuditEvent", "?_type=AuditEvent,Patient&_count=99",
                "_history?_count=200", f"Patient?_id={patient}&_revinclude=AuditEvent:entity&_count=200",
                f"Patient?_id={patient}&_revinclude=*&_count=200",
                "Observation?_revinclude=AuditEvent:entity&_revinclude:iterate=AuditEvent:patient",
                "Practitioner?_revinclude=AuditEvent:agent", "Patient?_has:AuditEvent:entity:outcome=0",
                f"List?item=AuditEvent/{id}&_include=List:item", f"AuditEvent?_id={id}&_explain=true",
            ]
        )  # fmt: skip
        answer = await self.get(url, "rs")
        if not self.token.audits:
            assert not (url.startswith("AuditEvent") and answer.status_code == 200), (url, answer.text, self.token)
            assert id not in answer.text.replace(f"/{id}", "", 1) or id in url, (url, self.token)
            self.said["no audit"] += 1

    async def broken_glass(self) -> None:
        """A practitioner who says why sees what consents, labels and care teams hide, within the same scopes."""
        if self.token.role != "practitioner":
            return
        self.headers = {**self.headers, "X-Break-Glass": "does not breathe"}
        self.token = replace(self.token, reach=None, excluded=frozenset(), clearance="V")
        await getattr(self, self.chance.choice(["read", "vread", "search_somehow", "compartment", "history"]))()


KINDS = (
    ("read", 3), ("vread", 2), ("history", 2), ("history_of_many", 1), ("search_somehow", 10), ("search_everything", 1),
    ("compartment", 2), ("post_search", 1), ("write_to_the_invisible", 3), ("conditional", 2), ("bundle", 2),
    ("reference_by_criteria", 1), ("operation", 2), ("into_anothers_record", 1),
    ("audit", 4), ("broken_glass", 1), ("export", 4),
)  # fmt: skip


@pytest.mark.parametrize("number", range(WORLDS))
async def test_no_answer_says_what_is_not_ones_own(
    world: Secured, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SETTLE", 0.0)
    chance = random.Random(SEED + number)
    said: Counter[str] = Counter()
    records = await make_world(world, chance)
    before = await snapshot(records)
    names = [name for name, weight in KINDS for _ in range(weight)]
    done: Counter[str] = Counter()
    for turn in range(CASES // WORLDS):
        token, headers = records.tokens[turn % len(records.tokens)]
        name = chance.choice(names)
        case = Case(records, token, headers, chance, said)
        try:
            await getattr(case, name)()
        except AssertionError as error:
            raise AssertionError(f"FHIR_POLICY_SEED={SEED} world {number}, request {turn} ({name}): {error}") from error
        done[name] += 1
        if turn % 40 == 39:
            assert await snapshot(records) == before, "what was not visible was changed"
            await change_of_mind(records, chance)
            before = await snapshot(records)
    assert await snapshot(records) == before, "what was not visible was changed"
    assert said["found"] and said["like never there"] and said["no audit"], said
    auditor = next(headers for token, headers in records.tokens if token.audits)
    assert AUDITED in (await world.http.get("AuditEvent?_count=1", headers=auditor)).text
    audit = world.server.rooms["audit"]
    assert await audit.flush()
    verdict = await verify(audit._log, chain_key(world.authority.secret))
    assert verdict.problem == ""
    assert verdict.checked > CASES // WORLDS
    if CASES >= 1000:  # the test itself must have looked at something
        assert set(done) == {name for name, _ in KINDS}
        assert (
            min(said[kind] for kind in ("200", "403", "404", "found", "found nothing", "read", "like never there")) > 5
        ), said
        assert said["exported"], said


async def snapshot(records: Records) -> dict[str, tuple[int, bytes]]:
    keys = [(v.resource_type, v.id) for v in records.current()]
    found = await records.secured.server.store.read_many(keys)
    return {"/".join(key): (stored.version, stored.raw) for key, stored in found.items()}


def test_the_oracle_and_the_world_are_not_empty() -> None:
    maker = Maker(random.Random(1), patients=["pat-000000000001"], practitioners=["pra-000000000001"])
    maker.keys = ["Patient/pat-000000000001", "Practitioner/pra-000000000001"]
    for kind in TYPES:
        resource = maker.resource(kind, maker.id(kind))
        assert load(json.dumps(resource).encode())["resourceType"] == kind
    mine = Version("Observation", "x", 1, {}, False, frozenset({"p"}))
    assert Token((("patient", "*", "rs", ""),), "patient", "u", "p", frozenset({"p"})).sees(mine, "r")
    assert not Token((("patient", "*", "rs", ""),), "patient", "u", "q", frozenset({"q"})).sees(mine, "r")
    assert not Token((("patient", "*", "s", ""),), "patient", "u", "p", frozenset({"p"})).sees(mine, "r")
    assert RANK["V"] > RANK["N"]
    assert "Organization" in NOBODYS
    assert quote("a|b") == "a%7Cb"
