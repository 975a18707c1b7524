"""One registered script on one raster of a task: from storage, under isolation, to its files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from geostudio_dagster.catalog import ProcessorRecord
from geostudio_dagster.errors import InvalidRequest, TaskError, Unavailable
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import steplog
from geostudio_dagster.processors.contract import Contract
from geostudio_dagster.processors.dependencies import ensure_packages
from geostudio_dagster.processors.outputs import CollectedOutput, collect
from geostudio_dagster.processors.run import ScriptJob, ScriptResult, run_script
from geostudio_dagster.processors.sandbox import Sandbox, choose_sandbox
from geostudio_dagster.settings import ScriptLimits
from geostudio_dagster.storage import sha256_of

# Runs a script elsewhere, such as in a pod of its own.
Runner = Callable[[ScriptJob, ScriptLimits, ProcessorRecord, Callable[[], bool]], ScriptResult]

_PARTS = re.compile(r"[^A-Za-z0-9.]+")
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """What a script made of one raster, and what it said."""

    processor: ProcessorRecord
    outputs: tuple[CollectedOutput, ...]
    result: ScriptResult

    @property
    def main(self) -> Path | None:
        """The file that the next script is fed: a raster if there is one, else what there is."""
        return self.raster or next((output.path for output in self.outputs), None)

    @property
    def raster(self) -> Path | None:
        """The first of its rasters, by name."""
        rasters = (output.path for output in self.outputs if output.kind == "raster")
        return next(rasters, None)

    def told(self) -> dict[str, Any]:
        """What is worth keeping of the run: figures, and what the script printed as JSON."""
        return {
            "processor": self.processor.label,
            "sha256": self.processor.sha256,
            "isolation": self.result.isolation,
            "seconds": round(self.result.seconds, 3),
            "peak_memory": self.result.peak_memory,
            "files": [output.name for output in self.outputs],
            "printed": self.result.printed,
        }


def run_processor(
    installation: Installation,
    processor: ProcessorRecord,
    parameters: Mapping[str, Any],
    *,
    source: Path,
    grid: Path,
    folder: Path,
    cancelled: Callable[[], bool],
    runner: Runner | None = None,
) -> ScriptRun:
    """Run a processor on the file ``source``; its checked files lie below ``folder``.

    ``grid`` is a raster, on whose grid outputs lie that say nothing of where they are. Without a
    ``runner`` the script runs in this machine's sandbox.

    Raises:
        TaskError: the script failed, or wrote what cannot be taken; with its own last lines.
        Cancelled: ``cancelled`` became true; no process of the script is left.
    """
    sandbox, limits = _isolation(installation, processor)
    try:
        job = _job(installation, processor, parameters, source, folder)
        if runner is None:
            result = run_script(job, limits, sandbox, cancelled=cancelled)
        else:
            result = runner(job, limits, processor, cancelled)
        steplog.write(f"{processor.label}, {result.isolation}, {result.seconds:.1f} s:")
        steplog.write(result.log)
        result.raise_if_failed()
        outputs = collect(result.output, grid, _fresh(folder / "collected"), limits, sandbox)
    except (InvalidRequest, Unavailable) as error:
        raise TaskError("processor_not_run", f"{processor.label}: {error}") from error
    except TaskError as error:
        raise TaskError(
            error.code, f"{processor.label}: {error}", retryable=error.retryable
        ) from error
    return ScriptRun(processor, tuple(outputs), result)


def plain(text: str) -> str:
    """``text`` as a part of a file's name: letters, digits, dots and single underscores."""
    return _PARTS.sub("_", text).strip("._")[:_LONGEST].strip("._")


def _job(
    installation: Installation,
    processor: ProcessorRecord,
    parameters: Mapping[str, Any],
    source: Path,
    folder: Path,
) -> ScriptJob:
    settings, report = installation.settings, processor.report
    packages = ensure_packages(
        report.get("dependencies") or [], settings.processor_root, settings.processors
    )
    return ScriptJob(
        script=_script(installation, processor, folder / "script"),
        input=source,
        folder=_fresh(folder / "run"),
        contract=cast("Contract", processor.contract),
        parameters=parameters,
        options=report.get("options") or {},
        packages=packages,
    )


def _isolation(
    installation: Installation, processor: ProcessorRecord
) -> tuple[Sandbox, ScriptLimits]:
    settings = installation.settings
    try:
        sandbox = choose_sandbox(settings.processors, hidden=(settings.data_folder,))
        return sandbox, settings.processors.limits.lowered(processor.limits)
    except (InvalidRequest, Unavailable) as error:
        raise TaskError("processor_not_run", f"{processor.label}: {error}") from error


def _script(installation: Installation, processor: ProcessorRecord, folder: Path) -> Path:
    """The script under the name that its author gave it, as it was registered."""
    stored = installation.storage.path(processor.key)
    target = _fresh(folder) / processor.file_name
    try:
        shutil.copyfile(stored, target)
    except FileNotFoundError:
        raise TaskError(
            "processor_deleted", f"The processor {processor.label} was deleted; upload it again."
        ) from None
    if sha256_of(target) != processor.sha256:
        raise TaskError(
            "processor_changed", f"The stored script of {processor.label} is not what it was."
        )
    return target


def _fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
