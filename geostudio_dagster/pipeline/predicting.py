"""Stage ``predictions``: the model over a task's scene, or over the task's window of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import rasterio
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.catalog import TaskRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import as_map
from geostudio_dagster.models.tuning import Tuning
from geostudio_dagster.pipeline.scenes import scene_of
from geostudio_dagster.pipeline.stage import ProducedFile, StageReport, StepOutput, WorkContext
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.raster.footprint import footprint_of
from geostudio_dagster.raster.preview import preview_png

COG = "image/tiff; application=geotiff; profile=cloud-optimized"

# What the thread that blends and writes does, and waits for, however many workers compute.
_ONE_AFTER_ANOTHER = ("stall", "forward", "blend", "write", "cog")


def predict_task(task: TaskRecord, context: WorkContext) -> StepOutput:
    """Predict one task into ``<task>_pred.tif``."""
    place = context.installation
    model = place.catalog.model(place.catalog.request(task.request_id).model_id)
    bundle = as_map(place.bundle(model))
    target = context.scratch / f"{task.id}_pred.tif"
    settings = place.settings
    options = PredictOptions(
        precision=bundle.manifest.precision or settings.precision,
        calibrations=settings.calibrations if settings.calibrate else None,
        onnx_engine=settings.onnx_engine,
        tuning=Tuning.of(settings.tuning),
        programs=settings.programs if settings.convert else None,
    )
    report = predict(
        place.path_of(scene_of(place, task)),
        bundle,
        target,
        window=task.window,
        options=options,
        scratch=context.scratch,
        tags={
            "GEOSTUDIO_MODEL": model.name,
            "GEOSTUDIO_MODEL_VERSION": str(model.version),
            "GEOSTUDIO_MODEL_DIGEST": model.digest,
            "GEOSTUDIO_REQUEST": task.request_id,
            "GEOSTUDIO_TASK": task.id,
        },
        cancelled=context.cancelled,
    )
    with rasterio.open(target) as dataset:
        bounds = footprint_of(dataset).bounds
    metadata = {"crs": report.crs, "bounds": bounds, "shape": report.shape}
    return StepOutput(
        files=[ProducedFile("prediction", target, target.name, COG, metadata)],
        metrics={
            "pixels": report.pixels,
            "seconds": working_seconds(report.seconds) - report.queued,
            "stages": report.seconds,
            "patches": report.patches,
            "nodata_fraction": report.nodata_fraction,
            "not_finite": report.not_finite,
            "class_counts": report.class_counts,
            "cog_errors": _cog_problems(target),
            "device": report.device,
            "engine": report.engine,
            "dtype": report.dtype,
            "batch_size": report.batch_size,
        },
    )


def working_seconds(stages: Mapping[str, float]) -> float:
    """Wall seconds that grow with the pixels, of which estimates of other requests are made.

    What each process does once (imports, loading, calibrating) is left out: over a small scene
    it takes most of the time, and says nothing of a large one. Reading and normalising go on
    beside the rest, and so do other predictions of the process.

    Args:
        stages: seconds by stage, as in a prediction's report.
    """
    return sum(stages[name] for name in _ONE_AFTER_ANOTHER)


def _cog_problems(path: Path) -> list[str]:
    _, errors, warnings = cog_validate(path, strict=True, quiet=True)
    return [*errors, *warnings]


def preview_of(installation: Installation, report: StageReport) -> bytes | None:
    """A PNG of the first finished prediction of the stage."""
    for outcome in report.finished:
        request = installation.catalog.request(outcome.task.request_id)
        manifest = installation.bundle(installation.catalog.model(request.model_id)).manifest
        for artifact in outcome.artifacts:
            if artifact.name == "prediction":
                return preview_png(installation.path_of(artifact), manifest=manifest)
    return None
