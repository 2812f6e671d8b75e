"""Every setting, with its environment variable and default, in one frozen dataclass. Read only by app.py and cli.py."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fhir_server.errors import FhirError


def _default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "fhir-server"


@dataclass(frozen=True, slots=True)
class Settings:
    """`help` is what the command line and docs/settings.md print; the environment variable is FHIR_ + the name."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(default=8080, metadata={"help": "port to listen on; 0 picks a free one"})
    base_path: str = field(default="/fhir", metadata={"help": "path of the FHIR base"})
    public_url: str = field(default="", metadata={"help": "base URL as clients see it, behind a proxy"})
    data_dir: Path = field(
        default_factory=_default_data_dir, metadata={"help": "where the embedded MongoDB and keys live"}
    )
    mongo_url: str = field(
        default="", metadata={"help": "replica set or sharded cluster; empty starts an embedded mongod"}
    )
    database: str = field(default="fhir", metadata={"help": "database name"})
    mongo_cache_mb: int = field(default=512, metadata={"help": "cache of the embedded mongod, MiB"})
    workers: int = field(default=1, metadata={"help": "processes that answer requests"})
    open: bool = field(
        default=False, metadata={"help": "serve without authorization; refused on any address but loopback"}
    )
    automation: bool = field(default=True, metadata={"help": "run the hooks engine inside serve"})
    max_body_mb: int = field(default=64, metadata={"help": "largest request body, unpacked, MiB"})
    max_bundle_entries: int = field(default=10_000, metadata={"help": "largest batch or transaction"})
    max_page: int = field(default=1_000, metadata={"help": "largest _count"})
    default_page: int = field(default=50, metadata={"help": "_count where the client gives none"})
    export_hours: int = field(default=24, metadata={"help": "hours that the files of a bulk export are kept"})
    export_jobs: int = field(default=8, metadata={"help": "bulk exports that wait or run at a time"})
    export_client_jobs: int = field(default=2, metadata={"help": "those of one client"})
    slow_search_ms: int = field(default=500, metadata={"help": "searches slower than this are logged with their plan"})
    tls_cert: str = field(default="", metadata={"help": "certificate chain (PEM) to serve https with"})
    tls_key: str = field(default="", metadata={"help": "its private key (PEM)"})
    log_level: str = field(default="info", metadata={"help": "debug, info, warning or error"})

    # Who may: docs/authorization.md
    token_seconds: int = field(default=3600, metadata={"help": "life of a user's access token, seconds"})
    backend_token_seconds: int = field(default=300, metadata={"help": "life of a backend service's token, seconds"})
    refresh_days: int = field(default=90, metadata={"help": "life of a grant with offline_access, days"})
    registration: bool = field(default=False, metadata={"help": "let apps register themselves (RFC 7591)"})
    auth_key: str = field(
        default="", metadata={"help": "64 hex digits that encrypt the signing keys; empty: data_dir/auth.key"}
    )
    jwks_internal: bool = field(
        default=False, metadata={"help": "fetch clients' jwks_uri from internal addresses, too"}
    )
    rate_limit: int = field(default=5_000, metadata={"help": "requests a second of one client; 0 for no limit"})
    cors_origins: str = field(default="*", metadata={"help": "origins of browser apps, separated by spaces"})
    issuer: str = field(default="", metadata={"help": "external OpenID issuer whose tokens are accepted, too"})
    issuer_jwks: str = field(default="", metadata={"help": "URL of its keys; empty: found by discovery"})
    issuer_audience: str = field(default="", metadata={"help": "what its tokens' aud must be; empty: the FHIR base"})
    issuer_scope_claim: str = field(default="scope", metadata={"help": "claim with the scopes; dots for nesting"})
    issuer_patient_claim: str = field(default="patient", metadata={"help": "claim with the patient's id"})
    issuer_fhir_user_claim: str = field(default="fhirUser", metadata={"help": "claim with the user's FHIR reference"})
    issuer_roles_claim: str = field(default="realm_access.roles", metadata={"help": "claim with the user's roles"})
    issuer_reach: str = field(default="care-team", metadata={"help": "what its practitioners see: care-team or all"})
    audit: bool = field(default=True, metadata={"help": "write an AuditEvent for every access"})
    subscription_internal: bool = field(
        default=False, metadata={"help": "notify http endpoints and internal addresses, too; --open implies it"}
    )
    subscription_hours: int = field(
        default=24, metadata={"help": "hours that an endpoint may fail before its Subscription is given up"}
    )
    audit_days: int = field(default=0, metadata={"help": "days that AuditEvents are kept; 0 for ever"})

    @property
    def base_url(self) -> str:
        """The FHIR base, as clients see it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "https" if self.tls_cert else "http"
        return self.public_url or f"{scheme}://{host}:{self.port}{self.base_path}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **given: Any) -> Settings:
        """Environment first, then what the command line gave (None means not given). Raises FhirError on a bad value."""
        values: dict[str, Any] = {}
        for item in fields(cls):
            variable = "FHIR_" + item.name.upper()
            text = environment.get(variable)
            if text is not None and text != "":
                values[item.name] = _parse(variable, text, item.type)
        values.update({name: value for name, value in given.items() if value is not None})
        return cls(**values)


def misspelt(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that are no setting, but nearly one → which. Others that begin with FHIR_ may be anybody's."""
    known = ["FHIR_" + item.name.upper() for item in fields(Settings)]
    unknown = (name for name in environment if name.startswith("FHIR_") and name not in known)
    return {name: near[0] for name in unknown if (near := difflib.get_close_matches(name, known, 1, 0.85))}


def _parse(variable: str, text: str, kind: Any) -> Any:
    try:
        if kind in ("int", int):
            return int(text)
        if kind in ("bool", bool):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if kind in ("Path", Path):
            return Path(text)
    except (ValueError, KeyError):
        raise FhirError(f"{variable}={text!r} is not a valid value") from None
    return text
