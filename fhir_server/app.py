"""The composition root: settings become collaborators, collaborators an ASGI application; nothing else builds anything."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from fhir_server.auth.policy import Policy, Principal
from fhir_server.errors import FhirError
from fhir_server.http.application import FhirApplication
from fhir_server.http.middleware import Figures, Observed, Scope
from fhir_server.interactions.context import Server
from fhir_server.operations import OPERATIONS
from fhir_server.search.registry import Registry
from fhir_server.settings import Settings
from fhir_server.store.embedded import EmbeddedMongo
from fhir_server.store.mongo import MongoStore
from fhir_server.validation import Validator

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def build_server(
    settings: Settings,
    mongo_url: str,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
) -> Server:
    """Every collaborator, not yet opened."""
    registry = Registry.standard()
    return Server(
        store=MongoStore(mongo_url, settings.database, registry.indexes),
        registry=registry,
        validator=Validator(),
        policy=Policy(),
        settings=settings,
        now=now,
        new_id=new_id,
        rooms={"operations": OPERATIONS},
    )


def check_settings(settings: Settings) -> None:
    """Refuses what would be unsafe. Raises FhirError in words for the person at the terminal."""
    if settings.open and settings.host not in LOOPBACK:
        raise FhirError(f"--open serves without authorization and is refused on {settings.host}; use 127.0.0.1")


def create(settings: Settings | None = None) -> Starlette:
    """The application as uvicorn runs it. Without a database URL it starts, and at the end stops, a mongod of its own."""
    settings = settings or Settings.from_environment()
    check_settings(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        embedded: EmbeddedMongo | None = None
        url = settings.mongo_url
        if not url:
            embedded = EmbeddedMongo(settings.data_dir, cache_mb=settings.mongo_cache_mb)
            url = await asyncio.to_thread(embedded.start)
        try:
            server = build_server(settings, url)
            await server.store.open()
            try:
                async with serving(server, app):
                    yield
            finally:
                await server.store.close()
        finally:
            if embedded is not None:
                await asyncio.to_thread(embedded.stop)

    return _application(settings, lifespan)


@asynccontextmanager
async def mounted(server: Server) -> AsyncIterator[Starlette]:
    """The application on an opened server; for tests and for programs that bring their own collaborators."""
    app = _application(server.settings, None)
    async with serving(server, app):
        yield app


@asynccontextmanager
async def serving(server: Server, app: Starlette) -> AsyncIterator[None]:
    """What runs beside the requests starts and ends here."""
    app.state.server = server
    app.state.fhir = FhirApplication(server, _open_to_all)
    try:
        yield
    finally:
        for close in reversed(server.closing):
            await close()


def _application(settings: Settings, lifespan: Any) -> Starlette:
    figures = CollectorRegistry()

    async def fhir(scope: Any, receive: Any, send: Any) -> None:
        await app.state.fhir(scope, receive, send)

    async def health(request: Request) -> Response:
        ready = await app.state.server.store.ready()
        return JSONResponse({"status": "pass" if ready else "fail"}, 200 if ready else 503)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(figures), media_type="text/plain; version=0.0.4")

    app = Starlette(
        routes=[
            Mount(settings.base_path, app=fhir),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        lifespan=lifespan,
    )
    app.add_middleware(Observed, figures=Figures(figures))
    return app


async def _open_to_all(scope: Scope) -> Principal:
    return Principal.open()
