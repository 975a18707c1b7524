"""Stage ``postprocessed``: the input in colour, and statistics of the prediction."""

from __future__ import annotations

import json

from geostudio_dagster.catalog import TaskRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.predicting import COG
from geostudio_dagster.pipeline.processing import processed_prediction
from geostudio_dagster.pipeline.scenes import scene_of
from geostudio_dagster.pipeline.stage import ProducedFile, StageReport, StepOutput, WorkContext
from geostudio_dagster.postprocess.quicklook import write_quicklook
from geostudio_dagster.postprocess.statistics import statistics
from geostudio_dagster.raster.preview import preview_png


def postprocess_task(task: TaskRecord, context: WorkContext) -> StepOutput:
    """Make ``<task>_rgb.tif`` and ``<task>_stats.json``."""
    place = context.installation
    bundle = place.bundle(place.catalog.model(place.catalog.request(task.request_id).model_id))
    prediction = place.catalog.artifact(task.id, "prediction")
    rgb = context.scratch / f"{task.id}_rgb.tif"
    write_quicklook(
        place.path_of(scene_of(place, task)),
        bundle.manifest,
        rgb,
        window=task.window,
        scratch=context.scratch,
    )
    figures = statistics(place.path_of(processed_prediction(place, task)), bundle.manifest)
    stats = context.scratch / f"{task.id}_stats.json"
    stats.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", "utf-8")
    return StepOutput(
        files=[
            ProducedFile("rgb", rgb, rgb.name, COG, {"bounds": prediction.metadata["bounds"]}),
            ProducedFile("stats", stats, stats.name, "application/json", figures),
        ]
    )


def preview_of(installation: Installation, report: StageReport) -> bytes | None:
    """A PNG of the first quicklook of the stage."""
    for outcome in report.finished:
        for artifact in outcome.artifacts:
            if artifact.name == "rgb":
                return preview_png(installation.path_of(artifact))
    return None
