"""A request whose layers lie in a real catalog and storage, for the tests of the gateway."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from geostudio_dagster.catalog import Catalog, LayerRecord, Plan, PlannedTask
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.models.bundle import Bundle, BundleManifest
from geostudio_dagster.publish import styles
from geostudio_dagster.publish.layers import union, with_shares
from geostudio_dagster.raster.footprint import footprint_of
from geostudio_dagster.settings import Settings
from geostudio_dagster.storage import LocalStorage
from geostudio_dagster_tests.publish.rasters import class_manifest, write_cog

REQUEST = "6238a5ea-781a-431e-8668-b0de515ea0c8"
PIXELS = 256


@dataclass
class World:
    """An installation with one request, and what it takes to give it layers."""

    settings: Settings
    catalog: Catalog
    storage: LocalStorage
    folder: Path

    def raster(self, task: str, role: str, pixels: NDArray[Any], **options: Any) -> str:
        """Commit a COG; returns its storage key."""
        key = f"{REQUEST}/{task}/{task}_{role}.tif"
        path = write_cog(self.folder / f"{task}_{role}.tif", pixels, **options)
        return self.storage.commit(path, key).key

    def layer(
        self,
        name: str,
        title: str,
        style: dict[str, Any],
        keys: list[str],
        digest: str = "1" * 64,
    ) -> LayerRecord:
        """A layer over committed granules."""
        granules = []
        for key in keys:
            with rasterio.open(self.storage.path(key)) as dataset:
                bounds = footprint_of(dataset).bounds
            granules.append({"task_id": key.split("/")[1], "key": key, "bounds": list(bounds)})
        around = union(tuple(granule["bounds"]) for granule in granules)
        assert around is not None
        return LayerRecord(
            request_id=REQUEST,
            name=name,
            title=title,
            kind="raster",
            bounds=around,
            style=style,
            granules=tuple(granules),
            uri=f"geofm:{REQUEST}-{name}",
            digest=digest,
            published_at=dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC),
        )

    def publish(self, *layers: LayerRecord) -> None:
        """Record layers as the publishing stage does."""
        self.catalog.record_layers(REQUEST, layers)


@contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """An installation below ``folder`` with a request of one planned task and no layers."""
    # Who may look is tested in v2/test_grants.py.
    open_to_all = GatewaySettings(auth="off")
    settings = Settings(data_folder=folder / "data", gateway=open_to_all)
    settings.data_folder.mkdir()
    catalog = Catalog.open(settings.catalog_url)
    catalog.migrate()
    bundle = Bundle(folder=folder, manifest=class_manifest(), digest="ab" * 32)
    model = catalog.register_model(bundle, uri=str(folder), owner="tests")
    spec = {"model": "demo-water", "name": "Danube <b>wetlands</b> & June", "location": "Vienna"}
    catalog.create_request(request_id=REQUEST, spec=spec, model_id=model.id, owner="tests")
    task = PlannedTask(
        id=f"{REQUEST}-task_0",
        url="file:///scene.tif",
        date="2024-06-30",
        shard=0,
        window=None,
        scene_size=(PIXELS, PIXELS),
        footprint=None,
        pixels=PIXELS * PIXELS,
        steps=(
            "url-connector",
            "terratorch-inference",
            "postprocess-generic",
            "push-to-geoserver",
        ),
    )
    catalog.record_plan(REQUEST, Plan(tasks=(task,), shard_count=1, estimate={}))
    storage = LocalStorage(settings.storage_root)
    yield World(settings, catalog, storage, folder)
    catalog.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A request without layers."""
    with open_world(tmp_path) as opened:
        yield opened


def class_map() -> NDArray[np.uint8]:
    """Land left, water right, cloud (transparent) at the bottom, nodata in the top left corner."""
    pixels = np.zeros((1, PIXELS, PIXELS), np.uint8)
    pixels[:, :, PIXELS // 2 :] = 1
    pixels[:, 224:, :] = 2
    pixels[:, :32, :32] = 255
    return pixels


def picture() -> NDArray[np.uint8]:
    """Red, green, blue and opacity: green left, dark blue right, transparent in the corner."""
    pixels = np.empty((4, PIXELS, PIXELS), np.uint8)
    pixels[:, :, : PIXELS // 2] = np.array([90, 140, 60, 255], np.uint8)[:, None, None]
    pixels[:, :, PIXELS // 2 :] = np.array([20, 40, 80, 255], np.uint8)[:, None, None]
    pixels[:, :32, :32] = 0
    return pixels


def statistics(manifest: BundleManifest, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """A task's statistics as postprocessing writes them, for 10 m pixels."""
    counts = {item.value: int((pixels == item.value).sum()) for item in manifest.classes}
    return {
        "classes": [
            {"value": value, "pixels": count, "area_ha": count / 100}
            for value, count in counts.items()
        ]
    }


def publish_both(world: World) -> None:
    """Give the request its input and its prediction as layers."""
    manifest = class_manifest()
    prediction = world.raster(f"{REQUEST}-task_0", "pred", class_map())
    rgb = world.raster(f"{REQUEST}-task_0", "rgb", picture(), nodata=None)
    style = with_shares(styles.prediction_style(manifest), [statistics(manifest, class_map())])
    world.publish(
        world.layer("input_rgb", "Input image", styles.rgb_style(), [rgb]),
        world.layer("pred", "Water", style, [prediction]),
    )


@pytest.fixture
def published(world: World) -> World:
    """The request with its input and its prediction as layers."""
    publish_both(world)
    return world


@pytest.fixture
def app(world: World) -> FastAPI:
    """The gateway over the world's installation."""
    return create_app(world.settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Calls the gateway in this process."""
    with TestClient(app, base_url="http://127.0.0.1") as opened:
        yield opened
