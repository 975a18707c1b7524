"""One prediction at a terminal: the engine alone, without Dagster, catalog or storage."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rasterio._err import CPLE_BaseError  # what GDAL says without rasterio's words for it
from rasterio.errors import RasterioError
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from geostudio_dagster.errors import GeostudioError, InvalidRequest, TaskError
from geostudio_dagster.models.bundle import (
    Bundle,
    BundleManifest,
    OnnxEngine,
    load_bundle,
    with_patch,
    with_probabilities,
)
from geostudio_dagster.models.cache import loaded
from geostudio_dagster.models.programs import CONVERTED, ProgramFile
from geostudio_dagster.models.tuning import Tuning
from geostudio_dagster.prediction.destination import Destination, destination
from geostudio_dagster.prediction.engine import predict
from geostudio_dagster.prediction.files import Named, check_apart
from geostudio_dagster.prediction.inputs import readable
from geostudio_dagster.prediction.options import PredictOptions
from geostudio_dagster.prediction.report import PredictionReport
from geostudio_dagster.prediction.streaming import Progress as Report
from geostudio_dagster.prediction.timeline import SUFFIXES
from geostudio_dagster.raster.preview import QUICKLOOK_SIDE, preview_png
from geostudio_dagster.settings import read_settings

FAILED, BAD_INPUT, STOPPED = 1, 2, 130
_PNG = ".png"


@dataclass(frozen=True, slots=True)
class Job:
    """What to predict: a bundle's folder, the scene's files in order, the COG to make.

    ``output`` is a path or ``s3://bucket/key``; ``probabilities`` asks for a band per class,
    whatever the bundle says. ``quicklook`` is where a PNG of the output goes, a path or
    ``s3://bucket/key``.
    """

    model: Path
    inputs: tuple[str, ...]
    output: str
    options: PredictOptions
    probabilities: bool = False
    quicklook: str | None = None


class CommandFailed(Exception):
    """One sentence for the terminal, and the process's exit code."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


def run(job: Job, terminal: Console) -> dict[str, Any]:
    """Predict, with a progress bar on ``terminal``, and return the report as JSON values.

    Output and quicklook appear only when complete; whatever happens, no other file is left.

    Raises:
        CommandFailed: code 2 for an input that can't be used as it is, 1 for a failure that
            another try may get past, 130 when stopped by Ctrl-C, SIGTERM or SIGHUP.
    """
    with _as_sentences(), _stoppable():
        _check_profile(job.options.profile)
        bundle = _bundle(job)
        precision = job.options.precision or bundle.manifest.precision or read_settings().precision
        job = replace(job, options=replace(job.options, precision=precision))
        _check_files(job, bundle)
        place = destination(job.output)
        place.check()
        look = _quicklook(job)
        with place.workplace() as (scratch, target):
            report, seconds = _predict(job, bundle, scratch, target, terminal)
            began = time.perf_counter()
            place.deliver(target)
            seconds["deliver"] = time.perf_counter() - began
            if look is not None:
                began = time.perf_counter()
                _draw(target, bundle.manifest, look, place)
                seconds["quicklook"] = time.perf_counter() - began
    facts = report.as_dict()
    facts["seconds"] |= seconds
    manifest = bundle.manifest
    of_model = {"model": manifest.name, "runtime": manifest.runtime, "digest": bundle.digest}
    pictures = {"quicklook": str(look)} if look is not None else {}
    return {"output": str(place), **pictures, **of_model, **facts}


def keep_for_next_time(job: Job, facts: dict[str, Any], terminal: Console) -> None:
    """After the work: keep the model as a program, where there is none; Ctrl-C leaves it.

    ``facts`` are what :func:`run` returned. Whatever fails here, the output is in place.
    """
    folder, size = job.options.programs, facts["patch"]
    as_programs = job.options.tuning.as_programs
    if folder is None or not as_programs or facts["runtime"] not in CONVERTED:
        return
    if ProgramFile.at(folder, facts["digest"], size).exists:
        return
    terminal.print("Keeping the model for faster starts (some seconds, once) ...")
    try:
        from geostudio_dagster.models.conversion import keep_program

        bundle = with_patch(load_bundle(job.model), size)
        engine = job.options.onnx_engine
        model = loaded(
            bundle,
            facts["device"],
            onnx_engine=engine,
            programs=folder,
            tuning=job.options.tuning,
        )
        keep_program(bundle, folder, model)
    except (GeostudioError, OSError, RuntimeError, MemoryError, KeyboardInterrupt) as error:
        terminal.print(f"The model was not kept ({type(error).__name__}).")


def _check_files(job: Job, bundle: Bundle) -> None:
    read = [Named("input", text) for text in job.inputs]
    read += [Named("model", str(bundle.folder / it)) for it in bundle.manifest.all_files]
    written = ("output", job.output), ("quicklook", job.quicklook), ("profile", job.options.profile)
    check_apart([Named(option, str(it)) for option, it in written if it is not None], read)


def _quicklook(job: Job) -> Destination | None:
    """Where the quicklook goes, if one is asked for; checked before any work."""
    if job.quicklook is None:
        return None
    if not job.quicklook.lower().endswith(_PNG):
        raise InvalidRequest("quicklook", f"{job.quicklook} is no PNG", f"name a {_PNG} file")
    look = destination(job.quicklook, "quicklook", _PNG)
    look.check()
    return look


