"""SMART scopes, v1 and v2: parse, print, compare, meet. `Scope.parse(str(scope)) == scope`.

https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast
from urllib.parse import parse_qsl, quote

ScopeContext = Literal["patient", "user", "system"]

PERMISSIONS = "cruds"  # create, read, update, delete, search; v2 writes them in this order
VERSION_1 = {"read": "rs", "write": "cud", "*": "cruds"}

# Scopes that say something about the launch or the session and not about resources.
LAUNCH_SCOPES = frozenset(
    {"openid", "fhirUser", "profile", "launch", "launch/patient", "launch/encounter", "offline_access", "online_access"}
)

_SCOPE = re.compile(r"(patient|user|system)/(\*|[A-Z][A-Za-z]{1,63})\.(\*|read|write|c?r?u?d?s?)(?:\?([!-~]+))?")


# No chains, no _has, no controls: what can be decided by looking at the one resource.
_NARROWS = re.compile(r"(?:[A-Za-z][A-Za-z0-9-]*|_security|_tag|_profile)(?::[A-Za-z-]+)?")


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """`patient/Observation.rs?category=vital-signs`: whose, which type (`*` all), what may be done, narrowed by search."""

    context: ScopeContext
    resource_type: str
    permissions: str
    parameters: tuple[tuple[str, str], ...] = ()

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Scope:
        """Raises ValueError when the text is not a resource scope in either version's grammar."""
        found = _SCOPE.fullmatch(text)
        if not found or not found[3]:
            raise ValueError(f"{text!r} is not a SMART resource scope")
        context, resource_type, permissions, query = found.groups()
        parameters: tuple[tuple[str, str], ...] = ()
        if query is not None:
            if permissions in VERSION_1:
                raise ValueError(f"{text!r}: only scopes of version 2 take search parameters")
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
            if not all(value and _NARROWS.fullmatch(name) for name, value in pairs):
                raise ValueError(f"{text!r}: a scope is narrowed by plain search parameters with values")
            parameters = tuple(sorted(set(pairs)))
        return cls(cast(ScopeContext, context), resource_type, VERSION_1.get(permissions, permissions), parameters)

    def __str__(self) -> str:
        query = "&".join(
            f"{quote(name, safe=':._-')}={quote(value, safe=':/|,._-')}" for name, value in self.parameters
        )
        return f"{self.context}/{self.resource_type}.{self.permissions}{'?' + query if query else ''}"

    def permits(self, permission: str, resource_type: str) -> bool:
        return permission in self.permissions and self.resource_type in ("*", resource_type)

    def covers(self, other: Scope) -> bool:
        """Whether everything `other` allows is allowed by this one."""
        return (
            self.context == other.context
            and self.resource_type in ("*", other.resource_type)
            and set(other.permissions) <= set(self.permissions)
            and set(self.parameters) <= set(other.parameters)
        )

    def meet(self, other: Scope) -> Scope | None:
        """What both allow, None for nothing."""
        if self.context != other.context:
            return None
        if self.resource_type != other.resource_type and "*" not in (self.resource_type, other.resource_type):
            return None
        permissions = "".join(p for p in PERMISSIONS if p in self.permissions and p in other.permissions)
        if not permissions:
            return None
        resource_type = other.resource_type if self.resource_type == "*" else self.resource_type
        parameters = tuple(sorted({*self.parameters, *other.parameters}))
        return Scope(self.context, resource_type, permissions, parameters)


def split(text: str) -> list[str]:
    """The single scopes of a `scope` parameter, in order, each once."""
    return list(dict.fromkeys(text.split(" "))) if text.strip(" ") else []


def resource_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """The resource scopes among them; the others (and what nobody understands) grant nothing."""
    scopes = []
    for text in texts:
        try:
            scopes.append(Scope.parse(text))
        except ValueError:
            continue
    return tuple(dict.fromkeys(scopes))


def granted(requested: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """Which of the requested scopes may be given where `allowed` is the most there is.

    A scope wholly allowed keeps the client's own spelling (v1 clients compare); one partly allowed is cut down to
    the common part; anything else is left out.
    """
    allowed_texts = set(allowed)
    allowed_scopes = resource_scopes(allowed_texts)
    given: list[str] = []
    for text in dict.fromkeys(requested):
        if text in LAUNCH_SCOPES:
            if text in allowed_texts:
                given.append(text)
            continue
        try:
            scope = Scope.parse(text)
        except ValueError:
            continue
        if any(limit.covers(scope) for limit in allowed_scopes):
            given.append(text)
        else:
            given.extend(str(part) for limit in allowed_scopes if (part := limit.meet(scope)))
    return list(dict.fromkeys(given))
