"""Public keys that others publish (a client's `jwks_uri`, an external issuer), cached, fetched under a guard.

The guard of addresses.py, and: no redirect, 256 KiB at most, 5 s at most. https://www.rfc-editor.org/rfc/rfc7517#section-5
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from fhir_server.auth.addresses import Unreachable, target

LARGEST = 256 * 1024
SECONDS = 5
SHORTEST_LIFE, LONGEST_LIFE = 60, 24 * 3600  # seconds a set is kept, whatever Cache-Control says
MISS_PAUSE = 30  # seconds between two fetches of one set because of a key id it does not have


@dataclass(slots=True)
class _Cached:
    keys: list[dict[str, Any]]
    fetched: float
    until: float


class RemoteKeys:
    def __init__(self, *, now: Callable[[], float], internal_allowed: bool = False) -> None:
        self._now = now
        self._internal_allowed = internal_allowed
        self._cache: dict[str, _Cached] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def keys(self, url: str, kid: str | None, *, trusted: bool = False) -> list[dict[str, Any]]:
        """The JWKs at that URL with this id (all where none is asked for). `trusted`: named by the operator, unguarded."""
        async with self._locks.setdefault(url, asyncio.Lock()):
            now = self._now()
            cached = self._cache.get(url)
            known = cached is not None and any(kid is None or key.get("kid") == kid for key in cached.keys)
            if cached is None or now >= cached.until or (not known and now - cached.fetched >= MISS_PAUSE):
                if len(self._cache) > 1000:
                    self._cache.clear()
                body, life = await self._fetch(url, trusted)
                cached = self._cache[url] = _Cached(_key_list(body), now, now + life)
        return [key for key in cached.keys if kid is None or key.get("kid") == kid]

    async def document(self, url: str) -> dict[str, Any]:
        """A JSON document of a trusted server (OpenID discovery)."""
        body, _ = await self._fetch(url, True)
        return body

    async def _fetch(self, url: str, trusted: bool) -> tuple[dict[str, Any], float]:
        try:
            async with asyncio.timeout(SECONDS):  # the name's address included
                return await self._get(url, trusted)
        except (httpx.HTTPError, TimeoutError) as error:
            raise Unreachable(f"the key set could not be fetched ({type(error).__name__})") from None

    async def _get(self, url: str, trusted: bool) -> tuple[dict[str, Any], float]:
        try:
            aim = await target(url, guarded=not (trusted or self._internal_allowed))
        except Unreachable as error:
            raise Unreachable(f"the key set's URL cannot be used: {error}") from None
        headers = {**aim.headers, "Accept": "application/json"}
        async with (
            httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=SECONDS) as client,
            client.stream("GET", aim.url, headers=headers, extensions=aim.extensions) as response,
        ):
            if response.status_code != 200:
                raise Unreachable(f"the key set answered with status {response.status_code}")
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LARGEST:
                    raise Unreachable("the key set is larger than 256 KiB")
        try:
            document = json.loads(body)
        except ValueError:
            raise Unreachable("the key set is not JSON") from None
        if not isinstance(document, dict):
            raise Unreachable("the key set is not a JSON object")
        return document, _life(response.headers.get("cache-control", ""))


def _key_list(document: dict[str, Any]) -> list[dict[str, Any]]:
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise Unreachable("the key set has no `keys`")
    return [key for key in keys if isinstance(key, dict) and key.get("kty") in ("RSA", "EC")][:100]


def _life(cache_control: str) -> float:
    if "no-store" in cache_control or "no-cache" in cache_control:
        return SHORTEST_LIFE
    found = re.search(r"max-age=(\d{1,9})", cache_control)
    return min(max(int(found[1]) if found else 300, SHORTEST_LIFE), LONGEST_LIFE)
