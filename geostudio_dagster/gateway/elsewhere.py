"""Parts of GEOStudio's API that have no place here: its model servers and its issue tracker.

They answer 501 and say where to go instead, so that a client learns more than from a 404.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, HTTPException

from geostudio_dagster.gateway.principal import identify
from geostudio_dagster.gateway.problems import responses

router = APIRouter(tags=["not here"], dependencies=[Depends(identify)], responses=responses(401))

NO_SERVERS = (
    "Models are not given servers of their own here: requests load them themselves. Register one "
    "with POST /v2/models and POST /v2/models/{id}/deploy, or with runtime: http where it runs "
    "elsewhere."
)
NO_TRACKER = "This installation keeps no issue tracker; tell its operator."


def add_not_here(
    router: APIRouter, method: str, path: str, sentence: str, operation_id: str
) -> None:
    """Add a route that answers 501 with a sentence on where to go instead."""

    def not_here() -> None:
        raise HTTPException(501, sentence)

    router.add_api_route(
        path,
        not_here,
        methods=[method],
        operation_id=operation_id,
        description=sentence,
        response_model=None,
        responses=responses(501),
    )


for _method, _path, _sentence in (
    ("POST", "/v2/amo-tasks", NO_SERVERS),
    ("GET", "/v2/amo-tasks/{model_id}", NO_SERVERS),
    ("DELETE", "/v2/amo-tasks/{model_id}", NO_SERVERS),
    ("GET", "/issue", NO_TRACKER),
    ("POST", "/issue", NO_TRACKER),
    ("POST", "/issue/{issue_key}/comment", NO_TRACKER),
):
    _name = f"{_method} {_path}".lower().translate(str.maketrans(" /-", "___", "{}"))
    add_not_here(router, _method, _path, _sentence, _name)
