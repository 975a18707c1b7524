from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo.cogeo import cog_validate
from torch import nn

from geostudio_dagster.errors import Cancelled, TaskError
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.prediction import PredictionReport, PredictOptions, predict
from geostudio_dagster_tests.prediction.builders import (
    GRID,
    Convolutions,
    Identity,
    read,
    write_bundle,
    write_raster,
)


class Sums(nn.Module):
    """Adds the bands of the patch to its mean: every pixel sees every pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True) + 0 * x.mean()


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "segmentation"
    return write_bundle(folder, Convolutions(3, 4), classes=4, title="Land cover")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(2).integers(1, 5, (3, 700, 900)).astype(np.int16)
    pixels[:, :200, :300] = 0
    return write_raster(tmp_path / "s.tif", pixels, nodata=0, names=["B0", "B1", "B2"])


def test_importing_the_engine_imports_no_torch() -> None:
    code = (
        "import sys, geostudio_dagster.prediction, geostudio_dagster.raster.preview, "
        "geostudio_dagster.raster.mosaic, geostudio_dagster.models.cache\n"
        "sys.exit(str([m for m in ('torch', 'terratorch', 'torchvision') if m in sys.modules]))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.stderr.strip() == "[]"


def test_a_class_map_is_a_valid_cog_on_the_scenes_grid(
    tmp_path: Path, scene: Path, segmentation: Bundle
) -> None:
    target = tmp_path / "new" / "out.tif"
    tags = {"GEOSTUDIO_REQUEST": "r1", "GEOSTUDIO_TASK": "r1-task_0", "GEOSTUDIO_VERSION": "3"}
    report = predict(scene, segmentation, target, scratch=tmp_path, tags=tags)
    assert cog_validate(target, strict=True, quiet=True)[:2] == (True, [])
    with rasterio.open(target) as file, rasterio.open(scene) as given:
        assert (file.width, file.height, file.crs) == (given.width, given.height, given.crs)
        assert file.transform == given.transform
        assert (file.dtypes, file.nodata) == (("uint8",), 255)
        assert file.overviews(1) == [2]
        assert file.descriptions == ("Land cover",)
        assert file.colormap(1)[1] == (0x33, 0xA0, 0x2C, 255)
        assert file.tags() == tags | {
            "AREA_OR_POINT": "Area",
            "GEOSTUDIO_MODEL": "test-model",
            "GEOSTUDIO_DIGEST": segmentation.digest,
            "GEOSTUDIO_BATCH": str(report.batch_size),
            "GEOSTUDIO_ENGINE": "torch",
            "GEOSTUDIO_DTYPE": "float32",
            "GEOSTUDIO_DEVICE": report.device,
            "GEOSTUDIO_THREADS": f"{report.workers}x{report.threads}",
            "GEOSTUDIO_CHOSEN": "by rule",
            "GEOSTUDIO_TUNING": "fold,channels_last,pack",
            "GEOSTUDIO_FOLDED": "0",
            "GEOSTUDIO_LAYOUT": "channels last",
            "GEOSTUDIO_PATCH": "32",
            "GEOSTUDIO_OVERLAP": "8",
            "GEOSTUDIO_TRIM": "2",
            "GEOSTUDIO_BANDS": "B0,B1,B2",
            "GEOSTUDIO_SCALE_TAGS": "applied",
        }
        classes = file.read(1)
        assert set(np.unique(file.read(1, out_shape=(350, 450)))) <= {0, 1, 2, 3, 255}
    np.testing.assert_array_equal(classes == 255, read(scene, 1) == 0)
    assert report.class_counts == {n: int((classes == n).sum()) for n in range(4)}
    assert report.nodata_fraction == 200 * 300 / (700 * 900)
    assert report.bounds == (500_000, 5_293_000, 509_000, 5_300_000)
    assert (report.crs, report.shape, report.pixels) == ("EPSG:32633", (1, 700, 900), 630_000)
    assert report.skipped_patches > 50
    assert set(report.seconds) == {
        "total", "model", "calibrate", "room", "read", "normalise", "stall", "forward", "blend",
        "write", "cog",
    }  # fmt: skip
    assert [path.name for path in target.parent.iterdir()] == ["out.tif"]


def test_a_windows_file_lies_where_the_window_is(
    tmp_path: Path, scene: Path, segmentation: Bundle
) -> None:
    target = tmp_path / "out.tif"
    report = predict(scene, segmentation, target, scratch=tmp_path, window=(600, 100, 128, 64))
    with rasterio.open(target) as file:
        assert (file.width, file.height) == (128, 64)
        assert (file.transform.c, file.transform.f) == (506_000, 5_299_000)
    assert report.bounds == (506_000, 5_298_360, 507_280, 5_299_000)


def test_made_again_the_file_has_the_same_bytes(
    tmp_path: Path, scene: Path, segmentation: Bundle
) -> None:
    targets = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for target in targets:
        predict(scene, segmentation, target, scratch=tmp_path)
    assert targets[0].read_bytes() == targets[1].read_bytes()


def test_a_regression_has_float_values_and_its_nodata(tmp_path: Path, scene: Path) -> None:
    bundle = write_bundle(
        tmp_path / "b", Sums(), unit="t/ha", ramp=[{"value": 0, "colour": "#ffffff"}]
    )
    target = tmp_path / "out.tif"
    report = predict(scene, bundle, target, scratch=tmp_path)
    assert cog_validate(target, strict=True, quiet=True)[:2] == (True, [])
    with rasterio.open(target) as file:
        assert (file.dtypes, file.nodata, file.units) == (("float32",), -9999, ("t/ha",))
        values = file.read(1)
    pixels = read(scene)
    expected = np.where(pixels[0] == 0, -9999, pixels.sum(axis=0))
    np.testing.assert_allclose(values, expected, atol=1e-4)
    assert report.class_counts is None


def test_all_nodata_makes_an_all_nodata_file_without_a_forward_pass(
    tmp_path: Path, segmentation: Bundle
) -> None:
    scene = write_raster(tmp_path / "s.tif", np.zeros((3, 600, 90), np.uint8), nodata=0)
    report = predict(scene, segmentation, tmp_path / "out.tif", scratch=tmp_path)
    assert (read(tmp_path / "out.tif") == 255).all()
    assert (report.patches, report.nodata_fraction) == (0, 1)
    assert report.skipped_patches == 25 * 4


def test_invalid_pixels_look_to_the_model_like_the_fill_value(tmp_path: Path) -> None:
    pixels = np.full((2, 40, 40), 10, np.float32)
    pixels[0, 20, 20] = np.nan
    bundle = write_bundle(tmp_path / "b", Sums5x5(), bands=2, fill=-1.0, patch=(40, 8, 4))
    predict(write_raster(tmp_path / "s.tif", pixels), bundle, tmp_path / "o.tif", scratch=tmp_path)
    output = read(tmp_path / "o.tif", 1)
    assert output[20, 20] == -9999
    assert output[20, 21] == pytest.approx(24 * 20 - 2)  # its neighbours see -1 in both bands
    assert output[20, 30] == pytest.approx(25 * 20)


def test_every_patch_of_a_batch_keeps_its_own_gaps(tmp_path: Path) -> None:
    pixels = np.full((1, 40, 200), 10, np.float32)
    pixels[0, 20, 20] = -1e9  # in the first patch of the batch; the last has no gap
    scene = write_raster(tmp_path / "s.tif", pixels, nodata=-1e9)
    bundle = write_bundle(tmp_path / "b", Sums5x5(), bands=1, patch=(40, 8, 4))
    options = PredictOptions(batch_size=8)
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path, options=options)
    output = read(tmp_path / "o.tif", 1)
    assert output[20, 20] == -9999
    assert output[20, 21] == pytest.approx(24 * 10)


def test_of_equal_scores_the_first_class_wins(tmp_path: Path) -> None:
    pixels = np.zeros((3, 40, 40), np.float32)
    pixels[:, :, 20:] = np.array([1, 2, 2], np.float32)[:, None, None]
    bundle = write_bundle(tmp_path / "b", Identity(), classes=3)
    predict(write_raster(tmp_path / "s.tif", pixels), bundle, tmp_path / "o.tif", scratch=tmp_path)
    classes = read(tmp_path / "o.tif", 1)
    assert (classes[:, :20] == 0).all()
    assert (classes[:, 20:] == 1).all()


class Roots(nn.Module):
    """Square roots: none of negative numbers; and the pixels themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sqrt(x), x], dim=1)


