"""A tune (or a model of its owner's) becomes a registered bundle: fetched, built, tried, kept.

It can be begun again at any point: nothing counts until the bundle is registered, and the same
bundle registered twice is one.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import yaml

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.catalog.card_records import OnboardingKind, OnboardingRecord
from geostudio_dagster.connectors.addresses import (
    LocalScene,
    RemoteScene,
    UnacceptableAddressError,
    scene_address,
)
from geostudio_dagster.connectors.fetch import download
from geostudio_dagster.errors import InvalidRequest, TaskError
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import MANIFEST, BundleManifest, load_bundle
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.models.tune_config import MOST_BYTES, read_config
from geostudio_dagster.models.tune_options import read_options
from geostudio_dagster.models.tunes import CHECKPOINT, CONFIG, TuneNames, manifest_of
from geostudio_dagster.pipeline.stage import heartbeat
from geostudio_dagster.planning.own_files import own_file

CONFIG_FIELD, CHECKPOINT_FIELD = "tune_config_url", "tune_checkpoint_url"


def onboard(installation: Installation, kind: str, item_id: str, run_id: str) -> ModelRecord | None:
    """Make the bundle of a tune or a card that waits for it; None where it was given up.

    Args:
        kind: ``tune`` or ``model``. run_id: of the run that does it, whose lease holds the work.

    Raises:
        Conflict: it is over, or another run that lives works on it.
        NotFound: it was deleted. LeaseLost: another run took it over meanwhile.
        TaskError: what may succeed another time; it is left to another attempt.
    """
    catalog = installation.catalog
    named: OnboardingKind = "tune" if kind == "tune" else "model"
    with heartbeat(installation, run_id):
        wish = catalog.claim_onboarding(named, item_id, run_id)
        name = f"onboarding-{item_id}"
        folder = installation.storage.scratch(name, run_id)
        try:
            _fetch(installation, wish, folder)
            model = _register(installation, wish, folder)
        except InvalidRequest as error:
            catalog.fail_onboarding(named, item_id, str(error), run_id)
            return None
        except TaskError as error:
            if error.retryable and wish.attempts < installation.settings.shards.max_attempts:
                catalog.release_onboarding(named, item_id, run_id, str(error))
                raise
            catalog.fail_onboarding(named, item_id, str(error), run_id)
            return None
        finally:
            installation.storage.discard_scratch(name, run_id)
        catalog.finish_onboarding(named, item_id, run_id, model.id)
        return model


def manifest_for(config: Path, wish: OnboardingRecord) -> BundleManifest:
    """The manifest of a wish whose configuration lies at ``config``.

    Raises:
        InvalidRequest: the configuration, or what was told beside it, cannot be taken.
    """
    names = TuneNames(wish.bundle_name, wish.title, wish.description)
    return manifest_of(read_config(config), read_options(wish.options), names)


def check_source(
    installation: Installation, url: str, owner: str, field: str
) -> Path | RemoteScene:
    """Where a file of a tune is: on this machine, or behind an address that may be asked.

    Raises:
        InvalidRequest: it may not be read, or it is not there; it names ``field``.
    """
    own = own_file(url, installation.catalog, installation.storage, owner, field)
    if own is not None:
        return own
    try:
        address = scene_address(url, installation.settings)
    except UnacceptableAddressError as error:
        raise InvalidRequest(field, error.problem, error.remedy) from error
    if isinstance(address, LocalScene):
        if not address.path.is_file():
            raise InvalidRequest(field, f"{address} is no file", "correct the path")
        return address.path
    return address


def _fetch(installation: Installation, wish: OnboardingRecord, folder: Path) -> None:
    """Bring configuration and checkpoint into the folder; a known bundle's are used again."""
    if wish.model_id is not None:
        there = installation.bundle(installation.catalog.model(wish.model_id))
        config = there.config_path
        if config is not None and config.is_file() and there.weights_path.is_file():
            (folder / CONFIG).symlink_to(config)
            (folder / CHECKPOINT).symlink_to(there.weights_path)
            return
    largest = installation.settings.fetch.max_bytes
    for name, url, field, limit in (
        (CONFIG, wish.config_url, CONFIG_FIELD, MOST_BYTES),
        (CHECKPOINT, wish.checkpoint_url, CHECKPOINT_FIELD, largest),
    ):
        if not url:
            raise InvalidRequest(field, "is missing", "give the address of the file")
        source = check_source(installation, url, wish.owner, field)
        if isinstance(source, Path):
            (folder / name).symlink_to(source)
            continue
        settings = installation.settings.fetch.model_copy(update={"max_bytes": limit})
        download(source, folder / name, settings)


def _register(installation: Installation, wish: OnboardingRecord, folder: Path) -> ModelRecord:
    manifest = manifest_for(folder / CONFIG, wish)
    if not zipfile.is_zipfile(folder / CHECKPOINT):
        raise InvalidRequest(
            CHECKPOINT_FIELD, "leads to no checkpoint of PyTorch", "give the .ckpt file itself"
        )
    document = manifest.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    (folder / MANIFEST).write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    bundle = load_bundle(folder)
    # Imported here, for it takes torch seconds, and a wish that is refused needs none.
    from geostudio_dagster.models.conversion import keep_program
    from geostudio_dagster.models.runtime import load_runtime

    model = load_runtime(bundle)  # weights that do not fit fail now, not in somebody's request
    if installation.settings.convert:
        keep_program(bundle, installation.settings.programs, model)
    return register_bundle(installation, folder, wish.owner, listed=False)
