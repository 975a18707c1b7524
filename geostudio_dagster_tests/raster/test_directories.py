"""Files that were cut off behind their pixels: their last tags must not be missed in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from geostudio_dagster.connectors.header import check_scene
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.checksums import LocalBytes
from geostudio_dagster.raster.directories import CutShortError, check_directories
from geostudio_dagster.raster.scene import Scene
from geostudio_dagster_tests.prediction.builders import write_raster

PIXELS = np.arange(3 * 64 * 64, dtype=np.uint16).reshape(3, 64, 64)
KINDS = [{}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}, {"BIGTIFF": "YES", "ENDIANNESS": "BIG"}]
MANIFEST = BundleManifest.model_validate(
    {
        "name": "m",
        "runtime": "torchscript",
        "weights": "w.pt",
        "task": "regression",
        "bands": [{"name": name} for name in "abc"],
        "scale_tags": True,
    }
)


@pytest.fixture(params=KINDS, ids=str)
def written_last(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A scene whose scales, offsets and names are the last that was written."""
    profile: dict[str, Any] = request.param
    path = write_raster(tmp_path / "s.tif", PIXELS, names="abc", nodata=0, **profile)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [1e-3] * 3, [5.0] * 3
        file.build_overviews([2], rasterio.enums.Resampling.nearest)
    return path


def cut(path: Path, count: int) -> Path:
    shorter = path.with_name(f"cut{count}.tif")
    shorter.write_bytes(path.read_bytes()[:-count])
    return shorter


def test_whole_files_have_all_that_they_name(written_last: Path) -> None:
    with LocalBytes(written_last) as content:
        check_directories(content)
    with Scene(written_last, MANIFEST) as scene:
        assert {channel.gain for channel in scene.channels} == {1e-3}


def test_no_scale_nor_name_is_lost_where_the_end_is_cut_off(written_last: Path) -> None:
    # The last overview's blocks come last of all; it is not read, so it may be cut short.
    for count in range(1, written_last.stat().st_size, 61):
        try:
            with Scene(cut(written_last, count), MANIFEST) as scene:
                assert {channel.gain for channel in scene.channels} == {1e-3}
        except TaskError as error:
            assert error.code == "not_a_raster"
            assert f"cut{count}.tif can't be opened as a GeoTIFF" in str(error)


def test_values_behind_the_end_are_told(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS)
    with rasterio.open(path, "r+") as file:
        file.scales = [1e-3] * 3
    with LocalBytes(cut(path, 1)) as content, pytest.raises(CutShortError, match="cut short"):
        check_directories(content)
    with pytest.raises(TaskError, match=r"my scene: it is cut short, .* upload it again"):
        check_scene(cut(path, 1), "my scene")  # as it comes in
    with pytest.raises(TaskError) as caught:
        Scene(cut(path, 1), MANIFEST)
    assert str(caught.value) == (
        "cut1.tif can't be opened as a GeoTIFF: it is cut short, values of its tags are missing; "
        "give a GeoTIFF or a COG that is complete."
    )
