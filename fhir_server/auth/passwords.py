"""Passwords and client secrets as argon2id hashes, computed in threads, so many at a time and no more.

https://www.rfc-editor.org/rfc/rfc9106
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2

from fhir_server.errors import Unavailable

T = TypeVar("T")


class Passwords:
    """Each check takes about 50 ms and 64 MiB by intention; `at_once` bounds both, `waiting` bounds the queue (then 503)."""

    def __init__(self, *, at_once: int = 2, waiting: int = 32, memory_kib: int = 65536, rounds: int = 3) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=rounds, memory_cost=memory_kib, parallelism=1)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="argon2")
        self._room = at_once + waiting
        self._nobody = ""

    def hash_now(self, password: str) -> str:
        """Blocking; for the command line."""
        return self._hasher.hash(password)

    async def hash(self, password: str) -> str:
        return await self._run(self._hasher.hash, password)

    async def matches(self, hashed: str, password: str) -> bool:
        """False for an empty hash after the same work, so that the time does not tell who exists."""
        if not hashed:
            self._nobody = self._nobody or await self.hash("nobody")
        right = await self._run(self._verify, hashed or self._nobody, password)
        return right and bool(hashed)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (argon2.exceptions.VerifyMismatchError, argon2.exceptions.InvalidHashError):
            return False

    async def _run(self, work: Callable[..., T], *arguments: str) -> T:
        if self._room <= 0:
            raise Unavailable("Too many logins at once; try again in a moment", retry_after=2)
        self._room -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._room += 1
