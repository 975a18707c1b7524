"""Stage ``processor_outputs``: the request's own chain of scripts, each fed by the one before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rasterio

from geostudio_dagster.catalog import (
    ArtifactRecord,
    PinnedProcessor,
    Position,
    TaskRecord,
)
from geostudio_dagster.catalog.states import EARLY_PROCESSOR, PROCESSOR
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.scripts import Runner, ScriptRun, plain, run_processor
from geostudio_dagster.pipeline.stage import (
    ProducedFile,
    StageReport,
    StepOutput,
    WorkContext,
    run_stage,
)
from geostudio_dagster.raster.footprint import footprint_of
from geostudio_dagster.raster.preview import preview_png

STEP_OF = {Position.BEFORE_POSTPROCESS: EARLY_PROCESSOR, Position.AFTER_POSTPROCESS: PROCESSOR}
_LONGEST_ROLE = 70


def run_chain(
    installation: Installation,
    shard_key: str,
    run_id: str,
    position: Position,
    runner: Runner | None = None,
) -> StageReport:
    """Run the request's processors of a position for every task of the shard that needs it.

    ``runner`` runs the scripts elsewhere than in this machine's sandbox.
    """
    return run_stage(
        installation,
        shard_key,
        run_id,
        STEP_OF[position],
        partial(process_task, position=position, runner=runner),
        workers=installation.settings.processors.parallel,
    )


def chain_of(
    installation: Installation, request_id: str, position: Position
) -> list[PinnedProcessor]:
    """The links of the request's chain that run at a position, in order."""
    chain = installation.catalog.request_processors(request_id)
    return [pin for pin in chain if pin.position is position]


def process_task(
    task: TaskRecord,
    context: WorkContext,
    *,
    position: Position,
    runner: Runner | None = None,
) -> StepOutput:
    """Run one task through the chain; its scripts' files are kept, the last one's and all others.

    Raises:
        TaskError: a script failed; nothing of the chain is kept.
        Cancelled: the request was cancelled; no script is left running.
    """
    place = context.installation
    current = grid = place.path_of(source_of(place, task, position))
    files: list[ProducedFile] = []
    told: list[dict[str, Any]] = []
    for pin in chain_of(place, task.request_id, position):
        folder = context.scratch / str(pin.number)
        run = run_processor(
            place,
            pin.processor,
            pin.parameters,
            source=current,
            grid=grid,
            folder=folder,
            cancelled=context.cancelled,
            runner=runner,
        )
        files += produced(run, task, current, f"{position}/{pin.number}", _taken(files))
        told.append(run.told())
        current = run.main or current
        grid = run.raster or grid
    return StepOutput(
        files=files,
        metrics={"scripts": told, "isolation": told[-1]["isolation"] if told else ""},
        replaces=f"{position}/",
    )


def source_of(installation: Installation, task: TaskRecord, position: Position) -> ArtifactRecord:
    """What the chain of a position begins with: the prediction, or what was made of it before.

    After postprocess that is the masked one, where masks were asked for.

    Raises:
        NotFound: the task has no prediction.
    """
    if position is Position.AFTER_POSTPROCESS:
        masked = installation.catalog.artifacts_named("masked", [task.id])
        return masked.get(task.id) or processed_prediction(installation, task)
    return installation.catalog.artifact(task.id, "prediction")


def processed_prediction(installation: Installation, task: TaskRecord) -> ArtifactRecord:
    """The prediction, or the raster on its grid that processors before postprocess made of it.

    Raises:
        NotFound: the task has no prediction.
    """
    catalog = installation.catalog
    prediction = catalog.artifact(task.id, "prediction")
    early = catalog.artifacts_in_role(f"{Position.BEFORE_POSTPROCESS}/", [task.id])
    for artifact in reversed(early.get(task.id, [])):
        if artifact.metadata.get("main") and _alike(installation, artifact, prediction):
            return artifact
    return prediction


def produced(
    run: ScriptRun, task: TaskRecord, source: Path, role: str, taken: Sequence[str] = ()
) -> Iterator[ProducedFile]:
    """A run's files under the names that they get among the task's artifacts.

    Such as ``<task>_cloud-mask_masked.tif`` for a file that ends in ``masked.tif``: two scripts,
    or two tasks, never write the same name, and the script's own end of it stays.
    """
    names = set(taken)
    for output in run.outputs:
        rest = _rest(output.name, task.id, source.stem)
        name = _unused(f"{task.id}_{plain(run.processor.name)}", rest, names)
        names.add(name)
        metadata = {
            **output.metadata,
            **(_place(output.path) if output.kind == "raster" else {}),
            "processor": run.processor.label,
            "processor_sha256": run.processor.sha256,
            "kind": output.kind,
            "main": output.path == run.main,
        }
        yield ProducedFile(f"{role}/{_short(rest)}", output.path, name, output.media_type, metadata)


def preview_of(installation: Installation, report: StageReport) -> bytes | None:
    """A PNG of the first raster that the stage made."""
    for outcome in report.finished:
        for artifact in outcome.artifacts:
            if artifact.metadata.get("kind") == "raster":
                return preview_png(installation.path_of(artifact))
    return None


def _place(path: Path) -> dict[str, Any]:
    """Where a raster lies, as layers and the UI need it."""
    with rasterio.open(path) as dataset:
        return {"bounds": footprint_of(dataset).bounds, "crs": str(dataset.crs)}


def _taken(files: Sequence[ProducedFile]) -> list[str]:
    return [file.name for file in files]


def _rest(name: str, task_id: str, source_stem: str) -> str:
    """The name without what it repeats of the task's and the input's."""
    stem, dot, ending = name.rpartition(".")
    for known in (source_stem, task_id):
        if stem.startswith(known):
            stem = stem[len(known) :].strip("_-. ")
    return f"{plain(stem) or 'output'}{dot}{ending.lower()}"


def _unused(start: str, rest: str, names: set[str]) -> str:
    name, number = f"{start}_{rest}", 2
    while name in names:
        name, number = f"{start}-{number}_{rest}", number + 1
    return name


def _short(rest: str) -> str:
    """The end of a role, which the catalog bounds; what is cut is told apart by a digest."""
    if len(rest) <= _LONGEST_ROLE:
        return rest
    digest = hashlib.sha256(rest.encode()).hexdigest()[:8]
    return f"{digest}{rest[-(_LONGEST_ROLE - len(digest)) :]}"


def _alike(installation: Installation, one: ArtifactRecord, other: ArtifactRecord) -> bool:
    """Whether one raster can stand for the other: same grid, bands and data type."""
    if one.metadata.get("kind") != "raster":
        return False
    with (
        rasterio.open(installation.path_of(one)) as first,
        rasterio.open(installation.path_of(other)) as second,
    ):
        return all(
            getattr(first, name) == getattr(second, name)
            for name in ("crs", "transform", "shape", "count", "dtypes", "nodata")
        )
