"""Stage ``tiles`` for areas: a task's part of a scene, made of the granules of its recipe."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from affine import Affine
from rasterio.crs import CRS

from geostudio_dagster.catalog import ArtifactRecord, TaskRecord
from geostudio_dagster.connectors.addresses import (
    RemoteScene,
    UnacceptableAddressError,
    http_url,
    refuse_closed_number,
)
from geostudio_dagster.connectors.fetch import download
from geostudio_dagster.connectors.header import SceneHeader, check_scene
from geostudio_dagster.connectors.ranges import RangesUnsupportedError, RemoteFile, file_name
from geostudio_dagster.errors import NotFound, TaskError
from geostudio_dagster.pipeline.stage import StepOutput, WorkContext
from geostudio_dagster.planning.recipes import (
    RecipeGranule,
    SceneRecipe,
    number_of,
    recipe_key,
)
from geostudio_dagster.raster.composite import Composite, stretch_of, write_composite
from geostudio_dagster.raster.opening import File
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.regridding import BandInput, Canvas
from geostudio_dagster.settings import Settings
from geostudio_dagster.storage import request_key

log = logging.getLogger(__name__)

GEOTIFF = "image/tiff; application=geotiff"
_AT_ONCE = 4  # in one process: each holds its granules' files open, with what is read of them
_free = threading.BoundedSemaphore(_AT_ONCE)


def bring_part(task: TaskRecord, context: WorkContext) -> StepOutput:
    """Make a task's scene: its window and the margin, in a file of the whole scene's grid.

    Raises:
        TaskError: a granule cannot be read, or the model cannot use what came of it.
        Cancelled: as asked.
    """
    place = context.installation
    recipe = _recipe(context, task)
    manifest = place.bundle(
        place.catalog.model(place.catalog.request(task.request_id).model_id)
    ).manifest
    path = context.scratch / "scene.tif"
    box = _needed(task, recipe)
    granules = [recipe.granules[number] for number in recipe.tasks[task.id]]
    for granule in granules:
        cloud = "unknown" if granule.cloud is None else f"{granule.cloud:g} %"
        log.info("granule %s of %s, clouds %s", granule.id, granule.moment, cloud)
    with _free:
        made = _written(recipe, granules, box, path, context)
    shown = f"{recipe.source} on {recipe.date}"
    log.info("%s: %.1f %% of the pixels have data", shown, 100 * made.filled)
    metadata = _metadata(task, recipe, granules, check_scene(path, shown, manifest))
    metadata["stretch"] = _stretch(recipe, path, box, made)
    stored = place.storage.commit(path, request_key(task.request_id, f"scenes/{task.id}.tif"))
    artifact = ArtifactRecord(
        owner_id=task.id,
        name="scene",
        key=stored.key,
        media_type=GEOTIFF,
        size=stored.size,
        sha256=stored.sha256,
        metadata=metadata,
    )
    figures = {"bytes": stored.size, "granules": len(granules), "filled": made.filled}
    return StepOutput(external=[artifact], metrics=figures)


def _recipe(context: WorkContext, task: TaskRecord) -> SceneRecipe:
    key = recipe_key(task.request_id, number_of(task.url))
    try:
        text = context.installation.storage.read_bytes(key)
    except NotFound as error:
        raise TaskError(
            "not_found", "What this scene is made of is not there; submit the request again."
        ) from error
    return SceneRecipe.model_validate_json(text)


def _needed(task: TaskRecord, recipe: SceneRecipe) -> Box:
    """The task's window with the margin, as far as the scene goes."""
    if task.window is None:
        return Box(0, 0, recipe.width, recipe.height)
    column, row, width, height = task.window
    left, top = max(0, column - recipe.margin), max(0, row - recipe.margin)
    right = min(recipe.width, column + width + recipe.margin)
    bottom = min(recipe.height, row + height + recipe.margin)
    return Box(left, top, right - left, bottom - top)


def _written(
    recipe: SceneRecipe,
    granules: Sequence[RecipeGranule],
    box: Box,
    path: Path,
    context: WorkContext,
) -> Composite:
    canvas = Canvas(
        CRS.from_string(recipe.crs), Affine(*recipe.transform), recipe.width, recipe.height
    )
    with ExitStack() as stack:
        opened = _Files(context.installation.settings, context.scratch, stack)
        return write_composite(
            [_inputs(granule, recipe, opened) for granule in granules],
            [band.name for band in recipe.bands],
            canvas,
            box,
            path,
            physical=recipe.physical,
            cancelled=context.cancelled,
        )


def _inputs(granule: RecipeGranule, recipe: SceneRecipe, files: _Files) -> list[BandInput]:
    inputs = []
    for band, pixels in zip(recipe.bands, granule.pixels, strict=True):
        scale = pixels.scale or 1.0
        inputs.append(
            BandInput(
                file=files.opener(pixels.href),
                band=pixels.band,
                shift=0.0 if band.codes else pixels.offset / scale,
                scale=scale if recipe.physical and not band.codes else 1.0,
                nodata=pixels.nodata,
                codes=band.codes,
            )
        )
    return inputs


class _Files:
    """Remote files, each opened when it is first needed, and closed with ``stack``."""

    def __init__(self, settings: Settings, scratch: Path, stack: ExitStack) -> None:
        self._settings = settings
        self._scratch = scratch
        self._stack = stack
        self._openers: dict[str, Callable[[], File]] = {}

    def opener(self, href: str) -> Callable[[], File]:
        """What opens the file at ``href``; the same for the same address."""
        return self._openers.setdefault(href, lambda: self._open(href))

    def _open(self, href: str) -> File:
        try:
            url = http_url(href)
            refuse_closed_number(url.host, href, self._settings)
        except UnacceptableAddressError as error:
            raise TaskError(error.code, str(error)) from error
        scene = RemoteScene(url)
        try:
            return self._stack.enter_context(RemoteFile(scene, self._settings.fetch))
        except RangesUnsupportedError:
            number = list(self._openers).index(href)
            path = self._scratch / f"{number}-{file_name(scene)}"
            download(scene, path, self._settings.fetch)
            return path


def _metadata(
    task: TaskRecord,
    recipe: SceneRecipe,
    granules: Sequence[RecipeGranule],
    header: SceneHeader,
) -> dict[str, Any]:
    return {
        "url": task.url,
        "external": False,
        "modified_ns": None,
        **header.facts,
        "source": recipe.source,
        "granules": [granule.id for granule in granules],
        "items": [granule.link for granule in granules if granule.link],
    }


def _stretch(
    recipe: SceneRecipe, path: Path, box: Box, made: Composite
) -> dict[str, tuple[float, float]] | None:
    """Limits of the picture: those that the source tells, so that neighbours look alike."""
    if made.dtype == "uint8":
        return None
    if recipe.stretch is not None:
        return {band.name: recipe.stretch for band in recipe.bands}
    return stretch_of(path, box, made.nodata)
