"""One prediction under way: batches are read, computed and blended, finished rows written."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rasterio.transform import array_bounds

from geostudio_dagster.errors import Cancelled
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.memory import give_back_memory
from geostudio_dagster.prediction.batches import Batch, BatchReader, Patch, RowStart
from geostudio_dagster.prediction.panels import Panel, choose_reading, panels
from geostudio_dagster.prediction.readahead import read_ahead
from geostudio_dagster.prediction.report import PredictionReport, StageClock, peak_rss
from geostudio_dagster.prediction.turns import Place
from geostudio_dagster.raster.patches import Box, PatchGrid
from geostudio_dagster.raster.scene import Scene

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

Progress = Callable[[int, int], None]

_TIDY_AFTER = 2000  # patches; some milliseconds each time
_VERSIONS = ("geostudio-dagster", "torch", "rasterio", "numpy")


class Stream:
    """One prediction under way: what is read, computed and written, and how."""

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
        place: Place,
    ) -> None:
        self._scene = scene
        self._core = core
        self._bundle = bundle
        self._model = model
        self._plan = plan
        self._clock = clock
        self._memory = memory
        self._place = place
        self._grid = grid
        self._reading = choose_reading(
            scene.block,
            core.width,
            grid.size,
            pixel=len(scene.channels) * scene.dtype.itemsize + 1,
            output=4 * model.channels + 1,
            memory=memory,
        )
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

        device = self._plan.device
        output = PredictionFile(
            path,
            self._scene,
            self._core,
            manifest=self._bundle.manifest,
            channels=self._model.channels,
            clock=self._clock,
        )
        with self._room(), output.raster, Seam(path.parent) as seam, beside(device):
            output.describe(self._tags() | tags)
            sink = _Progressing(output, self._core, progress)
            self._predict(sink, seam, cancelled)
        return output

    @contextmanager
    def _room(self) -> Iterator[None]:
        """In the body there is room for this scene's pixels beside those of other predictions."""
        needed = self._reading.per_column * (self._core.width + self._grid.size)
        began = time.perf_counter()
        with self._place.room(needed, self._memory):
            # No span of the timeline, which has one prediction, and that never waits here.
            self._clock.add("room", time.perf_counter() - began)
            yield

    def _predict(
        self, sink: _Progressing, seam: Seam, cancelled: Callable[[], bool] | None
    ) -> None:
        from geostudio_dagster.prediction.blend import Blender
        from geostudio_dagster.prediction.forward import ForwardPass, host_memory
        from geostudio_dagster.prediction.normalising import Normalisation

        reader = BatchReader(
            self._scene,
            self._grid,
            self._core,
            panels(self._grid, self._core, self._reading.widest),
            load=self._reading.load,
            batch_size=self._plan.batch_size,
            clock=self._clock,
            room=host_memory(self._plan.device),
        )
        channels, device = self._model.channels, self._model.device
        blender = Blender(self._grid, self._core, sink, seam, channels=channels, device=device)
        forward = ForwardPass(
            self._model,
            self._plan,
            self._clock,
            place=self._place,
            normalise=Normalisation(self._scene.channels, self._bundle.manifest.fill),
        )
        with (
            read_ahead(reader.batches(), self._clock) as batches,
            closing(forward.over(_until(cancelled, batches))) as computed,
        ):
            for batch, outputs in computed:
                before, self._patches = self._patches, self._patches + batch.used
                if self._patches // _TIDY_AFTER > before // _TIDY_AFTER:
                    give_back_memory()
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
            folded=self._model.folded,
            channels_last=self._model.channels_last,
            packed=self._model.packed,
            dtype=plan.dtype,
            patch=grid.size,
            overlap=grid.overlap,
            trim=grid.trim,
            seconds=self._clock.seconds | {"total": self._clock.total()},
            forward_busy=self._clock.busy,
            queued=self._clock.queued,
            stalls=self._clock.stalls,
            nodata_fraction=output.nodata_pixels / pixels,
            not_finite=output.not_finite,
            class_counts=output.class_counts(),
            bounds=(west, south, east, north),
            crs=self._scene.crs.to_string(),
            shape=(output.bands, core.height, core.width),
            peak_rss=peak_rss(),
            versions=_versions(self._model.engine),
        )

    def _tags(self) -> dict[str, str]:
        """What the file says of its making. Nothing here may depend on time or chance."""
        plan, grid, manifest, model = self._plan, self._grid, self._bundle.manifest, self._model
        return {
            "GEOSTUDIO_MODEL": manifest.name,
            "GEOSTUDIO_DIGEST": self._bundle.digest,
            "GEOSTUDIO_BATCH": str(plan.batch_size),
            "GEOSTUDIO_ENGINE": model.engine,
            "GEOSTUDIO_DTYPE": plan.dtype,
            "GEOSTUDIO_DEVICE": plan.device,
            "GEOSTUDIO_THREADS": f"{plan.workers}x{plan.threads}",
            "GEOSTUDIO_CHOSEN": "measured" if plan.calibrated else "by rule",
            "GEOSTUDIO_TUNING": str(model.tuning) if model.engine == "torch" else "none",
            "GEOSTUDIO_FOLDED": str(model.folded),
            "GEOSTUDIO_LAYOUT": _layout(model, manifest.dates),
            "GEOSTUDIO_PATCH": str(grid.size),
            "GEOSTUDIO_OVERLAP": str(grid.overlap),
            "GEOSTUDIO_TRIM": str(grid.trim),
            "GEOSTUDIO_BANDS": ",".join(band.name for band in manifest.bands),
            "GEOSTUDIO_SCALE_TAGS": "applied" if manifest.scaled_by_tags else "ignored",
        }


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


def _layout(model: Model, dates: int) -> str:
    """How a network computes; one without weights that can be laid out may follow its pixels."""
    if model.channels_last:
        return "channels last"
    given = model.engine == "torch" and model.tuning.channels_last and dates == 1
    return "channels last pixels" if given else "as built"


def _versions(engine: str) -> dict[str, str]:
    """Versions of what a result depends on; an endpoint's is not known."""
    names = dict.fromkeys((*_VERSIONS, engine))
    names.pop("endpoint", None)
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as of onnxruntime-gpu
        return str(getattr(sys.modules.get(name), "__version__", "unknown"))


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
        elif isinstance(event, RowStart):
            blender.start(event)
        else:
            blender.end(event)


def _until(cancelled: Callable[[], bool] | None, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        stop_if(cancelled)
        yield batch


def stop_if(cancelled: Callable[[], bool] | None) -> None:
    """Raises :class:`Cancelled` where ``cancelled`` says so."""
    if cancelled is not None and cancelled():
        raise Cancelled("The prediction was stopped; nothing of it was kept.")
