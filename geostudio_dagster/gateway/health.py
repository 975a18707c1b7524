"""Liveness and readiness, as orchestrators ask for them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from geostudio_dagster import __version__
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.problems import problem, responses

log = logging.getLogger(__name__)
router = APIRouter(prefix="/health", tags=["health"])

NO_CATALOG = "The catalog does not answer."
NO_FOLDER = "The data folder cannot be written to."
NO_DAGSTER = "Dagster does not answer; requests are kept, and start when it is back."
_FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class State:
    """What is missing: what nothing works without, and what some of it waits for."""

    needed: Sequence[str]
    awaited: Sequence[str]


class Readiness:
    """The state of a place, looked at every two seconds at most, however often it is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._state = State((), ())

    def of(self, place: GatewayPlace) -> State:
        """The state now, or two seconds ago."""
        with self._lock:
            if time.monotonic() - self._looked_at > _FRESH_S:
                self._state = _look(place)
                self._looked_at = time.monotonic()
            return self._state


def _look(place: GatewayPlace) -> State:
    needed = []
    try:
        place.catalog.requests(limit=1)
    except SQLAlchemyError:
        log.exception(NO_CATALOG)
        needed.append(NO_CATALOG)
    if not os.access(place.settings.data_folder, os.W_OK):
        needed.append(NO_FOLDER)
    awaited = [NO_DAGSTER] if place.launcher.state() == "degraded" else []
    return State(needed, awaited)


@router.get("/livez", operation_id="live")
def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "UP", "version": __version__}


@router.get("/readyz", operation_id="ready", responses=responses(503))
def ready(request: Request, place: Place) -> Response:
    """What the service needs answers, too; ``DEGRADED`` where work waits for something."""
    readiness: Readiness = request.app.state.readiness
    state = readiness.of(place)
    if state.needed:
        missing = [*state.needed, *state.awaited]
        return problem(503, {"status": "DOWN", "msg": " ".join(missing), "missing": missing})
    if state.awaited:
        document: dict[str, Any] = {"status": "DEGRADED", "missing": list(state.awaited)}
        return JSONResponse({**document, "degraded": " ".join(state.awaited)})
    return JSONResponse({"status": "UP"})
