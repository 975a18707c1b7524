"""From a scene to a prediction, in constant memory: read, normalise, forward pass, blend, write.

A reading thread makes batches a little ahead; this thread (or its workers) runs the model and
blends; finished rows go to a scratch file, which becomes a COG at the end. Wide scenes are
worked in panels, each of which has some columns of the scene's one patch grid.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import rasterio
from rasterio.transform import array_bounds

from geostudio_dagster.cores import usable_cores
from geostudio_dagster.errors import Cancelled, TaskError
from geostudio_dagster.models.bundle import Bundle, with_patch
from geostudio_dagster.models.cache import loaded
from geostudio_dagster.prediction.batches import Batch, BatchReader, Patch
from geostudio_dagster.prediction.options import PredictOptions
from geostudio_dagster.prediction.panels import Panel, panels
from geostudio_dagster.prediction.readahead import read_ahead
from geostudio_dagster.prediction.report import PredictionReport, StageClock, peak_rss
from geostudio_dagster.prediction.timeline import write_timeline
from geostudio_dagster.raster.cog import remove_scratch, write_cog
from geostudio_dagster.raster.patches import Box, PatchGrid
from geostudio_dagster.raster.scene import Scene, Source
from geostudio_dagster.raster.strips import load_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from geostudio_dagster.models.runtime import Model
    from geostudio_dagster.prediction.blend import Blender
    from geostudio_dagster.prediction.forward import ForwardPlan
    from geostudio_dagster.prediction.output import PredictionFile
    from geostudio_dagster.prediction.seams import Seam

log = logging.getLogger(__name__)

_GDAL_CACHE = 32 * 1024**2  # bytes, unlike the environment variable, which is in megabytes
# A thread decodes some 30 Mpx/s of 6 bands. A model on 2 cores wants 2 Mpx/s, on a GPU 100.
_MOST_DECODERS = 8
_STAGES = ("model", "calibrate", "read", "normalise", "stall", "forward", "blend", "write", "cog")
_VERSIONS = ("geostudio-dagster", "torch", "rasterio", "numpy")

Progress = Callable[[int, int], None]


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
    options = options or PredictOptions()
    clock = StageClock(*_STAGES, profiling=options.profile is not None)
    decoders = max(1, min(_MOST_DECODERS, usable_cores() // 2))
    with (
        rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE),
        Scene(source, bundle.manifest, decoders) as scene,
    ):
        run = _prepare(scene, scene.core(window), bundle, options, clock)
        path = scratch / f"{target.stem}.scratch.tif"
        try:
            output = run.into(path, dict(tags or {}), progress, cancelled)
            scene.check_unchanged()
            _stop_if(cancelled)
            with clock.measure("cog"):
                write_cog(path, target, threads=min(usable_cores(), 4))
        finally:
            remove_scratch(path)
        report = run.report(output)
    if options.profile is not None:
        write_timeline(options.profile, clock.spans or [], report)
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report.seconds.items())
    log.info("%d patches, %d skipped; seconds: %s", report.patches, report.skipped_patches, stages)
    return report


def _prepare(
    scene: Scene, core: Box, bundle: Bundle, options: PredictOptions, clock: StageClock
) -> _Run:
    """Load the model and choose how to go about the work; no pixel has been read yet."""
    # Only now: importing torch costs a second, which a scene that can't be read needn't pay.
    from geostudio_dagster.prediction.forward import choose_device

    grid = _patch_grid(scene, bundle, options)
    with clock.measure("model"):
        fitting = with_patch(bundle, grid.size)
        device = choose_device(options, bundle.manifest.runtime)
        model = loaded(fitting, device, onnx_engine=options.onnx_engine, programs=options.programs)
    with clock.measure("calibrate"):
        plan = _plan(options, model, bundle, grid, core)
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
    return _Run(
        scene,
        core,
        bundle=bundle,
        model=model,
        plan=plan,
        grid=grid,
        memory=options.memory,
        clock=clock,
    )


class _Run:
    """One prediction under way."""

    def __init__(
        self,
        scene: Scene,
        core: Box,
        *,
        bundle: Bundle,
        model: Model,
        plan: ForwardPlan,
        grid: PatchGrid,
        memory: int,
        clock: StageClock,
    ) -> None:
        self._scene = scene
        self._core = core
        self._bundle = bundle
        self._model = model
        self._plan = plan
        self._clock = clock
        self._memory = memory
        self._grid = grid
        self._patches = 0
        self._skipped = 0

    def into(
        self,
        path: Path,
        tags: dict[str, str],
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> PredictionFile:
        """Predict the core into the scratch raster at ``path``."""
        from geostudio_dagster.prediction.forward import beside
        from geostudio_dagster.prediction.output import PredictionFile
        from geostudio_dagster.prediction.seams import Seam

        output = PredictionFile(
            path,
            self._scene,
            self._core,
            manifest=self._bundle.manifest,
            channels=self._model.channels,
            clock=self._clock,
        )
        with output.raster, Seam(path.parent) as seam, beside(self._plan.device):
            output.describe(self._tags() | tags)
            sink = _Progressing(output, self._core, progress)
            self._predict(sink, seam, cancelled)
        return output

    def _predict(
        self, sink: _Progressing, seam: Seam, cancelled: Callable[[], bool] | None
    ) -> None:
        from geostudio_dagster.prediction.blend import Blender
        from geostudio_dagster.prediction.forward import ForwardPass, host_memory

        reader = BatchReader(
            self._scene,
            self._grid,
            self._core,
            panels(self._grid, self._core, self._widest()),
            batch_size=self._plan.batch_size,
            fill=self._bundle.manifest.fill,
            clock=self._clock,
            room=host_memory(self._plan.device),
        )
        channels, device = self._model.channels, self._model.device
        blender = Blender(self._grid, self._core, sink, seam, channels=channels, device=device)
        forward = ForwardPass(self._model, self._plan, self._clock)
        with (
            read_ahead(reader.batches(), self._clock) as batches,
            closing(forward.over(_until(cancelled, batches))) as computed,
        ):
            for batch, outputs in computed:
                self._patches += batch.used
                _blend(batch, outputs, blender, self._clock)
                reader.recycle(batch)
        blender.finish()
        self._skipped = reader.skipped

    def report(self, output: PredictionFile) -> PredictionReport:
        """What happened, once the output is in place."""
        core, plan, grid = self._core, self._plan, self._grid
        pixels = core.width * core.height
        west, south, east, north = array_bounds(core.height, core.width, output.transform)
        return PredictionReport(
            pixels=pixels,
            patches=self._patches,
            skipped_patches=self._skipped,
            batch_size=plan.batch_size,
            workers=plan.workers,
            threads=plan.threads,
            device=plan.device,
            engine=self._model.engine,
            dtype=plan.dtype,
            patch=grid.size,
            overlap=grid.overlap,
            trim=grid.trim,
            seconds=self._clock.seconds | {"total": self._clock.total()},
            forward_busy=self._clock.busy,
            stalls=self._clock.stalls,
            nodata_fraction=output.nodata_pixels / pixels,
            class_counts=output.class_counts(),
            bounds=(west, south, east, north),
            crs=self._scene.crs.to_string(),
            shape=(output.bands, core.height, core.width),
            peak_rss=peak_rss(),
            versions=_versions(self._model.engine),
        )

    def _tags(self) -> dict[str, str]:
        """What the file says of its making. Nothing here may depend on time or chance."""
        plan, grid, manifest = self._plan, self._grid, self._bundle.manifest
        return {
            "GEOSTUDIO_MODEL": manifest.name,
            "GEOSTUDIO_DIGEST": self._bundle.digest,
            "GEOSTUDIO_BATCH": str(plan.batch_size),
            "GEOSTUDIO_ENGINE": self._model.engine,
            "GEOSTUDIO_DTYPE": plan.dtype,
            "GEOSTUDIO_DEVICE": plan.device,
            "GEOSTUDIO_THREADS": f"{plan.workers}x{plan.threads}",
            "GEOSTUDIO_CHOSEN": "measured" if plan.calibrated else "by rule",
            "GEOSTUDIO_FOLDED": str(self._model.folded),
            "GEOSTUDIO_PATCH": str(grid.size),
            "GEOSTUDIO_OVERLAP": str(grid.overlap),
            "GEOSTUDIO_TRIM": str(grid.trim),
            "GEOSTUDIO_BANDS": ",".join(band.name for band in manifest.bands),
            "GEOSTUDIO_SCALE_TAGS": "applied" if manifest.scaled_by_tags else "ignored",
        }

    def _widest(self) -> int:
        """Pixels that a panel may be wide for its rows to fit the memory."""
        size = self._grid.size
        rows = size + load_rows(self._scene)
        per_column = rows * (len(self._scene.channels) * self._scene.dtype.itemsize + 1)
        per_column += size * (4 * self._model.channels + 1)
        return max(self._memory // per_column - 2 * size, 2 * size)


class _Progressing:
    """A row sink that tells how far it is."""

    def __init__(self, output: PredictionFile, core: Box, progress: Progress | None) -> None:
        self._output = output
        self._progress = progress
        self._done = 0
        self._all = core.width * core.height
        self._told = 0

    def write(self, box: Box, blended: Tensor, valid: NDArray[np.bool_]) -> None:
        """Write the rows and count them."""
        self._output.write(box, blended, valid)
        self._done += box.width * box.height
        if (tenths := 10 * self._done // self._all) > self._told:
            self._told = tenths
            log.info("predicted %d %%", 10 * tenths)
        if self._progress:
            self._progress(self._done, self._all)


def _plan(
    options: PredictOptions, model: Model, bundle: Bundle, grid: PatchGrid, core: Box
) -> ForwardPlan:
    """By rule, or as measured where the work is long enough for that to pay."""
    from geostudio_dagster.prediction import calibration
    from geostudio_dagster.prediction.forward import plan_forward

    plan = plan_forward(options, model)
    folder = options.calibrations
    # An endpoint says itself how much it takes at a time; it is not to be tried out.
    if folder is None or model.concurrency or grid.count(core) < calibration.LEAST_PATCHES:
        return plan
    planes = bundle.manifest.dates * len(bundle.manifest.bands)
    shape = planes, grid.size, grid.size
    return calibration.calibrated(
        plan, options, model, folder=folder, digest=bundle.digest, shape=shape
    )


def _versions(engine: str) -> dict[str, str]:
    """Versions of what a result depends on; an endpoint's is not known."""
    names = dict.fromkeys((*_VERSIONS, engine))
    names.pop("endpoint", None)
    return {name: importlib.metadata.version(name) for name in names}


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


def _blend(batch: Batch, outputs: Tensor | None, blender: Blender, clock: StageClock) -> None:
    """Take a batch's events in order: panels and rows begin, patches add up."""
    slot = 0
    for event in batch.events:
        if isinstance(event, Patch):
            assert outputs is not None, "a batch with patches has outputs"  # noqa: S101
            with clock.measure("blend"):
                blender.add(event, outputs[slot])
            slot += 1
        elif isinstance(event, Panel):
            blender.begin(event)
        else:
            blender.start(event)


def _until(cancelled: Callable[[], bool] | None, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        _stop_if(cancelled)
        yield batch


def _stop_if(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled("The prediction was stopped; nothing of it was kept.")
