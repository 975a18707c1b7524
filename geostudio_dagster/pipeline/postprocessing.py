"""Stage ``postprocessed``: the input in colour, masks, a picture and figures of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rasterio

from geostudio_dagster.catalog import TaskRecord
from geostudio_dagster.cores import usable_cores
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import BundleManifest, as_map
from geostudio_dagster.pipeline.predicting import COG
from geostudio_dagster.pipeline.processing import processed_prediction
from geostudio_dagster.pipeline.scenes import scene_of
from geostudio_dagster.pipeline.stage import ProducedFile, StageReport, StepOutput, WorkContext
from geostudio_dagster.planning.masks import MASKED_CLASSES, Masking
from geostudio_dagster.postprocess.masking import write_masked
from geostudio_dagster.postprocess.quicklook import write_quicklook
from geostudio_dagster.postprocess.statistics import statistics
from geostudio_dagster.raster.opening import ONLY_THE_FILE
from geostudio_dagster.raster.preview import QUICKLOOK_SIDE, preview_png

_MOST_AT_ONCE = 4  # each takes memory, for rows of two rasters


def at_once() -> int:
    """Tasks of a shard to work at a time: what they do is mostly for one core each."""
    return min(usable_cores(), _MOST_AT_ONCE)


def postprocess_task(task: TaskRecord, context: WorkContext) -> StepOutput:
    """Make what people look at beside the prediction.

    That is ``<task>_rgb.tif``, ``<task>_stats.json``, ``<task>_quicklook.png`` and, if wished,
    ``<task>_pred_masked.tif``.
    """
    place = context.installation
    request = place.catalog.request(task.request_id)
    bundle = as_map(place.bundle(place.catalog.model(request.model_id)))
    prediction = place.catalog.artifact(task.id, "prediction")
    scene = scene_of(place, task)
    rgb = context.scratch / f"{task.id}_rgb.tif"
    write_quicklook(
        place.path_of(scene),
        bundle.manifest,
        rgb,
        window=task.window,
        scratch=context.scratch,
        limits=scene.metadata.get("stretch"),
    )
    shown = place.path_of(processed_prediction(place, task))
    masked = _masked(task, context, shown, request.spec.get("masking"))
    figures = statistics(masked or shown, bundle.manifest)
    stats = context.scratch / f"{task.id}_stats.json"
    stats.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", "utf-8")
    picture = context.scratch / f"{task.id}_quicklook.png"
    picture.write_bytes(_picture(masked or shown, bundle.manifest))
    files = [
        ProducedFile("rgb", rgb, rgb.name, COG, {"bounds": prediction.metadata["bounds"]}),
        ProducedFile("quicklook", picture, picture.name, "image/png"),
        ProducedFile("stats", stats, stats.name, "application/json", figures),
    ]
    if masked is not None:
        files.append(ProducedFile("masked", masked, masked.name, COG, prediction.metadata))
    return StepOutput(files=files)


def _picture(result: Path, manifest: BundleManifest) -> bytes:
    """A PNG of what the map shows: the result in its colours."""
    masked = {item.value: item.colour for item in MASKED_CLASSES.values()}
    with rasterio.Env(**ONLY_THE_FILE):
        return preview_png(result, QUICKLOOK_SIDE, manifest, masked)


def _masked(
    task: TaskRecord, context: WorkContext, prediction: Path, masking: dict[str, Any] | None
) -> Path | None:
    """The prediction with clouds, snow and ice masked; None where that is not asked for."""
    if masking is None:
        return None
    place = context.installation
    target = context.scratch / f"{task.id}_pred_masked.tif"
    write_masked(
        prediction,
        place.path_of(scene_of(place, task)),
        Masking.model_validate(masking),
        target,
        scratch=context.scratch,
        window=task.window,
    )
    return target


def preview_of(installation: Installation, report: StageReport) -> bytes | None:
    """A PNG of the first quicklook of the stage."""
    for outcome in report.finished:
        for artifact in outcome.artifacts:
            if artifact.name == "rgb":
                return preview_png(installation.path_of(artifact))
    return None
