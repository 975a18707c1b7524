"""The gateway's application: ``uvicorn --factory geostudio_dagster.gateway.app:serve``."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from geostudio_dagster import __version__
from geostudio_dagster.audit_log import AuditLog
from geostudio_dagster.gateway import (
    documentation,
    elsewhere,
    files,
    health,
    layers,
    maps,
    metrics,
)
from geostudio_dagster.gateway.addresses import Addresses
from geostudio_dagster.gateway.audit import Audit
from geostudio_dagster.gateway.headers import SecurityHeaders
from geostudio_dagster.gateway.hosts import TrustedHosts
from geostudio_dagster.gateway.limits import Limits
from geostudio_dagster.gateway.place import GatewayPlace
from geostudio_dagster.gateway.problems import handle_problems, responses
from geostudio_dagster.gateway.v2.router import include_routes
from geostudio_dagster.settings import Settings, read_settings

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over the installation that ``settings`` (default: the environment) describe."""
    settings = settings or read_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if settings.gateway.auth == "off":
            log.warning("Authentication is off: whoever reaches this port may do everything.")
        place = GatewayPlace.open(settings)
        app.state.place = place
        try:
            yield
        finally:
            place.close()
            app.state.audit.close()

    app = FastAPI(
        title="geostudio_dagster gateway",
        description="Geospatial model predictions: GEOStudio's REST API, maps, layers and files.",
        version=__version__,
        lifespan=lifespan,
        # FastAPI's own page loads its scripts from the internet; ours is in documentation.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # limits looks at it
    )
    app.state.metrics, app.state.readiness = metrics.Metrics(), health.Readiness()
    app.state.audit = AuditLog(settings.audit)
    _add_middlewares(app, settings)
    handle_problems(app)
    include_routes(app)
    for router in (
        elsewhere.router,
        health.router,
        metrics.router,
        documentation.router,
    ):
        app.include_router(router)
    for router in (layers.router, maps.router, files.router):
        app.include_router(router, responses=responses(401, 404, 503))
    app.mount("/static", StaticFiles(directory=maps.STATIC), name="static")
    app.openapi = lambda: documentation.describe(app)  # type: ignore[method-assign]
    return app


def serve() -> FastAPI:
    """:func:`create_app` for a process that does nothing else.

    What was imported and built stays: without this the collector looks through all of it, again
    and again, while calls wait.
    """
    app = create_app()
    gc.collect()
    gc.freeze()
    return app


def _add_middlewares(app: FastAPI, settings: Settings) -> None:
    """From the inside out: the last one sees a request first."""
    if settings.gateway.audit_days:
        app.add_middleware(Audit, audit_log=app.state.audit)
    app.add_middleware(metrics.NoteRoute)
    app.add_middleware(Limits, settings=settings.gateway)
    app.add_middleware(Addresses)
    app.add_middleware(TrustedHosts, allowed_hosts=_hosts(settings))
    app.add_middleware(SecurityHeaders)
    app.add_middleware(metrics.CountCalls, metrics=app.state.metrics)


def _hosts(settings: Settings) -> list[str]:
    public = urlsplit(settings.gateway_url).hostname
    known = ["127.0.0.1", "localhost", "[::1]", *settings.gateway.allowed_hosts]
    return [*known, *([public] if public else [])]
