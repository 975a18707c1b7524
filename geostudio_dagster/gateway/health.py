"""Liveness and readiness, as orchestrators ask for them."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from geostudio_dagster import __version__
from geostudio_dagster.gateway.place import Place

log = logging.getLogger(__name__)
router = APIRouter(prefix="/health", tags=["health"])


@router.get("/livez")
def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
def ready(place: Place) -> JSONResponse:
    """The catalog answers too."""
    try:
        place.catalog.requests(limit=1)
    except SQLAlchemyError:
        log.exception("The catalog does not answer.")
        return JSONResponse({"status": "the catalog does not answer"}, status_code=503)
    return JSONResponse({"status": "ok"})
