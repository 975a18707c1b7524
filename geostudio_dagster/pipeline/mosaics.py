"""Parts of split scenes joined again: one prediction COG per scene."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import rasterio

from geostudio_dagster.catalog import ArtifactRecord, TaskRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.predicting import COG
from geostudio_dagster.raster.footprint import footprint_of
from geostudio_dagster.raster.mosaic import merge_parts
from geostudio_dagster.storage import request_key


@dataclass(frozen=True, slots=True)
class Granule:
    """One raster of a layer, and the task (or the first of the tasks) that it comes from."""

    task: TaskRecord
    artifact: ArtifactRecord


def join_parts(
    installation: Installation, request_id: str, granules: Sequence[Granule], run_id: str
) -> list[Granule]:
    """The granules, with those that are parts of one scene replaced by their mosaic.

    Pixels of parts that failed are nodata in the mosaic.
    """
    known = {artifact.name: artifact for artifact in installation.catalog.artifacts(request_id)}
    scenes: dict[str, list[Granule]] = {}
    for granule in granules:
        scenes.setdefault(granule.task.url, []).append(granule)
    joined = []
    for parts in scenes.values():
        if parts[0].task.window is None:
            joined.extend(parts)
        else:
            name = f"mosaic-{_scene_number(parts[0].task)}"
            made_from = _fingerprint(parts)
            mosaic = known.get(name)
            if mosaic is None or mosaic.metadata.get("made_from") != made_from:
                mosaic = _mosaic(installation, name, made_from, parts, run_id)
            joined.append(Granule(parts[0].task, mosaic))
    return joined


def _mosaic(
    installation: Installation, name: str, made_from: str, parts: Sequence[Granule], run_id: str
) -> ArtifactRecord:
    request_id, number = parts[0].task.request_id, _scene_number(parts[0].task)
    scratch_name = f"{request_id}-{name}"
    try:
        folder = installation.storage.scratch(scratch_name, run_id)
        target = folder / f"{request_id}-scene_{number}_pred.tif"
        merge_parts(
            [(installation.path_of(part.artifact), _window(part)) for part in parts],
            target,
            size=parts[0].task.scene_size or (0, 0),
            scratch=folder,
        )
        with rasterio.open(target) as dataset:
            bounds = footprint_of(dataset).bounds
            shape = (dataset.count, dataset.height, dataset.width)
        stored = installation.storage.commit(target, request_key(request_id, target.name))
    finally:
        installation.storage.discard_scratch(scratch_name, run_id)
    record = dataclasses.replace(
        parts[0].artifact,
        owner_id=request_id,
        name=name,
        key=stored.key,
        media_type=COG,
        size=stored.size,
        sha256=stored.sha256,
        metadata={
            **parts[0].artifact.metadata,
            "bounds": bounds,
            "shape": shape,
            "made_from": made_from,
        },
    )
    installation.catalog.put_artifacts([record])
    return record


def _scene_number(task: TaskRecord) -> int:
    """The scene's place in the request, whichever of its scenes there is something of."""
    return int(task.id.rpartition("-task_")[2].partition("_")[0])


def _window(part: Granule) -> tuple[int, int, int, int]:
    window = part.task.window
    if window is None:
        raise ValueError(f"{part.task.id} is a whole scene among the parts of one")
    return window


def _fingerprint(parts: Sequence[Granule]) -> str:
    content = "\n".join(f"{part.task.window} {part.artifact.sha256}" for part in parts)
    return hashlib.sha256(content.encode()).hexdigest()
