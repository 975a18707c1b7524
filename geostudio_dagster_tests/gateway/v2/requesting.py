"""Requests in every state, made with the catalog's own operations instead of real runs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from geostudio_dagster.catalog import ArtifactRecord, LayerRecord, Plan, PlannedTask
from geostudio_dagster.catalog.states import PUSH
from geostudio_dagster.errors import TaskError
from geostudio_dagster.gateway.v2.tasks import ARCHIVE
from geostudio_dagster.planning.plan import STEPS
from geostudio_dagster_tests.gateway.v2.serving import Api

URL = "https://example.org/scene_2024-06-30.tif"


def wish(api: Api, *urls: str | Path, **more: Any) -> dict[str, Any]:
    """A request's document."""
    domain = {"urls": [str(url) for url in urls or (URL,)]}
    return {"model_id": api.model.id, "spatial_domain": domain, "temporal_domain": [], **more}


def post(client: httpx.Client, document: dict[str, Any]) -> str:
    """Submit it; its id."""
    answer = client.post("/v2/inference", json=document)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def planned(api: Api, request_id: str, tasks: int, shards: int = 1) -> list[str]:
    """Record a plan of that many tasks; their ids."""
    made = [
        PlannedTask(
            id=f"{request_id}-task_{n}",
            url=f"https://example.org/{n}.tif",
            date="2024-06-30",
            shard=n * shards // tasks,
            window=None,
            scene_size=(100, 100),
            footprint={
                "type": "Polygon",
                "coordinates": [[[n, 0], [n + 1, 0], [n + 1, 1], [n, 1], [n, 0]]],
            },
            pixels=10_000,
            steps=STEPS,
        )
        for n in range(tasks)
    ]
    assert api.installation.catalog.record_plan(request_id, Plan(tuple(made), shards, {}))
    return [task.id for task in made]


def worked(api: Api, request_id: str, failing: Sequence[int] = ()) -> None:
    """Bring all shards to their end, with these tasks failing in their first step."""
    catalog = api.installation.catalog
    now = dt.datetime.now(dt.UTC)
    for shard in catalog.shards(request_id):
        run = f"run-{shard.number}"
        catalog.mark_submitted([shard.key], now)
        catalog.begin_shard_run(shard.key, run)
        for step in (name for name in STEPS if name != PUSH):
            for task in catalog.claim(shard.key, step, run, 60, now):
                assert catalog.start_step(task.id, step, run)
                if task.number in failing:
                    error = TaskError("not_found", "The scene is not there.")
                    catalog.fail_step(task.id, step, run, error, 1)
                else:
                    catalog.finish_step(task.id, step, run)
        catalog.settle_shard(shard.key, run, now, 0)


def published(api: Api, request_id: str, title: str = "Prediction <of> & all") -> None:
    """Give the request a layer, in place of any, and its final status."""
    catalog = api.installation.catalog
    catalog.begin_publish(request_id, "publication")
    layer = LayerRecord(
        request_id=request_id,
        name="pred",
        title=title,
        kind="raster",
        bounds=(16.3, 48.2, 16.4, 48.3),
        style={
            "kind": "classes",
            "classes": [{"value": 1, "name": "Flood", "colour": "#fa4d56", "opacity": 1.0}],
        },
        granules=(),
        uri=f"geofm:{request_id}-pred",
        digest="1" * 64,
        published_at=dt.datetime.now(dt.UTC),
    )
    catalog.record_layers(request_id, [layer], run_id="publication")
    catalog.finish_publish(request_id, run_id="publication")


def archived(api: Api, request_id: str, task_id: str, content: bytes) -> None:
    """Store an archive as the task's output."""
    key = f"{request_id}/{task_id}/archive.zip"
    stored = api.installation.storage.commit_bytes(content, key)
    record = ArtifactRecord(
        task_id, ARCHIVE, stored.key, "application/zip", stored.size, stored.sha256
    )
    api.installation.catalog.put_artifacts([record])
