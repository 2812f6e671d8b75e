"""`fhir-server serve`: one process, or with --workers a parent and its workers."""

from __future__ import annotations

import argparse
import os
import re
import signal
import ssl
import threading
from dataclasses import replace

from fhir_server.cli import options
from fhir_server.cli.answering import answer, is_loopback, listen
from fhir_server.cli.logs import LEVELS
from fhir_server.errors import FhirError
from fhir_server.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    options.configure(parser)


def run(args: argparse.Namespace) -> int:
    settings = options.settings_of(args)
    check(settings)
    if settings.workers > 1:
        from fhir_server.cli.supervise import Supervisor

        return Supervisor(settings, lambda port: announce(settings, port)).run()
    return _alone(settings)


def check(settings: Settings) -> None:
    """Refuse what would lay records open, and what would only fail later, without its name. Raises FhirError."""
    if settings.open and not is_loopback(settings.host):
        raise FhirError(
            f"--open serves without authorization and is for this machine alone: "
            f"{settings.host} is not a loopback address. Leave --open out, or use --host 127.0.0.1"
        )
    if settings.log_level.lower() not in LEVELS:
        raise FhirError(f"--log-level {settings.log_level}: must be one of {', '.join(LEVELS)}")
    if settings.tls_cert or settings.tls_key:
        _check_tls(settings)
    if settings.workers < 1:
        raise FhirError(f"--workers {settings.workers}: at least one process must answer")
    if not 0 <= settings.port <= 65535:  # getaddrinfo takes what is left of it
        raise FhirError(f"--port {settings.port}: must be between 0 and 65535")
    if not re.fullmatch(r"(/[\w.~-]+)+", settings.base_path, re.ASCII):
        raise FhirError(f"--base-path {settings.base_path}: must be a path such as /fhir, without a slash at the end")
    if settings.issuer_reach not in ("care-team", "all"):
        raise FhirError(f"--issuer-reach {settings.issuer_reach}: must be care-team or all")
    for name in ("public_url", "issuer", "issuer_jwks"):
        url = getattr(settings, name)
        if url and not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", url):
            raise FhirError(f"--{name.replace('_', '-')} {url}: must be an http(s) URL")
    if settings.auth_key:
        from fhir_server.auth.authority import secret_of

        secret_of(settings)
    if settings.mongo_url:
        from fhir_server.store.attach import reach

        reach(settings.mongo_url)


def _check_tls(settings: Settings) -> None:
    """Before anything is started. Raises FhirError."""
    if not settings.tls_cert:
        raise FhirError("--tls-key needs --tls-cert, the certificate chain that belongs to it")
    for option, path in (("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key)):
        if path and not os.access(path, os.R_OK):
            raise FhirError(f"{option} {path}: the file is not there or may not be read")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_cert, settings.tls_key or None, password=lambda: ""
        )
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise FhirError(
            "--tls-cert and --tls-key must be a certificate chain and the private key that belongs to it, both PEM, "
            "the key without a password"
        ) from None


def announce(settings: Settings, port: int) -> None:
    print(f"ready on {replace(settings, port=port).base_url}", flush=True)


def _alone(settings: Settings) -> int:
    """Everything in this process. The application is imported while mongod starts: both take about as long."""
    from fhir_server.store.embedded import EmbeddedMongo

    signal.signal(signal.SIGTERM, _interrupt)
    listening = listen(settings.host, settings.port)
    port = int(listening.getsockname()[1])
    settings = replace(settings, port=port)
    importing = threading.Thread(target=_import, name="import", daemon=True)
    importing.start()
    mongo: EmbeddedMongo | None = None
    try:
        if not settings.mongo_url:
            # On this thread: the kernel ends mongod with the thread that started it.
            mongo = EmbeddedMongo(settings.data_dir, cache_mb=settings.mongo_cache_mb)
            settings = replace(settings, mongo_url=mongo.start())
        importing.join()
        return answer(settings, listening, lambda: announce(settings, port))
    finally:
        listening.close()
        if mongo is not None:
            mongo.stop()


def _import() -> None:
    try:
        from fhir_server import app
    except Exception:  # noqa: S110 - the same import on the main thread tells it
        pass
    else:
        assert app


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
