"""A registered processor run by itself on what a task has made already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from geostudio_dagster.catalog import ArtifactRecord, Position, ProcessorRecord, TaskRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.processing import produced, source_of
from geostudio_dagster.pipeline.scripts import Runner, run_processor
from geostudio_dagster.pipeline.stage import ProducedFile
from geostudio_dagster.planning.chains import complete
from geostudio_dagster.storage import request_key

# Roles that begin so are no part of a task's own results.
ALONE = "alone/"


@dataclass(frozen=True, slots=True)
class AloneRun:
    """What a processor made of one task's output, beside the task's own files."""

    processor: ProcessorRecord
    artifacts: tuple[ArtifactRecord, ...]
    told: Mapping[str, Any]


def run_alone(
    installation: Installation,
    processor_id: str,
    task_id: str,
    parameters: Mapping[str, Any],
    run_id: str,
    *,
    cancelled: Callable[[], bool] = bool,
    runner: Runner | None = None,
) -> AloneRun:
    """Run a processor on a task's prediction; the files are kept under the run's own name.

    Raises:
        NotFound: there is no such processor or task, or the task has no prediction yet.
        InvalidRequest: the parameters do not fit the processor.
        TaskError: the script failed.
        Cancelled: ``cancelled`` became true (by default it never does).
    """
    catalog, storage = installation.catalog, installation.storage
    processor = catalog.processor(processor_id)
    task = catalog.task(task_id)
    given = complete(processor, parameters)
    source = installation.path_of(source_of(installation, task, Position.AFTER_POSTPROCESS))
    scratch_name = f"alone-{run_id}"
    try:
        folder = storage.scratch(scratch_name)
        run = run_processor(
            installation,
            processor,
            given,
            source=source,
            grid=source,
            folder=folder,
            cancelled=cancelled,
            runner=runner,
        )
        artifacts = [
            _kept(installation, task, file, run_id)
            for file in produced(run, task, source, f"{ALONE}{run_id[:8]}")
        ]
    finally:
        storage.discard_scratch(scratch_name)
    catalog.put_artifacts(artifacts)
    return AloneRun(processor, tuple(artifacts), run.told())


def _kept(
    installation: Installation, task: TaskRecord, file: ProducedFile, run_id: str
) -> ArtifactRecord:
    key = request_key(task.request_id, f"_runs/{run_id}/{file.name}")
    stored = installation.storage.commit(file.path, key)
    return ArtifactRecord(
        owner_id=task.id,
        name=file.role,
        key=stored.key,
        media_type=file.media_type,
        size=stored.size,
        sha256=stored.sha256,
        metadata={**file.metadata, "run": run_id},
    )
