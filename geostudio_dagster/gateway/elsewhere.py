"""Parts of GEOStudio's API that have no place here: its model servers and its issue tracker.

They answer 501 and say where to go instead, so that a client learns more than from a 404.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, HTTPException

from geostudio_dagster.gateway.principal import principal_of
from geostudio_dagster.gateway.problems import responses

router = APIRouter(tags=["not here"], dependencies=[Depends(principal_of)])

NO_SERVERS = (
    "Models are not given servers of their own here: requests load them themselves. Register one "
    "with POST /v2/models and POST /v2/models/{id}/deploy, or with runtime: http where it runs "
    "elsewhere."
)
NO_TRACKER = "This installation keeps no issue tracker; tell its operator."


def _no_servers() -> None:
    """Models have no servers of their own here."""
    raise HTTPException(501, NO_SERVERS)


def _no_tracker() -> None:
    """There is no issue tracker."""
    raise HTTPException(501, NO_TRACKER)


for _method, _path, _answer in (
    ("POST", "/v2/amo-tasks", _no_servers),
    ("GET", "/v2/amo-tasks/{model_id}", _no_servers),
    ("DELETE", "/v2/amo-tasks/{model_id}", _no_servers),
    ("GET", "/issue", _no_tracker),
    ("POST", "/issue", _no_tracker),
    ("POST", "/issue/{issue_key}/comment", _no_tracker),
):
    router.add_api_route(
        _path,
        _answer,
        methods=[_method],
        operation_id=f"{_method} {_path}".lower().translate(str.maketrans(" /-", "___", "{}")),
        response_model=None,
        responses=responses(401, 501),
    )
