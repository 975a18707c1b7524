"""An area and a day go in, and a layer with exactly the granules' pixels comes out."""

from __future__ import annotations

import numpy as np
import pystac
import rasterio
from numpy.typing import NDArray
from rasterio.warp import transform_bounds

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster_tests.areas.conftest import AREA, DAY, beneath, pixels, submit_area
from geostudio_dagster_tests.driving import Driver, path_of, tasks_of
from geostudio_dagster_tests.emulators.stac_api import StacApi


def test_an_area_ends_as_a_layer_of_exactly_the_granules_pixels(
    installation: Installation, model: ModelRecord, stac: StacApi, driver: Driver
) -> None:
    red, nir = pixels(seed=1), pixels(seed=2)
    item = stac.granule("G1", f"{DAY}T10:00:00Z", {"red": red, "nir": nir})
    assert pystac.Item.from_dict(item).validate()
    request = submit_area(installation, model)
    assert driver.until_over(request) == "COMPLETED"

    (task,) = tasks_of(installation, request)
    assert (task.date, task.url) == (DAY, f"stac://lab/sentinel/{DAY}/0")
    with rasterio.open(path_of(installation, task.id, "prediction")) as prediction:
        assert prediction.crs.to_string() == "EPSG:32633"
        west, south, east, north = transform_bounds(prediction.crs, "EPSG:4326", *prediction.bounds)
        assert west <= AREA[0] and south <= AREA[1] and east >= AREA[2] and north >= AREA[3]
        # The engine blends patches in float32, which leaves a thousandth of a number.
        np.testing.assert_array_equal(np.rint(prediction.read(1)), beneath(prediction, red))
        np.testing.assert_array_equal(np.rint(prediction.read(2)), beneath(prediction, nir))
    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert set(layers) == {"input_rgb", "pred"}
    document = pystac.Item.from_file(str(path_of(installation, task.id, "stac")))
    origins = [link.target for link in document.links if link.rel == "derived_from"]
    assert origins == [f"{stac.url}/collections/s2/items/G1"]


def test_tasks_of_an_area_join_without_seams_whatever_their_size(
    installation: Installation, model: ModelRecord, stac: StacApi, driver: Driver
) -> None:
    stac.granule("G1", f"{DAY}T10:00:00Z", {"red": pixels(seed=1), "nir": pixels(seed=2)})
    whole = submit_area(installation, model)
    cut = submit_area(installation, model, task_size=256)
    for request in (whole, cut):
        assert driver.until_over(request) == "COMPLETED"
    assert len(tasks_of(installation, cut)) == 4
    (expected,), (made,) = (_predictions(installation, request) for request in (whole, cut))
    np.testing.assert_array_equal(made, expected)


def test_a_broken_asset_costs_its_own_tasks_only(
    installation: Installation, model: ModelRecord, stac: StacApi, driver: Driver
) -> None:
    # Two granules side by side, of which the eastern one's file is gone.
    for name, columns in (("west", slice(0, 400)), ("east", slice(400, 600))):
        bands = {"red": pixels(seed=1)[:, columns], "nir": pixels(seed=2)[:, columns]}
        corner = (500_000.0 + 10 * columns.start, 5_300_000.0)
        stac.granule(name, f"{DAY}T10:00:00Z", bands, corner=corner)
    stac.broken["east-nir.tif"] = 404
    request = submit_area(installation, model, task_size=256)
    assert driver.until_over(request) == "COMPLETED_WITH_ERRORS"
    tasks = tasks_of(installation, request)
    assert sorted(str(task.status) for task in tasks) == ["FAILED"] * 2 + ["FINISHED"] * 2
    errors = {task.error for task in tasks if task.error}
    assert len(errors) == 1
    assert "east-nir.tif does not exist (HTTP 404)" in errors.pop()
    (prediction,) = _predictions(installation, request)
    assert np.isfinite(prediction).mean() > 0.4


def _predictions(installation: Installation, request: str) -> list[NDArray[np.float32]]:
    """Pixels of the layer's rasters."""
    (layer,) = (one for one in installation.catalog.layers(request) if one.name == "pred")
    rasters = []
    for granule in layer.granules:
        with rasterio.open(installation.storage.path(granule["key"])) as raster:
            rasters.append(raster.read(masked=True).filled(np.nan))
    return rasters


def test_a_granule_without_a_pixel_of_the_area_leaves_a_layer_without_data(
    installation: Installation, model: ModelRecord, stac: StacApi, driver: Driver
) -> None:
    empty = np.zeros((600, 600), np.uint16)
    stac.granule("G1", f"{DAY}T10:00:00Z", {"red": empty, "nir": empty})
    request = submit_area(installation, model)
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    assert task.step("url-connector").metrics["filled"] == 0
    (prediction,) = _predictions(installation, request)
    assert np.isnan(prediction).all()
