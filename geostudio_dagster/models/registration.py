"""Adding a model: its bundle is copied below its digest, then named in the catalog."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.models.programs import CONVERTED

_REMOVED = ".removed-"


def register_bundle(
    installation: Installation, folder: Path, owner: str, *, listed: bool = True
) -> ModelRecord:
    """Check and register the bundle in ``folder``; the same bundle twice is one model.

    Args:
        listed: whether everybody is shown it; a tune is shown as a tune instead.

    Raises:
        InvalidRequest: the bundle is incomplete, its manifest is wrong, or it changes meanwhile.
    """
    bundle = load_bundle(folder)
    target = installation.settings.model_root / bundle.digest
    with _alone(installation.settings.model_root):
        if not target.exists():
            _copy(installation, bundle, target)
        os.utime(target)  # by which remove_unused_bundles knows that it is taken up
    return installation.catalog.register_model(bundle, uri=str(target), owner=owner, listed=listed)


def prepare_bundle(installation: Installation, bundle: Bundle) -> None:
    """Try the model where it takes TerraTorch, and keep its program: so no request waits for it.

    Raises:
        TaskError: its weights don't load, or don't fit what the bundle says.
    """
    if not installation.settings.convert or bundle.manifest.runtime not in CONVERTED:
        return
    # Imported here, for it takes torch seconds.
    from geostudio_dagster.models.conversion import keep_program

    keep_program(bundle, installation.settings.programs)


def remove_unused_bundles(installation: Installation, silent_since: float, limit: int) -> list[str]:
    """Remove copies that no registered model has, and that nobody took up since then; digests.

    Args:
        silent_since: seconds of the epoch. limit: copies removed at most.
    """
    root = installation.settings.model_root
    if not root.is_dir():
        return []
    removed: list[str] = []
    with _alone(root):
        known = installation.catalog.model_digests()
        for folder in sorted(root.iterdir()):
            if not folder.is_dir() or len(removed) == limit:
                continue
            if folder.name.startswith(_REMOVED):  # a removal that was cut off
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name not in known and folder.stat().st_mtime < silent_since:
                # Under another name first: half a copy must not be taken for a whole one.
                half = folder.with_name(f"{_REMOVED}{folder.name}")
                folder.rename(half)
                shutil.rmtree(half, ignore_errors=True)
                removed.append(folder.name)
    return removed


@contextmanager
def _alone(model_root: Path) -> Iterator[None]:
    """One copy at a time: two of one bundle would share their scratch folder."""
    model_root.mkdir(parents=True, exist_ok=True)
    with (model_root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy(installation: Installation, bundle: Bundle, target: Path) -> None:
    """Put a whole copy in place at once; what a killed copy left goes with the next one."""
    name, writer = f"model-{bundle.digest}", uuid4().hex
    scratch = installation.storage.scratch(name, writer)
    try:
        for file in bundle.manifest.all_files:
            (scratch / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / file, scratch / file)
            with (scratch / file).open("rb") as stream:
                os.fsync(stream.fileno())
        if load_bundle(scratch).digest != bundle.digest:
            raise InvalidRequest("model", f"{bundle.folder} is being changed", "try again")
        scratch.rename(target)
    finally:
        installation.storage.discard_scratch(name, writer)
