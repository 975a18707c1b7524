"""Liveness and readiness, as orchestrators ask for them."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from geostudio_dagster import __version__
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.problems import problem, responses

log = logging.getLogger(__name__)
router = APIRouter(prefix="/health", tags=["health"])


@router.get("/livez", operation_id="live")
def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "UP", "version": __version__}


@router.get("/readyz", operation_id="ready", responses=responses(503))
def ready(place: Place) -> Response:
    """The catalog answers too."""
    try:
        place.catalog.requests(limit=1)
    except SQLAlchemyError:
        log.exception("The catalog does not answer.")
        return problem(503, {"status": "DOWN", "msg": "The catalog does not answer."})
    return JSONResponse({"status": "UP"})
