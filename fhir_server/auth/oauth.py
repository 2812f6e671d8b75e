"""OAuth's own errors: `error` code, words for a developer, HTTP status. https://www.rfc-editor.org/rfc/rfc6749#section-5.2

They are answered as OAuth JSON (or sent back to the redirect URI), never as an OperationOutcome.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from typing import Any, TypeGuard


class OAuthError(Exception):
    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status

    def as_json(self) -> dict[str, str]:
        return {"error": self.error, "error_description": self.description}


def invalid_request(description: str) -> OAuthError:
    return OAuthError("invalid_request", description)


def invalid_grant(description: str) -> OAuthError:
    return OAuthError("invalid_grant", description)


def invalid_client(description: str) -> OAuthError:
    return OAuthError("invalid_client", description, 401)


def invalid_scope(description: str) -> OAuthError:
    return OAuthError("invalid_scope", description)


def new_secret(size: int = 32) -> str:
    """A random text of so many bytes, safe in URLs."""
    return secrets.token_urlsafe(size)


def is_time(value: Any) -> TypeGuard[float]:
    """A JWT's NumericDate. JSON as Python reads it also has NaN and Infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def digest(secret: str) -> str:
    """What is stored instead of a code, refresh token or session: these carry 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()
