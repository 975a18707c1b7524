"""Bundles of every runtime through the whole job, to the layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.demo.model import demo_bundle
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.prediction.forward import has_bfloat16
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of
from geostudio_dagster_tests.models.tunes import BANDS, make_tune
from geostudio_dagster_tests.publish.stac_schemas import valid_item


def test_a_terratorch_regression_ends_as_a_ramp(
    installation: Installation, make_scene: MakeScene, driver: Driver, tmp_path: Path
) -> None:
    make_tune(tmp_path / "tune", "regression")
    model = register_bundle(installation, tmp_path / "tune", owner="tests")
    scene = make_scene("a_2024-06-30.tif", size=200, bands=BANDS)
    request = submit(installation, [scene], model, name="Biomass")
    assert driver.until_over(request) == "COMPLETED", tasks_of(installation, request)[0].error

    (task,) = tasks_of(installation, request)
    prediction = path_of(installation, task.id, "prediction")
    assert cog_validate(prediction, strict=True) == (True, [], [])
    with rasterio.open(scene) as before, rasterio.open(prediction) as after:
        assert (after.crs, after.transform) == (before.crs, before.transform)
        assert (after.shape, after.count, after.dtypes) == (before.shape, 1, ("float32",))
        assert after.nodata == -9999
        values = after.read(1)
        np.testing.assert_array_equal(values == -9999, before.read(1) == 0)
    valid = values[values != -9999]
    low, high = float(valid.min()), float(valid.max())
    assert low < high, "a constant map would prove nothing"

    stats = json.loads(path_of(installation, task.id, "stats").read_text())
    assert (stats["task"], stats["valid_pixels"]) == ("regression", valid.size)
    assert (stats["min"], stats["max"]) == (low, high)
    assert stats["mean"] == pytest.approx(valid.mean(dtype=np.float64))
    assert stats["percentiles"]["50"] == pytest.approx(np.median(valid), abs=(high - low) / 1000)
    layer = {item.name: item for item in installation.catalog.layers(request)}["pred"]
    assert (layer.style["kind"], layer.style["nodata"]) == ("ramp", -9999)
    stops = [stop["value"] for stop in layer.style["stops"]]
    assert (stops[0], stops[-1]) == (low, high)
    assert stops == sorted(stops)
    item = valid_item(path_of(installation, task.id, "stac"))
    assert "classification:classes" not in item["assets"]["prediction"]


def test_a_terratorch_segmentation_ends_as_classes(
    installation: Installation, make_scene: MakeScene, driver: Driver, tmp_path: Path
) -> None:
    make_tune(tmp_path / "tune", "segmentation")
    with (tmp_path / "tune" / "bundle.yaml").open("a") as manifest:
        manifest.write("precision: auto\n")
    model = register_bundle(installation, tmp_path / "tune", owner="tests")
    request = submit(installation, [make_scene("a.tif", size=120, bands=BANDS)], model)
    assert driver.until_over(request) == "COMPLETED", tasks_of(installation, request)[0].error
    (task,) = tasks_of(installation, request)
    with rasterio.open(path_of(installation, task.id, "prediction")) as after:
        assert set(np.unique(after.read(1))) <= {0, 1, 2, 255}
        assert after.colormap(1)[2] == (0, 0, 0x20, 255)
        fast = "bfloat16" if has_bfloat16(after.tags()["GEOSTUDIO_DEVICE"]) else "float32"
        assert after.tags()["GEOSTUDIO_DTYPE"] == fast
    valid_item(path_of(installation, task.id, "stac"))
    style = installation.catalog.layers(request)[1].style
    assert sum(item["pixels"] for item in style["classes"]) == 120 * 120 - 12 * 12


def test_an_exported_program_gives_the_map_of_the_script(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    driver: Driver,
    tmp_path: Path,
) -> None:
    bundle = demo_bundle(tmp_path / "exported", "torch_export")
    exported = register_bundle(installation, bundle.folder, owner="tests")
    assert (exported.name, exported.version) == (model.name, 2)
    scene = make_scene("a.tif", size=300)
    maps = []
    for reference in (f"{model.name}@1", f"{model.name}@2"):
        request = submit(installation, [scene], reference)
        assert driver.until_over(request) == "COMPLETED"
        (task,) = tasks_of(installation, request)
        with rasterio.open(path_of(installation, task.id, "prediction")) as after:
            maps.append(after.read(1))
            assert after.tags()["GEOSTUDIO_MODEL_VERSION"] == reference[-1]
    np.testing.assert_array_equal(*maps)
