"""Stage ``tiles``: the scene of a task, brought and checked."""

from __future__ import annotations

import logging

from rasterio.crs import CRS

from geostudio_dagster.catalog import ArtifactRecord, TaskRecord
from geostudio_dagster.connectors.url import bring, verify_unchanged
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.area_scenes import GEOTIFF, bring_part
from geostudio_dagster.pipeline.stage import StepOutput, WorkContext
from geostudio_dagster.planning.recipes import is_scene_address

log = logging.getLogger(__name__)

# Downloads wait for the network, not for a core.
DOWNLOADS_AT_ONCE = 8


def bring_scene(task: TaskRecord, context: WorkContext) -> StepOutput:
    """Bring the scene (once for all parts of it) and see that the model can use it."""
    if is_scene_address(task.url):
        return bring_part(task, context)
    place = context.installation
    request = place.catalog.request(task.request_id)
    scene = bring(
        task.url,
        settings=place.settings,
        storage=place.storage,
        request_id=task.request_id,
        manifest=place.bundle(place.catalog.model(request.model_id)).manifest,
        planned_size=task.scene_size,
    )
    header = scene.header
    size = f"{header.width} x {header.height} pixels, {header.dtype}"
    crs = CRS.from_string(header.crs).to_string()  # short where it has a code
    log.info("scene %s: %s, bands %s, %s", scene.url, size, ", ".join(header.bands), crs)
    artifact = ArtifactRecord(
        owner_id=task.id,
        name="scene",
        key=scene.key or scene.uri,
        media_type=GEOTIFF,
        size=scene.size,
        sha256=scene.sha256,
        metadata=scene.metadata,
    )
    return StepOutput(external=[artifact], metrics={"bytes": scene.size})


def scene_of(installation: Installation, task: TaskRecord) -> ArtifactRecord:
    """The task's scene, still as it was when it was brought.

    Raises:
        NotFound: it was never brought.
        TaskError: somebody changed the user's own file since.
    """
    artifact = installation.catalog.artifact(task.id, "scene")
    if artifact.metadata.get("external"):
        verify_unchanged(
            installation.path_of(artifact), artifact.size or 0, artifact.metadata["modified_ns"]
        )
    return artifact