@pytest.mark.parametrize(
    ("kind", "nodata"),
    [
        ({}, -9999),
        ({"classes": 2}, 255),
        ({"classes": 2, "output": "probabilities"}, 255),
    ],
    ids=["values", "classes", "probabilities"],
)
def test_what_the_network_makes_no_number_of_is_no_data(
    tmp_path: Path, kind: dict[str, Any], nodata: float, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.full((1, 70, 90), 4, np.float32)
    pixels[0, 30:33, 40:44] = -1
    pixels[0, 0, 0] = np.nan
    bundle = write_bundle(tmp_path / "b", Roots(), bands=1, **kind)
    path = tmp_path / "o.tif"
    report = predict(write_raster(tmp_path / "s.tif", pixels), bundle, path, scratch=tmp_path)
    np.testing.assert_array_equal((read(path) == nodata).all(axis=0), ~(pixels[0] >= 0))
    assert (report.not_finite, report.nodata_fraction) == (12, 13 / pixels.size)
    assert "no finite number for 12 pixels" in caplog.text


def test_a_network_that_makes_no_numbers_at_all_is_unusable(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "s.tif", np.full((1, 70, 90), -1, np.float32))
    bundle = write_bundle(tmp_path / "b", Roots(), bands=1)
    with pytest.raises(TaskError, match="gives no finite number for any pixel") as caught:
        predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    assert caught.value.code == "model_unusable"
    assert sorted(it.name for it in tmp_path.iterdir()) == ["b", "s.tif"]


def test_a_value_that_stands_for_no_data_stays_a_value(tmp_path: Path) -> None:
    pixels = np.linspace(-9999.02, -9998.98, 1600, dtype=np.float32).reshape(1, 40, 40)
    pixels[0, 0, :5] = -9999
    bundle = write_bundle(tmp_path / "b", Identity(), bands=1)
    path = tmp_path / "o.tif"
    predict(write_raster(tmp_path / "s.tif", pixels), bundle, path, scratch=tmp_path)
    with rasterio.open(path) as file:
        assert (file.read_masks(1) == 255).all()  # GDAL compares with a tolerance
        np.testing.assert_allclose(file.read(1), pixels[0], atol=0.02, rtol=0)


class Sums5x5(nn.Module):
    """The sum of all bands over 5 x 5 pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, 5, 1, 2).sum(dim=1, keepdim=True) * 25


def test_several_dates_reach_the_model_as_bands_by_dates(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", LastDate(), bands=2, dates=3)
    rng = np.random.default_rng(0)
    dates = [rng.normal(size=(2, 50, 60)).astype(np.float32) for _ in range(3)]
    paths = [write_raster(tmp_path / f"{n}.tif", date) for n, date in enumerate(dates)]
    predict(paths, bundle, tmp_path / "o.tif", scratch=tmp_path)
    np.testing.assert_allclose(read(tmp_path / "o.tif"), dates[2] - dates[0], atol=1e-5)
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.descriptions == ("test-model 1", "test-model 2")


class LastDate(nn.Module):
    """What changed in each band between the first and the last date."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, -1] - x[:, :, 0]


def test_cancelling_leaves_nothing(tmp_path: Path, scene: Path, segmentation: Bundle) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    asked = iter([False, False, True])
    with pytest.raises(Cancelled):
        predict(
            scene, segmentation, tmp_path / "o.tif", scratch=scratch, cancelled=lambda: next(asked)
        )
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "o.tif").exists()


