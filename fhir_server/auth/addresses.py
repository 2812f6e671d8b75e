"""Where this server may be made to connect to by what clients tell it (a `jwks_uri`, a Subscription's endpoint).

The guard: no internal address, and the connection goes to the very address that was checked, so that a name cannot change
its mind in between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


class Unreachable(Exception):
    """It cannot, or must not, be connected to; the text is safe to show to whoever named it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL whose host has been looked up: what to give to the HTTP client."""

    url: str
    headers: dict[str, str]
    extensions: dict[str, Any]


async def target(url: str, *, guarded: bool) -> Target:
    """Raises Unreachable. Guarded: https only, and public addresses only."""
    problem = refused(url, guarded=guarded)
    if problem:
        raise Unreachable(problem)
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = await resolve(str(parts.hostname), port, guarded=guarded)
    host = f"[{address}]" if ":" in address else address
    pinned = parts._replace(netloc=f"{host}:{port}", fragment="").geturl()
    return Target(pinned, {"Host": parts.netloc}, {"sni_hostname": str(parts.hostname)})


def refused(url: str, *, guarded: bool) -> str:
    """What is wrong with a URL on its face; empty if nothing is."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "it is not a URL"
    allowed = ("https",) if guarded else ("https", "http")
    if not parts.hostname or parts.username or parts.scheme not in allowed:
        return f"it must be {' or '.join(allowed)}, with a host and without user information"
    try:
        inside = guarded and not is_public(parts.hostname)
    except ValueError:  # a name
        inside = False
    return "its host is not a public address" if inside else ""


async def resolve(host: str, port: int, *, guarded: bool) -> str:
    """One address of the host. Guarded: every address it has must be public, one internal among them refuses all."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise Unreachable("its host has no address") from None
    addresses = [str(entry[4][0]) for entry in found]
    if guarded and not all(is_public(address) for address in addresses):
        raise Unreachable("its host is not a public address")
    return addresses[0]


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64 hides an IPv4 address
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast
