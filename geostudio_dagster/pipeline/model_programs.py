"""Programs of registered models that have none: after an upgrade, or registered without one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.programs import CONVERTED, ProgramFile, bytes_of_programs

log = logging.getLogger(__name__)

_PAUSE = 24 * 3600  # seconds between two tries of a model


def needed_programs(installation: Installation) -> frozenset[str]:
    """Names of the files that registered models start from, whether they are there or not."""
    models = installation.catalog.models()
    return frozenset(file.path.name for _, file in _files(installation, models))


def make_missing_programs(installation: Installation, limit: int) -> Iterator[str]:
    """Make up to ``limit`` programs, as long as there is room; the names of the models.

    What fails is tried again after a day, be it that the round was killed over it; that there
    can't be a program is remembered for good.
    """
    settings = installation.settings
    if not settings.convert:
        return
    room = settings.housekeeping.program_bytes - bytes_of_programs(settings.programs)
    for model, file in _files(installation, installation.catalog.models()):
        if not limit:
            return
        weights = Path(model.uri) / model.manifest["weights"]
        # A program takes what the weights do, or less: a checkpoint may hold an optimiser.
        if file.exists or not weights.is_file() or weights.stat().st_size > room:
            continue
        if not file.begin(since=time.time() - _PAUSE):
            continue
        limit -= 1
        _make(installation, model)
        yield f"{model.name}@{model.version}"


def _make(installation: Installation, model: ModelRecord) -> None:
    # Imported here, for most rounds find nothing to do, and it takes torch seconds.
    from geostudio_dagster.models.conversion import keep_program

    try:
        keep_program(installation.bundle(model), installation.settings.programs)
    except Exception as error:  # the others do not wait for it
        log.warning("no program of model %s was made: %s", model.name, error)


def _files(
    installation: Installation, models: list[ModelRecord]
) -> Iterator[tuple[ModelRecord, ProgramFile]]:
    """Models whose networks are kept, with the place of each."""
    for model in models:
        if model.manifest["runtime"] in CONVERTED:
            size = model.manifest["patch"]["size"]
            yield model, ProgramFile.at(installation.settings.programs, model.digest, size)
