"""Programs of registered models that have none: after an upgrade, or registered without one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.errors import GeostudioError
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.programs import CONVERTED, ProgramFile

log = logging.getLogger(__name__)


def make_missing_programs(installation: Installation, limit: int) -> Iterator[str]:
    """Make up to ``limit`` programs; the names of the models.

    A model that can't be loaded is remembered as well, or each round would try it again.
    """
    folder = installation.settings.programs
    missing = [model for model in installation.catalog.models() if _lacks(installation, model)]
    for model in missing[:limit]:
        # Imported here, for most rounds find nothing to do, and it takes torch seconds.
        from geostudio_dagster.models.conversion import keep_program, refuse_program

        bundle = installation.bundle(model)
        try:
            keep_program(bundle, folder)
        except GeostudioError as error:
            log.warning("model %s can't be loaded: %s", model.name, error)
            refuse_program(bundle, folder, str(error))
        yield f"{model.name}@{model.version}"


def _lacks(installation: Installation, model: ModelRecord) -> bool:
    settings = installation.settings
    if not settings.convert or model.manifest["runtime"] not in CONVERTED:
        return False
    size = model.manifest["patch"]["size"]
    return not ProgramFile.at(settings.programs, model.digest, size).exists
