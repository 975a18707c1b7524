"""An installation whose areas come from a STAC API of its own, and a model that shows pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dagster import DagsterInstance
from numpy.typing import NDArray

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSource
from geostudio_dagster_tests.driving import Driver
from geostudio_dagster_tests.emulators.stac_api import COLLECTION, StacApi, stac_api
from geostudio_dagster_tests.prediction.builders import Identity, write_bundle

CORNER = (500_000.0, 5_300_000.0)  # of the granules' grid, EPSG:32633: 15 degrees east
# Within a granule of 600 x 600 pixels of 10 m at that corner.
AREA = [15.005, 47.81, 15.06, 47.848]


@pytest.fixture
def stac(tmp_path: Path) -> Iterator[StacApi]:
    """The API, without any items yet."""
    with stac_api(tmp_path / "stac") as api:
        yield api


def described(api: StacApi, **search: Any) -> StacSource:
    """The API as an administrator describes it."""
    return StacSource(
        connector="lab",
        collection_name="sentinel",
        bands=(
            {"band_name": "red", "alt_names": ["B04"]},
            {"band_name": "nir"},
            {"band_name": "scl"},
        ),
        resolution_m=10,
        cloud_masking={"band": "scl", "encoding": "sentinel2_scl"},
        search={"type": "stac", "url": api.url, "collection": COLLECTION, **search},
    )


@pytest.fixture
def settings(settings: Settings, stac: StacApi) -> Settings:
    """Settings that describe the API."""
    fetch = settings.fetch.model_copy(update={"attempts": 3})
    return settings.model_copy(update={"stac": (described(stac),), "fetch": fetch})


@pytest.fixture(scope="session")
def identity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two bands that gives back what it gets."""
    folder = tmp_path_factory.mktemp("bundles") / "identity"
    bands = [{"name": "B04"}, {"name": "nir"}]
    return write_bundle(folder, Identity(), bands=bands, name="identity").folder


@pytest.fixture
def model(installation: Installation, identity_folder: Path) -> ModelRecord:
    """The identity, registered."""
    return register_bundle(installation, identity_folder, owner="tests")


@pytest.fixture
def driver(
    installation: Installation, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Driver]:
    """Real sensors and runs over ``installation``."""
    import json

    told = json.dumps([source.model_dump(mode="json") for source in settings.stac])
    monkeypatch.setenv("GEOSTUDIO_STAC", told)
    with DagsterInstance.ephemeral() as instance:
        yield Driver(installation, instance)


def pixels(size: int = 600, *, seed: int = 1, low: int = 1) -> NDArray[np.uint16]:
    """Numbers that are all different from their neighbours."""
    rng = np.random.default_rng(seed)
    return rng.integers(low, 10_000, (size, size), np.uint16)
