"""Real scenes as they come: their grids, pixel types and nodata, through the whole job."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster_tests.conftest import shared_or_skip
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of
from geostudio_dagster_tests.prediction.builders import Convolutions, write_bundle, write_raster
from geostudio_dagster_tests.publish.stac_schemas import valid_item


@dataclass(frozen=True)
class Case:
    """A scene's bands, how its pixels are scaled, and what it lies in: west, south, east, north."""

    bands: int
    scale: float
    around: tuple[float, float, float, float]
    area_method: str = "grid"


CASES = {
    # float32, nodata -9999, unnamed bands, not tiled
    "hls_utm14n_10band_224.tif": Case(10, 1e-4, (-99.62, 28.50, -99.53, 28.57)),
    # uint8 with a collar of nodata 0, pixels of 300.04 m
    "landsat_rgb_utm18n.tif": Case(3, 1 / 255, (-78.96, 23.56, -76.57, 25.56)),
    # float64 without nodata in degrees, all bands of one name
    "s2_l2a_4326_3band.tif": Case(3, 1e-4, (22.8721, 53.606, 22.8905, 53.63), "geodesic"),
    # int16, nodata -1, a CRS of unknown datum without a code
    "hls_burnscar_mask_512.tif": Case(1, 1.0, (-120.39, 46.78, -120.17, 46.93)),
}


def brought(installation: Installation, name: str) -> Path:
    folder = installation.settings.data_folder / "scenes"
    folder.mkdir(parents=True)
    return Path(shutil.copy(shared_or_skip(f"scenes/{name}"), folder))


@pytest.mark.parametrize("name", CASES)
def test_a_real_scene_becomes_an_aligned_map(
    installation: Installation, driver: Driver, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    scene = brought(installation, name)
    bundle = write_bundle(
        tmp_path / "bundle",
        Convolutions(case.bands, 3),
        bands=[{"name": f"B{n}", "scale": case.scale} for n in range(case.bands)],
        classes=3,
        patch=(64, 16, 4),
    )
    model = register_bundle(installation, bundle.folder, owner="tests")
    request = submit(installation, [scene], model, task_size=256)
    assert driver.until_over(request) == "COMPLETED", tasks_of(installation, request)[0].error

    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    (granule,) = layers["pred"].granules
    prediction = installation.storage.path(granule["key"])
    assert cog_validate(prediction, strict=True) == (True, [], [])
    with rasterio.open(scene) as before, rasterio.open(prediction) as after:
        assert (after.crs, after.transform) == (before.crs, before.transform)
        assert (after.shape, after.dtypes, after.nodata) == (before.shape, ("uint8",), 255)
        invalid = np.zeros(before.shape, bool)
        if before.nodata is not None:
            invalid = (before.read() == before.nodata).any(axis=0)
        classes = after.read(1)
    np.testing.assert_array_equal(classes == 255, invalid)
    assert len(np.unique(classes[~invalid])) > 1, "a constant map would prove nothing"

    for task in tasks_of(installation, request):
        item = valid_item(path_of(installation, task.id, "stac"))
        window = task.window or (0, 0, *invalid.shape[::-1])
        with (
            rasterio.open(path_of(installation, task.id, "rgb")) as picture,
            rasterio.open(path_of(installation, task.id, "prediction")) as part,
        ):
            assert picture.shape == part.shape == (window[3], window[2])
            assert picture.transform == part.transform
            assert picture.crs == part.crs
        assert within(item["bbox"], case.around)
        stats = json.loads(path_of(installation, task.id, "stats").read_text())
        assert stats["area_method"] == case.area_method
    for layer in layers.values():
        assert within(layer.bounds, case.around)


def within(inner: object, outer: object) -> bool:
    """Whether a box (west, south, east, north) lies in another."""
    west, south, east, north = inner  # type: ignore[misc]
    left, bottom, right, top = outer  # type: ignore[misc]
    return left <= west < east <= right and bottom <= south < north <= top


@pytest.mark.parametrize("classes", [3, 0], ids=["segmentation", "regression"])
def test_a_scene_of_nodata_alone_is_an_empty_map(
    installation: Installation, driver: Driver, tmp_path: Path, classes: int
) -> None:
    scene = installation.settings.data_folder / "scenes" / "empty.tif"
    scene.parent.mkdir(parents=True)
    write_raster(scene, np.zeros((2, 100, 70), np.uint16), nodata=0)
    network = Convolutions(2, classes or 1)
    bundle = write_bundle(tmp_path / "bundle", network, bands=2, classes=classes)
    model = register_bundle(installation, bundle.folder, owner="tests")
    request = submit(installation, [scene], model)
    assert driver.until_over(request) == "COMPLETED", tasks_of(installation, request)[0].error
    (task,) = tasks_of(installation, request)
    with rasterio.open(path_of(installation, task.id, "prediction")) as after:
        assert (after.read(1) == after.nodata).all()
    stats = json.loads(path_of(installation, task.id, "stats").read_text())
    assert (stats["valid_pixels"], stats["nodata_fraction"], stats["area_ha"]) == (0, 1, 0)
    valid_item(path_of(installation, task.id, "stac"))
    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert layers["pred"].style["kind"] == ("classes" if classes else "ramp")


def test_a_regression_over_real_degrees_has_its_area_on_the_ground(
    installation: Installation, driver: Driver, tmp_path: Path
) -> None:
    scene = brought(installation, "s2_l2a_4326_3band.tif")
    ramp = [
        {"value": 0.0, "colour": "#000000", "label": "low"},
        {"value": 0.2, "colour": "#ffffff", "label": "high"},
    ]
    bands = [{"name": f"B{n}", "scale": 1e-4} for n in range(3)]
    bundle = write_bundle(
        tmp_path / "bundle", Convolutions(3, 1), bands=bands, ramp=ramp, unit="t/ha"
    )
    model = register_bundle(installation, bundle.folder, owner="tests")
    request = submit(installation, [scene], model)
    assert driver.until_over(request) == "COMPLETED", tasks_of(installation, request)[0].error
    (task,) = tasks_of(installation, request)
    stats = json.loads(path_of(installation, task.id, "stats").read_text())
    # 0.018262 x 0.023653 degrees at 53.618 N: 1.2084 km by 2.6323 km
    assert stats["area_ha"] == pytest.approx(318.1, rel=0.002)
    assert stats["area_method"] == "geodesic"
    layer = {item.name: item for item in installation.catalog.layers(request)}["pred"]
    assert [stop["label"] for stop in layer.style["stops"]] == ["low", "high"]
    assert layer.style["unit"] == "t/ha"


def test_scenes_of_different_crs_share_the_layers_of_their_request(
    installation: Installation, driver: Driver, tmp_path: Path
) -> None:
    folder = installation.settings.data_folder / "scenes"
    folder.mkdir(parents=True)
    for name in ("landsat_rgb_utm18n.tif", "s2_l2a_4326_3band.tif"):
        shutil.copy(shared_or_skip(f"scenes/{name}"), folder)
    bundle = write_bundle(tmp_path / "bundle", Convolutions(3, 2), classes=2)
    model = register_bundle(installation, bundle.folder, owner="tests")
    request = submit(installation, sorted(folder.glob("*.tif")), model)
    assert driver.until_over(request) == "COMPLETED", tasks_of(installation, request)[0].error
    for layer in installation.catalog.layers(request):
        assert len(layer.granules) == 2
        assert within((-78.95, 23.57, 22.88, 53.62), layer.bounds)
        assert within(layer.bounds, (-78.97, 23.55, 22.9, 53.64))
