"""Panels share the core and its patches among them, and change no pixel."""

from __future__ import annotations

import contextlib
import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.panels import choose_reading, panels
from geostudio_dagster.raster.patches import Box, PatchGrid
from geostudio_dagster.raster.scene import Scene
from geostudio_dagster.raster.strips import SceneStrip
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    read,
    write_bundle,
    write_raster,
)


@st.composite
def grids(draw: st.DrawFn) -> PatchGrid:
    size = draw(st.integers(1, 100))
    overlap = draw(st.integers(0, size - 1))
    width = draw(st.integers(1, 1500))
    return PatchGrid(70, width, size, overlap, draw(st.integers(0, overlap // 2)))


@given(grids(), st.data())
@settings(max_examples=300, deadline=None)
def test_each_pixel_and_each_patch_belongs_to_one_panel(
    grid: PatchGrid, data: st.DataObject
) -> None:
    col = data.draw(st.integers(0, grid.width - 1))
    core = Box(col, 3, data.draw(st.integers(1, grid.width - col)), 60)
    widest = data.draw(st.integers(2 * grid.size, 2 * grid.size + 700))
    found = panels(grid, core, widest)
    pixels = [pixel for panel in found for pixel in range(panel.box.col, panel.box.right)]
    assert pixels == list(range(core.col, core.right))
    assert [col for panel in found for col in panel.cols] == list(grid.within(core)[1])
    assert {(panel.box.row, panel.box.height) for panel in found} == {(core.row, core.height)}
    for panel, next_panel in zip(found, [*found[1:], None], strict=True):
        ends = [min(grid.cols.extent(col)[1], core.right) for col in panel.cols]
        begins = [max(grid.cols.extent(col)[0], core.col) for col in panel.cols]
        assert min(begins) == panel.box.col, "no patch reaches back"
        assert max(ends) <= (next_panel.box.right if next_panel else core.right)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("panels") / "bundle", Convolutions(2, 3), bands=2)


@given(
    width=st.integers(90, 400),
    size=st.integers(16, 40),
    share=st.floats(0, 0.8),
    holes=st.booleans(),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_narrow_panels_give_the_same_file_from_as_many_patches(
    bundle: Bundle, tmp_path: Path, *, width: int, size: int, share: float, holes: bool
) -> None:
    assume(width > 2 * size)
    overlap = int(share * size)
    pixels = np.random.default_rng(width).normal(size=(2, 75, width)).astype(np.float32)
    if holes:
        pixels[:, 10:60, width // 3 : width // 3 + 2 * size] = np.nan
    scene = write_raster(tmp_path / "s.tif", pixels, block=32)
    results = []
    for memory in (1, 64 * 1024**2):
        options = PredictOptions(patch=size, overlap=overlap, trim=overlap // 4, memory=memory)
        target = tmp_path / f"{memory}.tif"
        report = predict(scene, bundle, target, scratch=tmp_path, options=options)
        results.append((report.patches, report.nodata_fraction, read(target).tobytes()))
    assert results[0] == results[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.tif", "67108864.tif", "s.tif"]


class Counted:
    """A local GeoTIFF that notes the places that GDAL reads at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.places: list[int] = []

    def __fspath__(self) -> str:
        return str(self._path)

    def opener(self, _path: str, _mode: str = "rb", **_: Any) -> io.RawIOBase:
        return _Noting(self._path, self.places)

    def decodings(self) -> float:
        """How often each block was read, on average."""
        read = self.blocks()
        assert set(read.values()) <= set(self.places), "every block is read"
        return sum(place in read.values() for place in self.places) / len(read)

    def blocks(self) -> dict[tuple[int, int], int]:
        """Where the blocks begin, by their column and row."""
        with rasterio.open(self._path) as file:
            rows, cols = file.block_shapes[0]
            grid = product(range(-(-file.width // cols)), range(-(-file.height // rows)))
            return {
                (col, row): int(file.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
                for col, row in grid
            }


class _Noting(io.FileIO):
    def __init__(self, path: Path, places: list[int]) -> None:
        super().__init__(path)
        self._places = places

    def read(self, size: int | None = -1, /) -> bytes:
        self._places.append(self.tell())
        return super().read(size)


@pytest.mark.parametrize(
    ("block", "panels", "most"),
    [
        ((16, 16), 2, 33 / 32),
        ((64, 64), 3, 10 / 8),
        ((256, 256), 1, 1.0),
        ((512, 512), 1, 1.0),
        ((16, 512), 1, 1.0),
        ((1, 512), 1, 1.0),
    ],
)
def test_blocks_are_decoded_once_and_again_only_where_two_panels_meet(
    bundle: Bundle, tmp_path: Path, block: tuple[int, int], panels: int, most: float
) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 520, 512)).astype(np.float32)
    shape = {"blockysize": block[0], "blockxsize": block[1], "tiled": block[1] < 512}
    scene = Counted(write_raster(tmp_path / "s.tif", pixels, interleave="pixel", **shape))
    reading = choose_reading(block, 512, 32, pixel=9, output=13, memory=1)
    memory = reading.per_column * (512 // panels + 64 + 1)
    options = PredictOptions(patch=32, overlap=8, memory=memory)
    predict(scene, bundle, tmp_path / "out.tif", scratch=tmp_path, options=options)
    assert scene.decodings() <= most


@pytest.mark.parametrize(
    ("block", "channels", "load", "decodings"),
    [
        ((512, 512), 6, 512, 1 + 2 / 22),  # a COG's blocks
        ((1024, 1024), 6, 1024, 1 + 3 / 11),  # Sentinel-2's
        ((256, 256), 6, 256, 1 + 1 / 43),
        ((1, 10980), 6, 64, 1.0),  # strips: a panel more would decode all of them again
        ((16, 10980), 6, 64, 1.0),
        ((4096, 4096), 6, 4096, 1 + 15 / 3),  # four parts of each would make it eight
        ((1024, 1024), 60, 256, 4 * (1 + 16 / 11)),  # more rows take too much memory,
    ],
)
def test_rows_are_read_so_that_a_sentinel_2_granule_is_decoded_least_often(
    block: tuple[int, int], channels: int, load: int, decodings: float
) -> None:
    pixel, most = 2 * channels + 1, 64 * 1024**2
    reading = choose_reading(block, 10980, 224, pixel=pixel, output=9, memory=most)
    assert (reading.load, reading.decodings) == (load, pytest.approx(decodings))
    assert reading.per_column * (reading.widest + 2 * 224) <= most


def test_the_first_patch_waits_for_no_column_that_it_does_not_need(
    bundle: Bundle, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 96, 1024)).astype(np.float32)
    counted = Counted(write_raster(tmp_path / "s.tif", pixels, interleave="pixel"))
    blocks = counted.blocks()
    with Scene(counted, bundle.manifest) as scene:
        counted.places.clear()
        strip = SceneStrip(scene, (0, 1024), (0, 96), size=48, load=64)
        strip.advance(0)
        np.testing.assert_array_equal(strip.patch(0, 0)[0], pixels[:, :48, :48])
        read = {place for place, offset in blocks.items() if offset in counted.places}
        assert read == {(0, 0), (1, 0)}
        np.testing.assert_array_equal(strip.patch(0, 976)[0], pixels[:, :48, 976:])
        read = {place for place, offset in blocks.items() if offset in counted.places}
        assert read == {(col, 0) for col in range(16)}


def nameless_bytes(folder: Path) -> int:
    """What files that this process holds open below ``folder``, but that have no name, take."""
    held = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them is closed by now
            target = str(link.readlink())
            if target.startswith(str(folder)) and target.endswith("(deleted)"):
                held += link.stat().st_size
    return held


def most_held(bundle: Bundle, folder: Path, width: int) -> int:
    """The most that a prediction in panels of two patches held on the disk without a name."""
    scene = write_raster(folder / f"{width}.tif", np.ones((2, 320, width), np.float32), block=32)
    held: list[int] = []
    predict(
        scene,
        bundle,
        folder / f"{width}.out.tif",
        scratch=folder,
        options=PredictOptions(patch=64, overlap=32, trim=4, memory=1),
        progress=lambda _done, _all: held.append(nameless_bytes(folder)),
    )
    assert nameless_bytes(folder) == 0
    return max(held)


def test_the_disk_holds_the_edges_of_two_panels_however_wide_the_scene(
    bundle: Bundle, tmp_path: Path
) -> None:
    three_panels, nine_panels = most_held(bundle, tmp_path, 288), most_held(bundle, tmp_path, 1152)
    # Nine rows of patches, each 3 channels of 64 rows and 28 columns in float32.
    assert three_panels > 1.8 * 9 * 3 * 64 * 28 * 4
    assert nine_panels <= 1.05 * three_panels
