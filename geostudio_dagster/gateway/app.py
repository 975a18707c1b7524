"""The gateway's application: ``uvicorn --factory geostudio_dagster.gateway.app:create_app``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from geostudio_dagster import __version__
from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway import files, health, layers, maps
from geostudio_dagster.gateway.headers import SecurityHeaders
from geostudio_dagster.gateway.place import GatewayPlace
from geostudio_dagster.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over the installation that ``settings`` (default: the environment) describe."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        place = GatewayPlace.open(settings)
        app.state.place = place
        try:
            yield
        finally:
            place.close()

    app = FastAPI(
        title="geostudio_dagster gateway",
        version=__version__,
        lifespan=lifespan,
        # The interactive documentation loads its scripts from the internet.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(SecurityHeaders)
    # A page elsewhere whose name is made to resolve to this machine must read nothing here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_hosts(settings))
    app.add_exception_handler(NotFound, _not_found)
    for router in (health.router, layers.router, maps.router, files.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=maps.STATIC), name="static")
    return app


def _hosts(settings: Settings) -> list[str]:
    public = urlsplit(settings.gateway_url).hostname
    return ["127.0.0.1", "localhost", "[::1]", *([public] if public else [])]


def _not_found(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/maps/"):
        return HTMLResponse(maps.missing_page(str(error)), status_code=404)
    return JSONResponse({"detail": str(error)}, status_code=404)
