"""From a scene to a prediction, in constant memory: read, normalise, forward pass, blend, write.

A reading thread makes batches a little ahead; workers normalise them and run the model; this
thread blends; finished rows go to a scratch file, which becomes a COG at the end. Wide scenes are
worked in panels, each of which has some columns of the scene's one patch grid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import rasterio

from geostudio_dagster.cores import usable_cores
from geostudio_dagster.errors import TaskError
from geostudio_dagster.importing import importing
from geostudio_dagster.models.bundle import Bundle, with_patch
from geostudio_dagster.models.cache import loaded
from geostudio_dagster.prediction.options import PredictOptions
from geostudio_dagster.prediction.report import PredictionReport, StageClock
from geostudio_dagster.prediction.streaming import Progress, Stream, stop_if
from geostudio_dagster.prediction.timeline import write_timeline
from geostudio_dagster.prediction.turns import Place
from geostudio_dagster.raster.cog import remove_scratch, write_cog
from geostudio_dagster.raster.opening import Source
from geostudio_dagster.raster.patches import Box, PatchGrid
from geostudio_dagster.raster.scene import Scene

if TYPE_CHECKING:
    from geostudio_dagster.models.runtime import Model
    from geostudio_dagster.prediction.forward import ForwardPlan
    from geostudio_dagster.prediction.output import PredictionFile

log = logging.getLogger(__name__)

_GDAL_CACHE = 32 * 1024**2  # bytes, unlike the environment variable, which is in megabytes
# A thread decodes some 30 Mpx/s of 6 bands. A model on 2 cores wants 2 Mpx/s, on a GPU 100.
_MOST_DECODERS = 8
_STAGES = (
    "model",
    "calibrate",
    "room",
    "read",
    "normalise",
    "stall",
    "forward",
    "blend",
    "write",
    "cog",
)


def predict(
    source: Source,
    bundle: Bundle,
    target: Path,
    *,
    scratch: Path,
    window: tuple[int, int, int, int] | None = None,
    tags: Mapping[str, str] | None = None,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> PredictionReport:
    """Predict a scene, or a window of it, into ``target``, a COG on the scene's grid.

    Args:
        source: a GeoTIFF; or one per date; or the files of one scene's bands.
        bundle: the model.
        target: appears only when complete; equal bytes whenever made again.
        scratch: a folder for temporary files, on the file system of ``target`` at best.
        window: column, row, width and height in the scene's pixels. Its pixels come out as
            they would if the whole scene were predicted.
        tags: further tags of the file, such as ``GEOSTUDIO_REQUEST``.
        options: precision, batch size, device and the like.
        progress: called with the done and all pixels of the window, from this thread.
        cancelled: asked between batches.

    Raises:
        TaskError: the scene or the model can't be used; see :class:`Scene` and
            :func:`load_runtime` for the codes.
        Cancelled: ``cancelled`` said so; nothing is left at ``target``.
    """
    options, place = options or PredictOptions(), Place(cancelled or bool)
    clock = StageClock(*_STAGES, profiling=options.profile is not None)
    decoders = max(1, min(_MOST_DECODERS, usable_cores() // 2))
    with (
        rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE),
        Scene(source, bundle.manifest, decoders) as scene,
    ):
        stream = _prepare(scene, scene.core(window), bundle, options, clock=clock, place=place)
        path = scratch / f"{target.stem}.scratch.tif"
        try:
            output = stream.into(path, dict(tags or {}), progress, cancelled)
            scene.check_unchanged()
            _check_numbers(output, bundle)
            stop_if(cancelled)
            with clock.measure("cog"):
                write_cog(path, target, threads=min(usable_cores(), 4))
        finally:
            remove_scratch(path)
        report = stream.report(output)
    if options.profile is not None:
        try:
            write_timeline(options.profile, clock.spans or [], report)
        except OSError as error:  # no reason to fail a prediction that is complete
            log.warning("%s could not be drawn (%s)", options.profile, error)
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report.seconds.items())
    log.info("%d patches, %d skipped; seconds: %s", report.patches, report.skipped_patches, stages)
    return report


def _check_numbers(output: PredictionFile, bundle: Bundle) -> None:
    """Make sure that the network made numbers of some pixels, where there are any."""
    if not output.not_finite:
        return
    name = bundle.manifest.name
    if output.not_finite == output.pixels_with_data:
        raise TaskError(
            "model_unusable",
            f"Model {name} gives no finite number for any pixel; check its weights, and the "
            "scaling in its manifest.",
        )
    log.warning(
        "model %s gives no finite number for %d pixels; they are no data", name, output.not_finite
    )


def _prepare(
    scene: Scene,
    core: Box,
    bundle: Bundle,
    options: PredictOptions,
    *,
    clock: StageClock,
    place: Place,
) -> Stream:
    """Load the model and choose how to go about the work; no pixel has been read yet."""
    # Only now: importing torch costs a second, which a scene that can't be read needn't pay.
    with importing("torch"):
        from geostudio_dagster.prediction.forward import choose_device

    grid = _patch_grid(scene, bundle, options)
    with clock.measure("model"):
        fitting = with_patch(bundle, grid.size)
        device = choose_device(options, bundle.manifest.runtime)
        model = loaded(
            fitting,
            device,
            onnx_engine=options.onnx_engine,
            programs=options.programs,
            tuning=options.tuning,
        )
    precise = replace(options, precision=options.precision or bundle.manifest.precision)
    with clock.measure("calibrate"):
        patches, most = grid.count(core), grid.count(scene.core(None))
        plan = _plan(precise, model, fitting, patches=patches, most=most, place=place)
    log.info(
        "model %s by %s on %s, %s, batches of %d, %d x %d threads; %d x %d pixels to predict",
        bundle.manifest.name,
        model.engine,
        plan.device,
        plan.dtype,
        plan.batch_size,
        plan.workers,
        plan.threads,
        core.width,
        core.height,
    )
    return Stream(
        scene,
        core,
        bundle=bundle,
        model=model,
        plan=plan,
        grid=grid,
        memory=options.memory,
        clock=clock,
        place=place,
    )


def _plan(
    options: PredictOptions,
    model: Model,
    bundle: Bundle,
    *,
    patches: int,
    most: int,
    place: Place,
) -> ForwardPlan:
    """By rule, or as measured where the work is long enough for that to pay.

    ``patches`` are those of the window, ``most`` those of the whole scene.
    """
    from geostudio_dagster.prediction import calibration
    from geostudio_dagster.prediction.forward import plan_forward

    plan = plan_forward(options, model, most)
    folder = options.calibrations
    # An endpoint says itself how much it takes at a time; it is not to be tried out.
    if folder is None or model.concurrency or patches < calibration.LEAST_PATCHES:
        return plan
    planes, size = bundle.manifest.dates * len(bundle.manifest.bands), bundle.manifest.patch.size
    shape, alone = (planes, size, size), place.alone(plan.device)
    return calibration.calibrated(
        plan, options, model, folder=folder, digest=bundle.digest, shape=shape, alone=alone
    )


def _patch_grid(scene: Scene, bundle: Bundle, options: PredictOptions) -> PatchGrid:
    patch = bundle.manifest.patch
    size = options.patch or patch.size
    overlap = patch.overlap if options.overlap is None else options.overlap
    trim = patch.trim if options.trim is None else options.trim
    if overlap >= size or 2 * trim > overlap or trim < 0:
        raise TaskError(
            "bad_patches",
            f"Patches of {size} pixels can't overlap by {overlap} with {trim} trimmed; overlap "
            "must be below the patch's side and at least twice the trim.",
        )
    return PatchGrid(scene.height, scene.width, size, overlap, trim)