def test_cancelling_once_all_rows_are_done_leaves_nothing(
    tmp_path: Path, scene: Path, segmentation: Bundle
) -> None:
    done: list[bool] = []
    with pytest.raises(Cancelled):
        predict(
            scene,
            segmentation,
            tmp_path / "o.tif",
            scratch=tmp_path,
            progress=lambda count, total: done.append(count == total),
            cancelled=lambda: done[-1:] == [True],
        )
    assert [it.name for it in tmp_path.iterdir()] == ["s.tif"]


def test_scales_that_are_ignored_are_told(tmp_path: Path, scene: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Sums(), scale_tags=False)
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.tags()["GEOSTUDIO_SCALE_TAGS"] == "ignored"


def test_progress_grows_to_all_pixels(tmp_path: Path, scene: Path, segmentation: Bundle) -> None:
    seen: list[tuple[int, int]] = []
    predict(
        scene,
        segmentation,
        tmp_path / "o.tif",
        scratch=tmp_path,
        progress=lambda done, total: seen.append((done, total)),
        options=PredictOptions(memory=1),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (630_000, 630_000)
    assert len(seen) > 20


def test_a_corrupt_scene_leaves_nothing(tmp_path: Path, segmentation: Bundle) -> None:
    pixels = np.random.default_rng(0).integers(1, 9999, (3, 400, 400)).astype(np.uint16)
    scene = write_raster(tmp_path / "s.tif", pixels)
    with scene.open("rb+") as stream:
        stream.truncate(scene.stat().st_size * 2 // 3)
    with pytest.raises(TaskError, match=r"s\.tif can't be read at columns .* rows") as caught:
        predict(scene, segmentation, tmp_path / "o.tif", scratch=tmp_path)
    assert caught.value.code == "corrupt"
    assert not (tmp_path / "o.tif").exists()
    assert not list(tmp_path.glob("*.scratch*"))


@pytest.mark.parametrize(
    "options", [{"patch": 16, "overlap": 16}, {"trim": 5}, {"overlap": -1, "trim": 0}], ids=str
)
def test_patches_that_would_leave_gaps_are_refused(
    tmp_path: Path, scene: Path, segmentation: Bundle, options: dict[str, int]
) -> None:
    with pytest.raises(TaskError) as caught:
        predict(
            scene,
            segmentation,
            tmp_path / "o.tif",
            scratch=tmp_path,
            options=PredictOptions(**options),
        )
    assert caught.value.code == "bad_patches"


def test_reports_are_json_ready(tmp_path: Path, scene: Path, segmentation: Bundle) -> None:
    import json

    report: PredictionReport = predict(
        scene, segmentation, tmp_path / "o.tif", scratch=tmp_path, window=(300, 200, 64, 64)
    )
    document = json.loads(json.dumps(report.as_dict()))
    assert document["pixels"] == 64 * 64
    assert (document["patch"], document["overlap"], document["trim"]) == (32, 8, 2)
    assert document["peak_rss"] > 50e6
    assert document["versions"]["torch"] == torch.__version__
    assert GRID.a == 10
