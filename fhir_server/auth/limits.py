"""How much is too much: logins that fail, calls of the token endpoint, requests of one client; then 429 with Retry-After."""

from __future__ import annotations

import time
from collections.abc import Callable

from fhir_server.errors import TooManyRequests
from fhir_server.store.credentials import Credentials

WINDOW = 300  # seconds
FAILED_LOGINS = 10  # of one name in a window, from anywhere
FAILED_FROM = 200  # users and clients, from one address in a window, whatever the names


class LoginLimit:
    """Counted in the database, so that more processes do not mean more guesses.

    A user's name is locked for a while, because people choose passwords that can be guessed; a client's is not, because
    its secret cannot be, and locking would let anybody stop a service.
    """

    def __init__(self, credentials: Credentials, *, now: Callable[[], float]) -> None:
        self._credentials = credentials
        self._now = now

    async def check(self, address: str, user: str = "") -> None:
        """Raises TooManyRequests before the secret is looked at; for unknown names as for known ones."""
        now = int(self._now())
        for key, most in _keys(address, user):
            if await self._credentials.counted(key, WINDOW, now) >= most:
                raise TooManyRequests("Too many failed logins; try again later", retry_after=WINDOW - now % WINDOW)

    async def failed(self, address: str, user: str = "") -> None:
        for key, _ in _keys(address, user):
            await self._credentials.count(key, WINDOW, int(self._now()))


def _keys(address: str, user: str) -> list[tuple[str, int]]:
    keys = [(f"from:{address}", FAILED_FROM)]
    return [*keys, (f"user:{user[:200]}", FAILED_LOGINS)] if user else keys


class RateLimit:
    """A token bucket for each key in this process: `rate` requests a second, a burst of twice that. 0: no limit."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, 2 * rate)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # key → (left, when)

    def check(self, key: str) -> None:
        """Takes one; raises TooManyRequests."""
        if not self._rate:
            return
        now = self._clock()
        left, when = self._buckets.get(key, (self._burst, now))
        left = min(self._burst, left + (now - when) * self._rate)
        if left < 1:
            raise TooManyRequests(
                "Too many requests of this client", retry_after=max(1, round((1 - left) / self._rate))
            )
        if len(self._buckets) > 10_000:
            self._buckets = {name: one for name, one in self._buckets.items() if now - one[1] < 60}
        self._buckets[key] = (left - 1, now)
