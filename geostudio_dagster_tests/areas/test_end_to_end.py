"""An area and a day go in, and a layer with exactly the granules' pixels comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pystac
import rasterio
from numpy.typing import NDArray
from rasterio.windows import from_bounds

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.planning.admission import admit
from geostudio_dagster_tests.areas.conftest import AREA, CORNER, pixels
from geostudio_dagster_tests.driving import Driver, path_of, tasks_of
from geostudio_dagster_tests.emulators.stac_api import StacApi

DAY = "2024-06-30"


def submit_area(installation: Installation, model: ModelRecord, *dates: str, **more: Any) -> str:
    """The id of an accepted request for the area."""
    domain = more.pop("spatial_domain", {"bbox": [AREA]})
    document = {
        "model": model.name,
        "spatial_domain": domain,
        "temporal_domain": list(dates or (DAY,)),
        **more,
    }
    return admit(document, installation.catalog, installation.settings, owner="tests").id


def beneath(prediction: Any, granule: NDArray[Any]) -> NDArray[Any]:
    """The granule's pixels under a raster on the same grid."""
    column = round((prediction.bounds.left - CORNER[0]) / 10)
    row = round((CORNER[1] - prediction.bounds.top) / 10)
    return granule[row : row + prediction.height, column : column + prediction.width]


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
        west, south, east, north = rasterio.warp.transform_bounds(
            prediction.crs, "EPSG:4326", *prediction.bounds
        )
        assert west <= AREA[0] and south <= AREA[1] and east >= AREA[2] and north >= AREA[3]
        # The engine blends patches in float32, which leaves a thousandth of a number.
        np.testing.assert_array_equal(np.rint(prediction.read(1)), beneath(prediction, red))
        np.testing.assert_array_equal(np.rint(prediction.read(2)), beneath(prediction, nir))
    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert set(layers) == {"input_rgb", "pred"}
    document = pystac.Item.from_file(str(path_of(installation, task.id, "stac")))
    origins = [link.target for link in document.links if link.rel == "derived_from"]
    assert origins == [f"{stac.url}/collections/s2/items/G1"]
