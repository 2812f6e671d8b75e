"""The server's own signing keys: made, rotated, published as a JWKS; private halves lie encrypted in the database.

The key that encrypts them is a file of mode 600 in the data directory (or FHIR_AUTH_KEY, where several hosts share one
database). https://www.rfc-editor.org/rfc/rfc7517
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from jwt.algorithms import RSAAlgorithm

from fhir_server.auth.oauth import new_secret
from fhir_server.errors import FhirError
from fhir_server.store.credentials import Credentials, SigningKey

ALGORITHM = "RS256"  # what every OpenID client must understand
RELOAD_SECONDS = 30  # how soon a process notices a rotation made elsewhere
UNKNOWN_SECONDS = 1  # and how soon where a token names a key it does not know: another process may sign with it already


def key_file(data_dir: Path) -> bytes:
    """The 32 bytes that encrypt the private keys; made on first use, readable by its owner only."""
    path = data_dir / "auth.key"
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        for _ in range(50):  # another process may be writing it this moment
            text = path.read_text().strip()
            if len(text) == 64:
                return bytes.fromhex(text)
            time.sleep(0.02)
        raise FhirError(f"{path} is not a key file of 64 hexadecimal digits") from None
    secret = os.urandom(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret.hex())
        file.flush()
        os.fsync(file.fileno())
    return secret


@dataclass(frozen=True, slots=True)
class Signer:
    kid: str
    private: Any  # an RSA private key of `cryptography`


class Keys:
    def __init__(
        self, credentials: Credentials, secret: bytes, *, now: Callable[[], float], longest_token: int
    ) -> None:
        self._credentials = credentials
        self._cipher = AESGCM(secret)
        self._now = now
        self._longest_token = longest_token
        self._loaded: list[SigningKey] = []
        self._public: dict[str, Any] = {}
        self._signer: Signer | None = None
        self._read_at = 0.0

    async def open(self) -> None:
        """Loads the keys, makes the first one where there is none."""
        if await self._load():
            return
        await self._credentials.add_first_key(await asyncio.to_thread(self._new_key))
        for _ in range(100):  # the process that was first may still be writing it
            if await self._load():
                return
            await asyncio.sleep(0.05)
        raise FhirError("The database has no usable signing key; run `fhir-server keys rotate`")

    async def rotate(self) -> str:
        """A new key signs from now on; the old ones stay published until the last token they signed has expired."""
        now = int(self._now())
        before = await self._credentials.all_keys()
        fresh = await asyncio.to_thread(self._new_key)
        await self._credentials.put_key(fresh)  # first: without a key that signs no process could start any more
        for key in before:
            if not key.expires:
                end = now + self._longest_token + 2 * RELOAD_SECONDS  # other processes sign with it a little longer
                await self._credentials.put_key(replace(key, expires=max(end, key.needed)))
            elif key.expires < now:
                await self._credentials.remove_key(key.kid)
        await self._load()
        return fresh.kid

    async def jwks(self) -> dict[str, Any]:
        await self._reload()
        return {"keys": [key.public for key in self._loaded if not key.expires or key.expires > self._now()]}

    async def signer(self) -> Signer:
        await self._reload()
        assert self._signer is not None, "Keys.open was not awaited"
        return self._signer

    async def public(self, kid: str) -> Any | None:
        """The public key of that id while it is published. The id is only looked up in memory, whatever it contains."""
        if kid not in self._public:
            await self._reload(UNKNOWN_SECONDS)
        return self._public.get(kid)

    async def sign(self, claims: dict[str, Any], typ: str) -> str:
        signer = await self.signer()
        end = claims.get("exp")
        if isinstance(end, int) and end > self._now() + self._longest_token:  # one of `fhir-server token --ttl`
            await self._credentials.need_key(signer.kid, end + RELOAD_SECONDS)
        return jwt.encode(claims, signer.private, algorithm=ALGORITHM, headers={"kid": signer.kid, "typ": typ})

    async def _reload(self, after: float = RELOAD_SECONDS) -> None:
        if not 0 <= self._now() - self._read_at < after:
            await self._load()

    async def _load(self) -> bool:
        now = self._now()
        keys = [key for key in await self._credentials.all_keys() if not key.expires or key.expires > now]
        self._read_at = now
        self._loaded = keys
        self._public = {key.kid: RSAAlgorithm.from_jwk(key.public) for key in keys}
        youngest = next((key for key in keys if not key.expires), None)
        if youngest is not None and (self._signer is None or self._signer.kid != youngest.kid):
            self._signer = Signer(youngest.kid, RSAAlgorithm.from_jwk(json.loads(self._decrypt(youngest))))
        return self._signer is not None

    def _new_key(self) -> SigningKey:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        kid = new_secret(12)
        public = {**RSAAlgorithm.to_jwk(private.public_key(), as_dict=True), "kid": kid, "use": "sig", "alg": ALGORITHM}
        public.pop("key_ops", None)
        nonce = os.urandom(12)
        sealed = self._cipher.encrypt(nonce, RSAAlgorithm.to_jwk(private).encode(), kid.encode())
        text = base64.b64encode(nonce + sealed).decode()
        return SigningKey(kid=kid, algorithm=ALGORITHM, public=public, private=text, created=int(self._now()))

    def _decrypt(self, key: SigningKey) -> bytes:
        sealed = base64.b64decode(key.private)
        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], key.kid.encode())
        except InvalidTag:
            raise FhirError(
                "The signing keys in the database were encrypted with another key: use the auth.key file of the data "
                "directory they were made with, or set FHIR_AUTH_KEY"
            ) from None
