"""The API's routes, assembled: each module has a ``router``; all of them ask who is there."""

from __future__ import annotations

from fastapi import Depends, FastAPI

from geostudio_dagster.gateway.principal import identify
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.v2 import (
    advice,
    events,
    groups,
    inference,
    keys,
    logs,
    models,
    notifications,
    processors,
    shares,
    shelves,
    sources,
    tasks,
    tunes,
    tunes_and_models,
    webhooks,
)

PREFIX = "/v2"
# Those that are asked for most come first: routes are tried in this order.
_MODULES = (
    inference,
    tasks,
    models,
    keys,
    groups,
    events,
    shares,
    logs,
    notifications,
    webhooks,
    processors,
    tunes,
    tunes_and_models,
    advice,
    sources,
    shelves,
)


def include_routes(app: FastAPI) -> None:
    """Add the API's routes to the application.

    Each module's router by itself, not all of them in one: at every level FastAPI looks through
    the routes below it more than once.
    """
    common = responses(401, 413, 415, 422, 503)
    for module in _MODULES:
        identified = [Depends(identify)]
        app.include_router(module.router, prefix=PREFIX, responses=common, dependencies=identified)
        # Addresses that prove themselves otherwise, as signed links do.
        if hasattr(module, "open_router"):
            app.include_router(module.open_router, prefix=PREFIX, responses=common)
