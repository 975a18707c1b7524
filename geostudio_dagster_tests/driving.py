"""A stand-in for the daemon's clock: real sensors and real runs, in this process, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
from dagster import DagsterInstance

from geostudio_dagster.catalog import ModelRecord, TaskRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.planning.admission import admit

SENSORS = ("inbox", "onboarder", "request_planner", "reconciler", "shard_dispatcher")
OVER = {"COMPLETED", "COMPLETED_WITH_ERRORS", "FAILED", "STOPPED"}


class Driver:
    """Evaluates the platform's sensors and executes what they ask for, as the daemon would."""

    def __init__(self, installation: Installation, instance: DagsterInstance) -> None:
        from geostudio_dagster.definitions import defs

        self.installation = installation
        self.instance = instance
        self.definitions: dg.Definitions = defs()
        self.results: list[dg.ExecuteInProcessResult] = []
        self._seen: set[str] = set()

    def tick(self) -> int:
        """One round of all sensors; returns how many runs were executed."""
        return sum(self._evaluate(name) for name in SENSORS)

    def until_over(self, request_id: str, rounds: int = 30) -> str:
        """Tick until the request is over; its final status."""
        for _ in range(rounds):
            self.tick()
            status = self.installation.catalog.request(request_id).status
            if status in OVER:
                return str(status)
        raise AssertionError(f"{request_id} is still {status} after {rounds} rounds")

    def launch(
        self,
        job: str,
        *,
        partition: str | None = None,
        run_config: dict[str, object] | None = None,
        tags: dict[str, str] | None = None,
        assets: list[str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Execute one run here."""
        definition = self.definitions.resolve_job_def(job)
        result = definition.execute_in_process(
            instance=self.instance,
            partition_key=partition,
            run_config=run_config,
            tags=tags,
            asset_selection=[dg.AssetKey(name) for name in assets] if assets else None,
            raise_on_error=False,
        )
        self.results.append(result)
        return result

    def _evaluate(self, name: str) -> int:
        sensor = self.definitions.resolve_sensor_def(name)
        repository = self.definitions.get_repository_def()
        context = dg.build_sensor_context(
            instance=self.instance,
            repository_def=repository,
            resources=self.definitions.resources,
        )
        with context:
            data = sensor.evaluate_tick(context)
        for change in data.dynamic_partitions_requests or []:
            if isinstance(change, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(
                    change.partitions_def_name, list(change.partition_keys)
                )
        fresh = [r for r in data.run_requests or [] if r.run_key not in self._seen]
        for request in fresh:
            self._seen.add(str(request.run_key))
            job = request.job_name or sensor.job.name
            tags = {k: v for k, v in request.tags.items() if k != "dagster/partition"}
            self.launch(
                job,
                partition=request.partition_key,
                run_config=dict(request.run_config),
                tags=tags,
            )
        return len(fresh)


def submit(
    installation: Installation, urls: Sequence[str | Path], model: ModelRecord | str, **more: object
) -> str:
    """The id of an accepted request for these scenes."""
    domain = {"urls": [str(url) for url in urls]}
    name = model if isinstance(model, str) else model.name
    document = {"model": name, "spatial_domain": domain, **more}
    return admit(document, installation.catalog, installation.settings, owner="tests").id


def path_of(installation: Installation, owner: str, name: str) -> Path:
    """The file of a task's or a request's artifact."""
    return installation.path_of(installation.catalog.artifact(owner, name))


def tasks_of(installation: Installation, request: str) -> list[TaskRecord]:
    """All tasks of a small request."""
    return list(installation.catalog.tasks(request, limit=1000))


def run_until(condition: Callable[[], bool], step: Callable[[], object], rounds: int = 50) -> None:
    """Do ``step`` until ``condition`` holds."""
    for _ in range(rounds):
        if condition():
            return
        step()
    raise AssertionError("the condition did not come true")
