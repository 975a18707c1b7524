"""The API's routes, assembled: each module has a ``router``; all of them ask who is there."""

from __future__ import annotations

from fastapi import APIRouter, Depends

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
# Addresses that prove themselves otherwise, as signed links do, are in an ``open_router``.

router = APIRouter(prefix="/v2", responses=responses(401, 413, 415, 422, 503))
for _module in _MODULES:
    router.include_router(_module.router, dependencies=[Depends(identify)])
    if hasattr(_module, "open_router"):
        router.include_router(_module.open_router)
