"""The codes of a value set and the kin of a code, for `:in`, `:not-in`, `:above` and `:below`.

Value sets and code systems are those stored in the server and those that R4's own definitions list. What cannot be expanded here
(a filter we do not know, a code system that is not there) is refused rather than half answered.
https://hl7.org/fhir/R4/search.html#token · https://hl7.org/fhir/R4/valueset.html#compositions
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

from fhir_server.errors import BadRequest
from fhir_server.model.definitions import codings
from fhir_server.model.resource import load
from fhir_server.search.filters import Compiler, both, live, restricted
from fhir_server.search.operands import Members
from fhir_server.search.restrict import Restrict
from fhir_server.search.types import token
from fhir_server.store.documents import UPDATED, entry_path
from fhir_server.store.protocol import Find, Store

MOST_CODES = 50_000
DEEPEST = 10  # value sets that include value sets

Coding = tuple[str, str]  # system, code


class Terminology(Protocol):
    async def keys(self, members: Members, restrict: Restrict) -> frozenset[str]:
        """The token keys that are in (above, below) the target. Raises BadRequest if that cannot be known."""


Resource = dict[str, Any]
FindResource = Callable[[str, str], Awaitable[Resource | None]]  # (type, canonical URL) → the newest


class StoredTerminology:
    """What the store and R4's definitions know. Value sets obey the restriction of who asks, as any resource does."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def keys(self, members: Members, restrict: Restrict) -> frozenset[str]:
        async def find(resource_type: str, url: str) -> Resource | None:
            restriction = restrict(resource_type)
            if restriction.nothing:
                return None
            bare, _, version = url.partition("|")
            wanted: dict[str, Any] = {entry_path("url"): bare}
            if version:
                wanted[entry_path("version")] = "!" + version
            narrowed = restricted(restriction, Compiler(resource_type, _no_steps))
            found = await self._store.find(Find(resource_type, live(both([wanted, narrowed])), ((UPDATED, -1),), 1))
            return load(found[0].raw) if found else None

        return await Expansion(find).keys(members)


class Expansion:
    """Codes from resources that `find` brings."""

    def __init__(self, find: FindResource) -> None:
        self._find = find

    async def keys(self, members: Members) -> frozenset[str]:
        if members.relation == "in":
            found = await self._value_set(members.target, 0)
        else:
            system, _, code = members.target.partition("|")
            concepts = await self._code_system(system)
            if concepts is None:
                raise BadRequest(
                    f"The code system {system!r} is not stored here, so :{members.relation} cannot be known"
                )
            found = {(system, c) for c in kin(concepts, code, members.relation)}
        return frozenset(token.key(system, code) for system, code in found)

    async def _value_set(self, url: str, depth: int) -> set[Coding]:
        if depth > DEEPEST:
            raise BadRequest(f"The value set {url!r} includes others more than {DEEPEST} deep")
        resource = await self._find("ValueSet", url)
        if resource is None:
            defined = codings(url.partition("|")[0])
            if defined is None:
                raise BadRequest(f"The value set {url!r} is not known here")
            return set(defined)
        if "compose" not in resource:
            return set(_expanded(resource.get("expansion", {}).get("contains", ())))
        found: set[Coding] = set()
        for include in resource["compose"].get("include", ()):
            found |= await self._included(include, url, depth)
        for exclude in resource["compose"].get("exclude", ()):
            found -= await self._included(exclude, url, depth)
        if len(found) > MOST_CODES:
            raise BadRequest(f"The value set {url!r} has {len(found)} codes; {MOST_CODES} are served at most")
        return found

    async def _included(self, part: Mapping[str, Any], url: str, depth: int) -> set[Coding]:
        found: set[Coding] | None = None
        system = part.get("system")
        if system:
            if part.get("concept"):
                found = {(system, concept["code"]) for concept in part["concept"]}
            else:
                concepts = await self._code_system(system)
                if concepts is None:
                    raise BadRequest(f"The value set {url!r} takes codes from {system!r}, which is not stored here")
                chosen = set(concepts)
                for filter in part.get("filter", ()):
                    chosen &= _filtered(concepts, filter, url)
                found = {(system, code) for code in chosen}
        for other in part.get("valueSet", ()):
            codes = await self._value_set(other, depth + 1)
            found = codes if found is None else found & codes
        return found or set()

    async def _code_system(self, system: str) -> dict[str, str] | None:
        """Code → parent ("" at the top); None for a system that is not stored."""
        resource = await self._find("CodeSystem", system)
        if resource is None or resource.get("content") not in (None, "complete"):
            return None
        return dict(_concepts(resource.get("concept", ()), ""))


def kin(concepts: Mapping[str, str], code: str, relation: str) -> set[str]:
    """The code itself and its ancestors (`above`) or descendants (`below`)."""
    if code not in concepts:
        return {code}
    if relation == "above":
        found: list[str] = []
        while code and code not in found:
            found.append(code)
            code = concepts.get(code, "")
        return set(found)
    below = {code}
    grown = True
    while grown:
        more = {c for c, parent in concepts.items() if parent in below} - below
        grown = bool(more)
        below |= more
    return below


def _filtered(concepts: Mapping[str, str], filter: Mapping[str, Any], url: str) -> set[str]:
    operation, value = filter.get("op"), str(filter.get("value"))
    if filter.get("property") in ("concept", "code") and operation in ("is-a", "descendent-of", "="):
        if operation == "=":
            return {value} & set(concepts)
        found = kin(concepts, value, "below") & set(concepts)
        return found - {value} if operation == "descendent-of" else found
    raise BadRequest(
        f"The value set {url!r} has a filter this server does not know: {filter.get('property')} {operation}"
    )


def _concepts(concepts: Any, parent: str) -> Iterator[tuple[str, str]]:
    for concept in concepts:
        yield concept["code"], parent
        yield from _concepts(concept.get("concept", ()), concept["code"])


def _expanded(contains: Any) -> Iterator[Coding]:
    for item in contains:
        if item.get("code") and not item.get("abstract"):
            yield item.get("system", ""), item["code"]
        yield from _expanded(item.get("contains", ()))


def _no_steps(asked: Any, resource_type: str) -> Any:
    raise AssertionError("restrictions do not chain")
