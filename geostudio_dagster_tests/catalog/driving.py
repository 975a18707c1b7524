"""What planners, runs and publishers do to a catalog, in a few words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from pathlib import Path
from typing import Any

from geostudio_dagster.catalog import (
    ArtifactRecord,
    Catalog,
    ModelRecord,
    Plan,
    PlannedTask,
    RequestRecord,
    Settlement,
    TaskRecord,
)
from geostudio_dagster.catalog.states import CONNECTOR, POSTPROCESS, PREDICTION, PUSH
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle, BundleManifest

STAGES = (CONNECTOR, PREDICTION, POSTPROCESS)
STEPS = (*STAGES, PUSH)
BROKEN = TaskError("not_found", "https://example.org/x.tif gave 404; check the address.")
FLAKY = TaskError("unreachable", "example.org did not answer.", retryable=True)
# Later than anything that a test does at the present time.
LATER = dt.datetime.now(dt.UTC).replace(microsecond=123456) + dt.timedelta(days=1)


def seconds(number: float) -> dt.timedelta:
    return dt.timedelta(seconds=number)


def bundle(name: str = "water", digest: str = "0" * 64) -> Bundle:
    manifest: dict[str, Any] = {
        "name": name,
        "runtime": "torchscript",
        "weights": "model.pt",
        "task": "regression",
        "bands": [{"name": "B02"}],
    }
    return Bundle(
        folder=Path("/models") / name,
        manifest=BundleManifest.model_validate(manifest),
        digest=digest,
    )


def plan_of(request_id: str, tasks: int = 4, shards: int = 2, steps: Any = STEPS) -> Plan:
    """Tasks of 1000 pixels in consecutive shards."""
    return Plan(
        tasks=tuple(
            PlannedTask(
                id=f"{request_id}-task_{number}",
                url=f"https://example.org/{number}.tif",
                date="2024-06-30",
                shard=number * shards // tasks,
                window=(0, number, 40, 25),
                scene_size=(40, 25 + tasks),
                footprint={"type": "Point", "coordinates": [number % 180, 0.5]},
                pixels=1000,
                steps=steps,
            )
            for number in range(tasks)
        ),
        shard_count=shards,
        estimate={"seconds": 1.5},
    )


def file_of(owner_id: str, role: str, content: str = "a") -> ArtifactRecord:
    return ArtifactRecord(
        owner_id, role, f"{owner_id}/{role}.tif", "image/tiff", 10, content * 64, {"crs": 32633}
    )


class Driver:
    """A catalog with the moves that its users make."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def model(self, name: str = "water", digest: str = "0" * 64) -> ModelRecord:
        return self.catalog.register_model(bundle(name, digest), uri=f"/models/{name}", owner="ann")

    def pending(self, request_id: str | None = None, **spec: Any) -> RequestRecord:
        return self.catalog.create_request(
            request_id=request_id, spec=spec, model_id=self.model().id, owner="ann"
        )

    def planned(self, tasks: int = 4, shards: int = 2, steps: Any = STEPS, **spec: Any) -> str:
        request = self.pending(**spec)
        assert self.catalog.record_plan(request.id, plan_of(request.id, tasks, shards, steps))
        return request.id

    def key(self, request_id: str, shard: int = 0) -> str:
        return f"{request_id}/{shard:05d}"

    def task(self, request_id: str, number: int = 0) -> TaskRecord:
        return self.catalog.task(f"{request_id}-task_{number}")

    def take(self, request_id: str, stage: str = CONNECTOR, run: str = "run", **more: Any) -> Any:
        """Claim the tasks of the first shard for an hour; their ids."""
        claimed = self.catalog.claim(self.key(request_id), stage, run, 3600, **more)
        return [task.id for task in claimed]

    def work(
        self,
        shard_key: str,
        stage: str,
        run: str = "run",
        fail: Collection[int] = (),
        error: TaskError = BROKEN,
    ) -> int:
        """Claim and finish (or fail) what the shard has for a stage; how many tasks."""
        claimed = self.catalog.claim(shard_key, stage, run, 60)
        for task in claimed:
            assert self.catalog.start_step(task.id, stage, run)
            if task.number in fail:
                self.catalog.fail_step(task.id, stage, run, error, 3)
                continue
            metrics = {"pixels": 1000, "seconds": 0.5}
            self.catalog.finish_step(task.id, stage, run, [file_of(task.id, stage)], metrics)
        return len(claimed)

    def run_shard(
        self, request_id: str, shard: int = 0, run: str = "run", fail: Collection[int] = ()
    ) -> Settlement:
        """One whole run of a shard; tasks of the given numbers fail at the prediction."""
        key = self.key(request_id, shard)
        self.catalog.begin_shard_run(key, run)
        for stage in STAGES:
            self.work(key, stage, run, fail if stage == PREDICTION else ())
        return self.catalog.settle_shard(key, run, LATER, 5)

    def settled(self, tasks: int = 4, shards: int = 2, fail: Collection[int] = ()) -> str:
        """A request whose results are to be published."""
        request_id = self.planned(tasks, shards)
        for shard in range(shards):
            self.run_shard(request_id, shard, f"run{shard}", fail)
        return request_id

    def publish(
        self, request_id: str, run: str = "push", failed: dict[str, TaskError] | None = None
    ) -> RequestRecord:
        self.catalog.begin_publish(request_id, run)
        return self.catalog.finish_publish(request_id, failed or {}, run_id=run)

    def over(self, tasks: int = 4, shards: int = 2, fail: Collection[int] = ()) -> str:
        """A request that is over."""
        request_id = self.settled(tasks, shards, fail)
        self.publish(request_id)
        return request_id

    def statuses(self, request_id: str) -> list[str]:
        """The steps of each task, by their first letters: FFRW is one step RUNNING."""
        return [
            "".join(
                {"FAILED": "X", "READY": "r", "STOPPED": "S"}.get(step.status, step.status[0])
                for step in task.steps
            )
            for task in self.catalog.tasks(request_id, limit=1000)
        ]
