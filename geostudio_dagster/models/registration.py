"""Adding a model: its bundle is copied below its digest, then named in the catalog."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import MANIFEST, Bundle, load_bundle


def register_bundle(installation: Installation, folder: Path, owner: str) -> ModelRecord:
    """Check and register the bundle in ``folder``; the same bundle twice is one model.

    Raises:
        InvalidRequest: the bundle is incomplete or its manifest is wrong.
    """
    bundle = load_bundle(folder)
    target = installation.settings.model_root / bundle.digest
    if not target.exists():
        _copy(bundle, target)
    return installation.catalog.register_model(bundle, uri=str(target), owner=owner)


def _copy(bundle: Bundle, target: Path) -> None:
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    names = [MANIFEST, bundle.manifest.weights, *filter(None, [bundle.manifest.config])]
    for name in names:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, scratch / name)
    try:
        scratch.rename(target)
    except OSError:
        # Somebody else registered the same bundle meanwhile; theirs is equal.
        shutil.rmtree(scratch)
        if not target.exists():
            raise