def _draw(raster: Path, manifest: BundleManifest, look: Destination, output: Destination) -> None:
    """Bring a PNG of the finished output to its place."""
    try:
        with look.workplace() as (scratch, target):
            picture = scratch / f"quicklook.draft{_PNG}"
            picture.write_bytes(preview_png(raster, QUICKLOOK_SIDE, manifest))
            picture.replace(target)
            look.deliver(target)
    except KeyboardInterrupt as error:
        raise CommandFailed(f"Stopped; {output} is complete, {look} is not.", STOPPED) from error
    except (GeostudioError, OSError, RasterioError, MemoryError) as error:
        raise CommandFailed(
            f"{output} is complete, but not its quicklook {look} ({type(error).__name__}: "
            f"{error}).",
            FAILED,
        ) from error


def _check_profile(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequest("profile", f"{path} is no picture", "name an .svg or .html file")
    if not path.absolute().parent.is_dir():
        raise InvalidRequest("profile", f"{path.parent} is not a folder", "make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise InvalidRequest("profile", f"{path} can't be written", "name another file")


def _predict(
    job: Job, bundle: Bundle, scratch: Path, target: Path, terminal: Console
) -> tuple[PredictionReport, dict[str, float]]:
    began = time.perf_counter()
    with readable(job.inputs, scratch) as scenes, _bar(terminal) as progress:
        fetched = time.perf_counter() - began
        report = predict(
            scenes if len(scenes) > 1 else scenes[0],
            bundle,
            target,
            scratch=scratch,
            options=job.options,
            progress=progress,
        )
    return report, {"fetch": fetched}


def _bundle(job: Job) -> Bundle:
    bundle = load_bundle(job.model)
    return with_probabilities(bundle) if job.probabilities else bundle


def calibrations(wanted: bool | None) -> Path | None:
    """Where the installation of the environment keeps calibrations; None without any.

    ``wanted`` None means: where there is an installation, and its settings don't say otherwise.
    """
    with _as_sentences():
        settings = read_settings()
    if wanted is None:
        wanted = settings.calibrate and settings.data_folder.is_dir()
    return settings.calibrations if wanted else None


def onnx_engine(wanted: OnnxEngine | None) -> OnnxEngine:
    """What runs ONNX models: as wanted, or as the settings say."""
    with _as_sentences():
        return wanted or read_settings().onnx_engine


def tuning(wanted: str | None) -> Tuning:
    """What may be done to torch networks: as wanted, or as the settings say."""
    with _as_sentences():
        names = read_settings().tuning if wanted is None else wanted
    try:
        return Tuning.of(names)
    except ValueError as error:
        raise CommandFailed(f"tuning: {error}.", BAD_INPUT) from error


def programs(wanted: bool | None) -> Path | None:
    """Where the installation of the environment keeps programs; None as for calibrations."""
    with _as_sentences():
        settings = read_settings()
    if wanted is None:
        wanted = settings.convert and settings.data_folder.is_dir()
    return settings.programs if wanted else None


def summary(facts: dict[str, Any]) -> str:
    """One line for a person."""
    megapixels, seconds = facts["pixels"] / 1e6, facts["seconds"]["total"]
    return (
        f"{facts['output']}: {megapixels:.2f} Mpx in {seconds:.1f} s "
        f"({megapixels / seconds:.2f} Mpx/s), {facts['patches']} patches in {facts['dtype']} "
        f"on {facts['device']}, peak memory {facts['peak_rss'] / 1e6:.0f} MB"
    )


@contextmanager
def _as_sentences() -> Iterator[None]:
    try:
        yield
    except TaskError as error:
        raise CommandFailed(str(error), FAILED if error.retryable else BAD_INPUT) from error
    except InvalidRequest as error:
        raise CommandFailed(str(error), BAD_INPUT) from error
    except KeyboardInterrupt as error:
        raise CommandFailed("Stopped; nothing was written.", STOPPED) from error
    except (
        GeostudioError,
        OSError,
        RasterioError,
        CPLE_BaseError,
        MemoryError,
        RuntimeError,
        UnicodeError,
    ) as error:
        # RuntimeError is how torch says anything, a lack of memory or of a GPU included.
        lines = str(error).strip().splitlines() or ["no details"]
        raise CommandFailed(
            f"The prediction failed ({type(error).__name__}: {lines[0]}); nothing was written.",
            FAILED,
        ) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, and the end of the terminal, end the body as Ctrl-C does: so it cleans up."""
    ends = signal.SIGTERM, signal.SIGHUP
    before = [signal.signal(end, signal.default_int_handler) for end in ends]
    try:
        yield
    finally:
        for end, handler in zip(ends, before, strict=True):
            signal.signal(end, handler)


class _Speed(ProgressColumn):
    """Megapixels per second."""

    def render(self, task: Task) -> Text:
        """The speed of late, and of the whole once it is done."""
        speed = task.finished_speed or task.speed
        return Text("? Mpx/s" if speed is None else f"{speed / 1e6:.2f} Mpx/s")


@contextmanager
def _bar(terminal: Console) -> Iterator[Report]:
    """A progress bar, where there is a terminal to show it on."""
    columns = (TextColumn("predicting"), BarColumn(), TaskProgressColumn(), _Speed())
    with Progress(
        *columns,
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=terminal,
        disable=not terminal.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show
