from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.errors import TaskError
from geostudio_dagster.raster.mosaic import merge_parts
from geostudio_dagster.raster.overviews import Overviews, halved
from geostudio_dagster_tests.prediction.builders import read, write_raster

WHOLE = np.random.default_rng(0).integers(0, 4, (1, 700, 1100)).astype(np.uint8)
CORES = [(0, 0, 600, 300), (600, 0, 500, 300), (0, 300, 600, 400), (600, 300, 500, 400)]


def part(
    folder: Path, window: tuple[int, int, int, int], **profile: Any
) -> tuple[Path, tuple[int, int, int, int]]:
    col, row, width, height = window
    pixels = WHOLE[:, row : row + height, col : col + width]
    settings = {"transform": Affine(10, 0, 5e5 + 10 * col, 0, -10, 5.3e6 - 10 * row), "nodata": 255}
    path = folder / f"{col}-{row}.tif"
    write_raster(path, pixels, names=["Land cover"], **(settings | profile))
    if pixels.dtype == np.dtype(profile.get("dtype", "uint8")):
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, {1: (1, 2, 3, 255)})
            file.update_tags(GEOSTUDIO_MODEL="m", GEOSTUDIO_TASK=f"t{col}-{row}")
    return path, window


def test_parts_become_the_scene_again(tmp_path: Path) -> None:
    parts = [part(tmp_path, core) for core in CORES]
    target = tmp_path / "whole.tif"
    merge_parts(parts, target, size=(1100, 700), scratch=tmp_path, tags={"GEOSTUDIO_REQUEST": "r"})
    assert cog_validate(target, strict=True, quiet=True)[:2] == (True, [])
    with rasterio.open(target) as file:
        np.testing.assert_array_equal(file.read(), WHOLE)
        assert file.transform == Affine(10, 0, 5e5, 0, -10, 5.3e6)
        assert (file.crs, file.nodata) == ("EPSG:32633", 255)
        assert file.colormap(1)[1] == (1, 2, 3, 255)
        assert file.descriptions == ("Land cover",)
        assert file.tags() == {
            "AREA_OR_POINT": "Area",
            "GEOSTUDIO_MODEL": "m",
            "GEOSTUDIO_REQUEST": "r",
        }
    first = target.read_bytes()
    merge_parts(parts, target, size=(1100, 700), scratch=tmp_path, tags={"GEOSTUDIO_REQUEST": "r"})
    assert target.read_bytes() == first
    assert not list(tmp_path.glob("*merge*"))


def overview(path: Path) -> Any:
    with rasterio.open(path, overview_level=0) as file:
        return file.read()


@pytest.mark.parametrize(("scale", "how"), [(1.0, "mode"), (0.005, "average")])
def test_overviews_are_of_the_whole(tmp_path: Path, scale: float, how: Overviews) -> None:
    parts = [part(tmp_path, core) for core in CORES]
    for path, _ in parts:
        with rasterio.open(path, "r+") as file:
            file.scales = [scale]
    merge_parts(parts, tmp_path / "whole.tif", size=(1100, 700), scratch=tmp_path)
    np.testing.assert_array_equal(overview(tmp_path / "whole.tif"), halved(WHOLE, how, 255))
    with rasterio.open(tmp_path / "whole.tif") as file:
        assert file.scales == (scale,)


def test_missing_parts_are_nodata(tmp_path: Path) -> None:
    parts = [part(tmp_path, core) for core in (CORES[3], CORES[0])]
    merge_parts(parts, tmp_path / "whole.tif", size=(1100, 700), scratch=tmp_path)
    expected = np.full_like(WHOLE, 255)
    expected[:, :300, :600] = WHOLE[:, :300, :600]
    expected[:, 300:, 600:] = WHOLE[:, 300:, 600:]
    np.testing.assert_array_equal(read(tmp_path / "whole.tif"), expected)
    np.testing.assert_array_equal(overview(tmp_path / "whole.tif"), halved(expected, "mode", 255))


@pytest.mark.parametrize(
    "profile", [{"crs": "EPSG:32634"}, {"dtype": "float32"}, {"nodata": 0}, {"transform": Affine(
        10, 0, 0, 0, -10, 0)}], ids=str
)  # fmt: skip
def test_parts_of_something_else_are_refused(tmp_path: Path, profile: dict[str, Any]) -> None:
    parts = [part(tmp_path, CORES[0]), part(tmp_path, CORES[1], **profile)]
    with pytest.raises(TaskError, match=r"600-0\.tif does not fit window") as caught:
        merge_parts(parts, tmp_path / "whole.tif", size=(1100, 700), scratch=tmp_path)
    assert caught.value.code == "parts_differ"
    assert not (tmp_path / "whole.tif").exists()


def test_parts_outside_the_scene_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not fit window"):
        merge_parts(
            [part(tmp_path, CORES[1])], tmp_path / "w.tif", size=(1000, 700), scratch=tmp_path
        )
    with pytest.raises(TaskError, match="no parts"):
        merge_parts([], tmp_path / "w.tif", size=(1000, 700), scratch=tmp_path)
