"""Planning a request: tasks, shards, the estimate, and the footprint file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geostudio_dagster.catalog import ArtifactRecord, ModelRecord, Plan, RequestRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import steplog
from geostudio_dagster.pipeline.stage import now
from geostudio_dagster.planning.limits import check_plan
from geostudio_dagster.planning.plan import tasks_geojson
from geostudio_dagster.planning.planner import planned
from geostudio_dagster.planning.recipes import SceneRecipe, recipe_key
from geostudio_dagster.planning.request import parse_request
from geostudio_dagster.storage import request_key

log = logging.getLogger(__name__)

PLANNER = "inference-planner"


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """What planning made: counts, the estimate and where the footprints lie."""

    request_id: str
    model: str
    tasks: int
    shards: int
    geojson_uri: str
    estimate: Mapping[str, Any]


def plan_request(installation: Installation, request_id: str) -> PlannedRequest:
    """Plan a waiting request; one that has its plan keeps it.

    Raises:
        NotFound: there is no such request.
        InvalidRequest: it cannot be planned; it is FAILED with this reason.
    """
    catalog = installation.catalog
    request = catalog.request(request_id)
    model = catalog.model(request.model_id)
    if request.n_tasks:
        return _planned(installation, request, model, len(catalog.shards(request_id)))
    with steplog.recording(
        installation.storage, planning_log_key(request.id), f"{PLANNER}, {now():%F %T} UTC"
    ):
        plan, recipes = _plan(installation, request, model)
        log.info("planned: %d tasks in %d shards", len(plan.tasks), plan.shard_count)
        for note in plan.estimate.get("missing", ()):
            log.warning("%s", note)
    for number, recipe in enumerate(recipes):
        key = recipe_key(request.id, number)
        installation.storage.commit_bytes(recipe.model_dump_json().encode(), key)
    stored = installation.storage.commit_bytes(
        tasks_geojson(plan), request_key(request.id, f"{request.id}_tasks.geojson")
    )
    geojson = ArtifactRecord(
        owner_id=request.id,
        name="tasks_geojson",
        key=stored.key,
        media_type="application/geo+json",
        size=stored.size,
        sha256=stored.sha256,
        metadata={},
    )
    catalog.record_plan(request.id, plan, [geojson])
    return _planned(installation, catalog.request(request_id), model, plan.shard_count)


def planning_log_key(request_id: str) -> str:
    """Storage key of what planning a request logged."""
    return steplog.step_log_key(request_id, f"{request_id}-task_planning", PLANNER)


def _plan(
    installation: Installation, request: RequestRecord, model: ModelRecord
) -> tuple[Plan, tuple[SceneRecipe, ...]]:
    positions = {pin.position for pin in installation.catalog.request_processors(request.id)}
    try:
        spec = parse_request(request.spec)
        made = planned(installation, spec, request.id, model, positions)
        check_plan(made.plan, installation.settings)
    except InvalidRequest as error:
        # Another try would end the same; the user reads why.
        log.warning("refused: %s", error)
        installation.catalog.fail_request(request.id, str(error))
        raise
    return made.plan, made.recipes


def _planned(
    installation: Installation, request: RequestRecord, model: ModelRecord, shards: int
) -> PlannedRequest:
    known = {artifact.name: artifact for artifact in installation.catalog.artifacts(request.id)}
    geojson = known.get("tasks_geojson")
    return PlannedRequest(
        request.id,
        f"{model.name}@{model.version}",
        request.n_tasks,
        shards,
        installation.uri_of(geojson) if geojson else "",
        request.estimate,
    )
