"""How much is too much: logins that fail, calls of the token endpoint, requests of one client; then 429 with Retry-After."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

from fhir_server.errors import TooManyRequests
from fhir_server.store.credentials import Credentials

WINDOW = 300  # seconds
FAILED_LOGINS = 10  # of one name in a window, from anywhere
FAILED_FROM = 200  # users and clients, from one place in a window, whatever the names
MANY = 10_000  # buckets
SWEEP = 1.0  # seconds between two looks at all of them


class LoginLimit:
    """Counted in the database, so that more processes do not mean more guesses.

    A user's name is locked for a while, because people choose passwords that can be guessed; a client's is not, because
    its secret cannot be, and locking would let anybody stop a service.
    """

    def __init__(self, credentials: Credentials, *, now: Callable[[], float]) -> None:
        self._credentials = credentials
        self._now = now

    async def begin(self, address: str, user: str) -> int:
        """Counts a login as failed before the password is looked at, or many at once would all find room; its moment.

        Raises TooManyRequests, for unknown names as for known ones.
        """
        now = int(self._now())
        for key, most in ((f"user:{user[:200]}", FAILED_LOGINS), (_from(address), FAILED_FROM)):
            if await self._credentials.count(key, WINDOW, now) > most:
                raise _too_many(now)
        return now

    async def succeeded(self, address: str, user: str, began: int) -> None:
        for key in (f"user:{user[:200]}", _from(address)):
            await self._credentials.uncount(key, WINDOW, began)

    async def check(self, address: str) -> None:
        """For clients: raises TooManyRequests before the secret is looked at."""
        now = int(self._now())
        if await self._credentials.counted(_from(address), WINDOW, now) >= FAILED_FROM:
            raise _too_many(now)

    async def failed(self, address: str) -> None:
        await self._credentials.count(_from(address), WINDOW, int(self._now()))


def _too_many(now: int) -> TooManyRequests:
    return TooManyRequests("Too many failed logins; try again later", retry_after=WINDOW - now % WINDOW)


def _from(address: str) -> str:
    return f"from:{place(address)}"


def place(address: str) -> str:
    """What one customer of a network has at least: an IPv4 address, or the 2⁶⁴ IPv6 addresses of one line."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


class RateLimit:
    """A token bucket for each key in this process: `rate` requests a second, a burst of twice that. 0: no limit."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, 2 * rate)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # key → (left, when)
        self._swept = 0.0

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
        if len(self._buckets) > MANY and now - self._swept > SWEEP:
            # What was not asked for since then is full again, and as good as new. Not each time: the keys are anybody's.
            full = self._burst / self._rate
            self._buckets = {name: one for name, one in self._buckets.items() if now - one[1] < full}
            self._swept = now
        self._buckets[key] = (left - 1, now)
