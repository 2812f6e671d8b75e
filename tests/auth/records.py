"""A random world in a real server: records, and tokens of every kind that ask for them. See world.py for the oracle."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from fhir_server.store.credentials import Client
from tests.auth.conftest import Secured
from tests.auth.world import (
    CATEGORIES,
    TYPES,
    Maker,
    Resource,
    Token,
    Version,
    label_of,
    objects,
    patients_of,
    proxied,
)


@dataclass
class Records:
    """Every version there is, and the tokens."""

    secured: Secured
    maker: Maker
    versions: list[Version] = field(default_factory=list)  # oldest first, by resource
    tokens: list[tuple[Token, dict[str, str]]] = field(default_factory=list)
    users: dict[str, tuple[str, str]] = field(default_factory=dict)  # name → role ("nurse": by care team), reference

    def living(self, kind: str) -> list[Resource]:
        return [v.resource for v in self.current() if v.resource_type == kind and not v.deleted]

    def proxies(self) -> list[str]:
        """Related persons who may see somebody."""
        found = [one for one in self.living("RelatedPerson") if proxied(self.living("Consent"), one)]
        return [f"RelatedPerson/{one['id']}" for one in found]

    def settle(self) -> None:
        """What care teams and consents, as they stand now, make of each token."""
        consents = self.living("Consent")
        settled: list[tuple[Token, dict[str, str]]] = []
        for token, headers in self.tokens:
            kind, me = self.users.get(token.user, ("", ""))
            reach: frozenset[str] | None = None
            excluded: frozenset[str] = frozenset()
            if kind == "patient":
                reach = frozenset({me.split("/")[1]})
            elif kind == "related-person":
                person = next((one for one in self.living("RelatedPerson") if me.endswith(one["id"])), None)
                reach = proxied(consents, person)
            elif kind == "nurse":
                teams = self.living("CareTeam")
                mine = [team for team in teams if team["participant"][0]["member"]["reference"] == me]
                reach = frozenset(team["subject"]["reference"].split("/")[1] for team in mine)
            if kind in ("", "practitioner", "nurse"):
                excluded = objects(consents, me)
            settled.append((replace(token, reach=reach, excluded=excluded), headers))
        self.tokens = settled

    def current(self) -> list[Version]:
        newest = {version.key: version for version in self.versions}
        return list(newest.values())


async def add_services(secured: Secured) -> None:
    for name in ("service", "service-N", "service-R", "service-V"):
        clearance = "V" if name == "service" else name[-1]
        roles = frozenset({"administrator"} if name == "service" else ())  # whom no consent keeps from writing
        await secured.authority.credentials.put_client(
            Client(
                id=name,
                name=name,
                kind="confidential-asymmetric",
                scopes=("system/*.cruds",),
                clearance=clearance,
                roles=roles,
            )
        )


async def make_world(secured: Secured, chance: random.Random, *, also: str = "") -> Records:
    """`also`: a type that every token may do everything with."""
    maker = Maker(chance)
    records = Records(secured, maker)
    everything = await secured.token("system/*.cruds", client="service")
    maker.practitioners = [maker.id("Practitioner") for _ in range(2)]
    maker.keys = [f"Practitioner/{id}" for id in maker.practitioners]
    maker.patients = [maker.id("Patient") for _ in range(5)]
    maker.keys += [f"Patient/{id}" for id in maker.patients]
    planned = [*maker.keys]
    more = {"Observation": 6, "Consent": 8}
    planned += [f"{kind}/{maker.id(kind)}" for kind in TYPES[1:] for _ in range(more.get(kind, 3))]
    maker.keys = planned
    for key in planned:
        kind, _, id = key.partition("/")
        times = chance.choice([1, 1, 2, 3])
        for number in range(1, times + 1):
            await put(records, everything, maker.resource(kind, id), number)
        if chance.random() < 0.1 and kind not in ("Patient", "Practitioner"):
            answer = await secured.http.delete(key, headers=everything)
            assert answer.status_code == 204
            before = records.versions[-1]
            records.versions.append(replace(before, number=before.number + 1, deleted=True))
    await make_tokens(records, chance, also)
    return records


async def change_of_mind(records: Records, chance: random.Random) -> None:
    """A Consent is given, changed or taken back while the tokens are in use: it holds from the next request on."""
    headers = await records.secured.token("system/*.cruds", client="service")
    consent = chance.choice([version for version in records.current() if version.resource_type == "Consent"])
    if consent.deleted or chance.random() < 0.7:
        await put(records, headers, records.maker.resource("Consent", consent.id), consent.number + 1)
    else:
        answer = await records.secured.http.delete(consent.key, headers=headers)
        assert answer.status_code == 204
        records.versions.append(replace(consent, number=consent.number + 1, deleted=True))
    records.settle()


async def put(records: Records, headers: dict[str, str], resource: Resource, number: int) -> None:
    kind, id = resource["resourceType"], resource["id"]
    resource.setdefault("meta", {})["tag"] = [{"code": f"n{number}"}]  # so that every version differs
    answer = await records.secured.http.put(f"{kind}/{id}", json=resource, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    found = answer.json()
    patients = patients_of(found, {one.key: one.patients for one in records.current()})
    records.versions.append(Version(kind, id, int(found["meta"]["versionId"]), found, False, patients, label_of(found)))


async def make_tokens(records: Records, chance: random.Random, also: str = "") -> None:
    secured, maker = records.secured, records.maker
    for number in range(14):
        role = chance.choice(
            ["patient", "patient", "patient", "practitioner", "practitioner", "nurse", "nurse", "related-person",
             "administrator", "", "", "lab"]
        )  # fmt: skip
        if number in (0, 1, 2, 3, 5):  # in every world
            role = ("administrator", "related-person", "practitioner", "", "", "related-person")[number]
        clearance = chance.choice(["N", "N", "R", "V"])
        contexts = {"": ["system"], "administrator": ["user"]}.get(role, ["patient", "patient", "user"])
        scopes = tuple(random_scope(chance, contexts) for _ in range(chance.randint(1, 4)))
        if number < 6:
            scopes = ((contexts[-1], "*", "rs", ""), *scopes)
        if number % 5 == 4:  # nothing wider beside it, or the narrowing would not show
            scopes = (
                (chance.choice(contexts), "Observation", chance.choice(["rs", "cruds"]), chance.choice(CATEGORIES)),
            )
        if also:
            scopes = (*scopes, (contexts[-1], also, "cruds", ""))
        name, patient, me, kind = f"u{number}-{maker.id('User')[4:]}", "", "", role
        if role == "":
            headers = await secured.token(Token(scopes, "").scope, client=f"service-{clearance}")
            records.tokens.append((Token(scopes, "", f"service-{clearance}", clearance=clearance), headers))
            continue
        if role == "patient":
            me = f"Patient/{chance.choice(maker.patients)}"
            patient = me.split("/")[1]
            await secured.user(name, "patient", me, clearance=clearance)
        elif role == "related-person":
            everybody = [v.key for v in records.current() if v.resource_type == "RelatedPerson"]
            me = chance.choice((number < 4 and records.proxies()) or everybody)
            await secured.user(name, "related-person", me, clearance=clearance)
        else:
            me = f"Practitioner/{chance.choice(maker.practitioners)}"
            role = "practitioner" if role == "nurse" else role
            await secured.user(name, role, me, reach="care-team" if kind == "nurse" else "all", clearance=clearance)
        if role != "patient" and any(scope[0] == "patient" for scope in scopes):
            patient = chance.choice([*maker.patients, *maker.patients, ""])
        token = Token(scopes, role, name, patient, clearance=clearance)
        records.users[name] = (kind, me)
        records.tokens.append((token, await secured.token(token.scope, user=name, patient=patient)))
    records.settle()


def random_scope(chance: random.Random, contexts: list[str]) -> tuple[str, str, str, str]:
    kind = chance.choice(["*"] * 8 + ["Observation", "Patient", "Condition", "List", "Provenance", "Task"])
    letters = chance.choice(["rs"] * 5 + ["cruds"] * 3 + ["r", "s", "cu"])
    category = chance.choice(CATEGORIES) if kind == "Observation" and chance.random() < 0.4 else ""
    return chance.choice(contexts), kind, letters, category
