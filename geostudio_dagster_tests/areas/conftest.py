"""An installation whose areas come from a STAC API of its own, and a model that shows pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from dagster import DagsterInstance
from numpy.typing import NDArray

from geostudio_dagster.catalog import ModelRecord, TaskRecord
from geostudio_dagster.catalog.states import CONNECTOR
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.pipeline.scenes import bring_scene
from geostudio_dagster.pipeline.stage import now, run_stage
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSource
from geostudio_dagster_tests.driving import Driver, path_of, tasks_of
from geostudio_dagster_tests.emulators.stac_api import COLLECTION, StacApi, stac_api
from geostudio_dagster_tests.prediction.builders import Identity, write_bundle

CORNER = (500_000.0, 5_300_000.0)  # of the granules' grid, EPSG:32633: 15 degrees east
# Within a granule of 600 x 600 pixels of 10 m at that corner.
DAY = "2024-06-30"
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
    told = json.dumps([source.model_dump(mode="json") for source in settings.stac])
    monkeypatch.setenv("GEOSTUDIO_STAC", told)
    with DagsterInstance.ephemeral() as instance:
        yield Driver(installation, instance)


def pixels(size: int = 600, *, seed: int = 1, low: int = 1) -> NDArray[np.uint16]:
    """Numbers that are all different from their neighbours."""
    rng = np.random.default_rng(seed)
    return rng.integers(low, 10_000, (size, size), np.uint16)


def submit_area(installation: Installation, model: ModelRecord, *dates: str, **more: Any) -> str:
    """The id of an accepted request for the area (or another ``spatial_domain``)."""
    document = {
        "model": model.name,
        "spatial_domain": {"bbox": [AREA]},
        "temporal_domain": list(dates or (DAY,)),
        **more,
    }
    return admit(document, installation.catalog, installation.settings, owner="tests").id


def brought(installation: Installation, request_id: str) -> list[TaskRecord]:
    """The request's tasks after it was planned and stage ``tiles`` was done."""
    plan_request(installation, request_id)
    catalog = installation.catalog
    for shard in catalog.shards(request_id):
        run = f"run-{shard.number}"
        catalog.mark_submitted([shard.key], now())
        catalog.begin_shard_run(shard.key, run)
        run_stage(installation, shard.key, run, CONNECTOR, bring_scene, workers=2)
    return tasks_of(installation, request_id)


@contextmanager
def scene_of(installation: Installation, task: TaskRecord) -> Iterator[Any]:
    """The task's scene, opened."""
    with rasterio.open(path_of(installation, task.id, "scene")) as scene:
        yield scene


def beneath(raster: Any, granule: NDArray[Any]) -> NDArray[Any]:
    """The pixels of a granule at the usual corner that lie under a raster on the same grid."""
    column = round((raster.bounds.left - CORNER[0]) / 10)
    row = round((CORNER[1] - raster.bounds.top) / 10)
    return granule[row : row + raster.height, column : column + raster.width]
