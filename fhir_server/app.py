"""The composition root: settings become collaborators, collaborators an ASGI application; nothing else builds anything."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fhir_server.auth.audit import Audit
from fhir_server.auth.authority import Authority, build
from fhir_server.auth.policy import Policy
from fhir_server.automation import SUBSCRIBED, engage
from fhir_server.automation.delivery import Deliveries
from fhir_server.errors import FhirError
from fhir_server.http.application import FhirApplication
from fhir_server.http.middleware import Figures, Observed, Receive, Scope, Send
from fhir_server.http.smart import Bearer, Headers, everybody
from fhir_server.http.smart import routes as smart_routes
from fhir_server.http.smart.discovery import security
from fhir_server.interactions.context import Server
from fhir_server.interactions.search import Records, open_search
from fhir_server.operations import OPERATIONS
from fhir_server.operations.bulk import engage_exports
from fhir_server.search.registry import Registry
from fhir_server.settings import Settings
from fhir_server.store.audit import AuditLog
from fhir_server.store.credentials import Credentials
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


class Application:
    """ASGI: the FHIR base goes straight to its own application, everything else (SMART's endpoints, pages, figures,
    lifespan) to Starlette, whose layers cost as much as a read by id.
    """

    def __init__(self, settings: Settings, lifespan: Any = None) -> None:
        self.settings = settings
        self.server: Server
        self._base = settings.base_path
        self._apart = (f"{settings.base_path}/.well-known/", f"{settings.base_path}/auth/")
        self._figures = Figures()
        self._collectors = CollectorRegistry()
        self._collectors.register(self._figures)
        self._fhir: Any
        self._pages = self._starlette(lifespan)
        self._rest = self._wrapped(self._pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if (
                path.startswith(self._base)
                and path[len(self._base) : len(self._base) + 1] in ("", "/")
                and not path.startswith(self._apart)
            ):
                await self._fhir(scope, receive, send)
                return
        await self._rest(scope, receive, send)

    @asynccontextmanager
    async def serving(self, server: Server) -> AsyncIterator[None]:
        """What runs beside the requests starts and ends here."""
        self.server = server
        await open_search(server)
        authenticate = everybody
        authority: Authority | None = None
        if not self.settings.open:
            authority = await self._authorization(server)
            authenticate = Bearer(authority)
        worker = await engage(server, act=self.settings.automation)
        self._collectors.register(worker.metrics)
        audit: Audit | None = server.rooms.get("audit")
        deliveries = Deliveries(
            server,
            server.rooms[SUBSCRIBED],
            authority.tokens if authority is not None else None,
            audit.record if audit is not None else None,
        )
        deliveries.start()
        server.closing.append(deliveries.close)
        await engage_exports(server)
        self._fhir = self._wrapped(FhirApplication(server, authenticate))
        try:
            yield
        finally:
            await server.close()
            if authority is not None:
                authority.close()

    async def _authorization(self, server: Server) -> Authority:
        settings, base = self.settings, self.settings.base_url
        store = server.store
        if not isinstance(store, MongoStore):
            raise FhirError("The authorization server needs the MongoDB store")
        authority = build(settings, Credentials(store.database), base=base, store=store, records=Records(server, base))
        await authority.open()
        await authority.credentials.note_base(base)
        self._pages.state.authority = authority
        server.committed.append(authority.committed)
        server.rooms["authority"] = authority
        server.rooms["security"] = security(authority)
        if settings.audit:
            folder = settings.data_dir / "audit"
            log = AuditLog(store.database, store.ensure_indexes)
            days = settings.audit_days
            audit = Audit(log, server.registry, folder, authority.secret, base=base, days=days, now=authority.now)
            await audit.open()
            server.rooms["audit"] = audit
            waiting = Gauge("fhir_audit_waiting_bytes", "Journalled, not yet searchable", registry=self._collectors)
            waiting.set_function(lambda: audit.waiting)
            authority.recorded.append(audit.record)
            server.closing.append(audit.close)
        return authority

    def _wrapped(self, app: Any) -> Any:
        """The ordered list of what surrounds every request."""
        headers: Any = Headers(app, origins=self.settings.cors_origins, base_path=self._base)
        return Observed(headers, self._figures)

    def _starlette(self, lifespan: Any) -> Starlette:
        async def health(request: Request) -> Response:
            ready = await self.server.store.ready()
            return JSONResponse({"status": "pass" if ready else "fail"}, 200 if ready else 503)

        async def metrics(request: Request) -> Response:
            return Response(generate_latest(self._collectors), media_type="text/plain; version=0.0.4")

        routes = [Route("/health", health), Route("/metrics", metrics)]
        if not self.settings.open:
            routes += smart_routes(self._base)
        return Starlette(routes=routes, lifespan=lifespan)


def create(settings: Settings | None = None) -> Application:
    """The application as uvicorn runs it. Without a database URL it starts, and at the end stops, a mongod of its own."""
    settings = settings or Settings.from_environment()
    check_settings(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        embedded: EmbeddedMongo | None = None
        url = settings.mongo_url
        if not url:
            embedded = EmbeddedMongo(settings.data_dir, cache_mb=settings.mongo_cache_mb)
            url = embedded.start()  # on this thread: the kernel ends mongod with the thread that started it
        try:
            server = build_server(settings, url)
            await server.store.open()
            try:
                async with app.serving(server):
                    yield
            finally:
                await server.store.close()
        finally:
            if embedded is not None:
                await asyncio.to_thread(embedded.stop)

    app = Application(settings, lifespan)
    return app


@asynccontextmanager
async def mounted(server: Server) -> AsyncIterator[Application]:
    """The application on an opened server; for tests and for programs that bring their own collaborators."""
    app = Application(server.settings)
    async with app.serving(server):
        yield app
