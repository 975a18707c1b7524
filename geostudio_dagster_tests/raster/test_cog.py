"""COGs out of scratch rasters."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.raster.cog import ScratchRaster, remove_scratch, write_cog
from geostudio_dagster.raster.overviews import Overviews, halved
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.wholeness import check_cog
from geostudio_dagster_tests.prediction.builders import GRID, read

# Two levels of overviews, of even sizes all over; 1010 and 505 are no whole tiles.
WIDE, HIGH = 2020, 1012
CLASSES = np.random.default_rng(5).choice([0, 1, 2, 255], (1, HIGH, WIDE), p=[0.4, 0.3, 0.1, 0.2])
CLASSES = CLASSES.astype(np.uint8)
CLASSES[:, 200:900, 700:1500] = 255  # more than a tile


def blank(path: Path, size: tuple[int, int], overviews: Overviews | None = None) -> ScratchRaster:
    return ScratchRaster(
        path,
        size=size,
        bands=1,
        dtype="uint8",
        nodata=255,
        crs="EPSG:32633",
        transform=GRID,
        overviews=overviews,
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """700 x 600 pixels of noise on waves, uint8."""
    rng = np.random.default_rng(3)
    waves = 90 * np.sin(np.arange(700) / 40) + 120
    pixels = (waves + rng.normal(0, 5, (1, 600, 700))).astype(np.uint8)
    with blank(tmp_path / "scratch.tif", (700, 600)) as raster:
        raster.write(Box(0, 0, 700, 600), pixels)
        raster.describe(tags={"ORIGIN": "test"}, descriptions=["waves"])
    return tmp_path / "scratch.tif"


def test_overviews_that_a_killed_process_left_are_not_those_of_the_next(tmp_path: Path) -> None:
    path, size = tmp_path / "s.tif", (300, 300)
    with blank(path.with_name("s.tif.ovr"), size) as left:
        left.write(Box(0, 0, 300, 300), np.full((1, 300, 300), 7, np.uint8))
    with blank(path, size, "mode") as scratch:
        scratch.write(Box(0, 0, 300, 300), np.ones((1, 300, 300), np.uint8))
    write_cog(path, tmp_path / "o.tif")
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.overviews(1) == []
        assert (file.read(out_shape=(1, 150, 150)) == 1).all()


def test_a_cog_without_one_of_its_tiles_is_not_whole(scratch: Path, tmp_path: Path) -> None:
    path = tmp_path / "o.tif"
    write_cog(scratch, path, "average")
    check_cog(path)
    content = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, _, number, place = struct.unpack_from("<HHII", content, entry)
        if tag in {324, 325}:  # TileOffsets, TileByteCounts
            assert number == 4
            struct.pack_into("<I", content, place + 4, 0)
    path.write_bytes(content)
    with pytest.raises(OSError, match="not all of it could be written"):
        check_cog(path)


def test_the_level_of_compression_changes_the_size_alone(scratch: Path, tmp_path: Path) -> None:
    fast, small = tmp_path / "fast.tif", tmp_path / "small.tif"
    write_cog(scratch, fast, "average", level=1)
    write_cog(scratch, small, "average", level=9)
    assert small.stat().st_size < fast.stat().st_size < scratch.stat().st_size
    for path in (fast, small):
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
        assert np.array_equal(read(path), read(scratch))
        with rasterio.open(path) as file:
            assert file.tags()["ORIGIN"] == "test"
            assert file.descriptions == ("waves",)


def test_equal_bytes_whatever_the_threads(scratch: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        write_cog(scratch, tmp_path / f"{threads}.tif", "mode", threads=threads)
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "3.tif").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.tif", "3.tif", "scratch.tif"]


def like(
    path: Path, pixels: NDArray[Any], how: Overviews | None, nodata: float | None
) -> ScratchRaster:
    """An empty scratch raster that pixels (bands, height, width) can be written into."""
    bands, height, width = pixels.shape
    raster = ScratchRaster(
        path,
        size=(width, height),
        bands=bands,
        dtype=str(pixels.dtype),
        nodata=nodata,
        crs="EPSG:32633",
        transform=GRID,
        overviews=how,
    )
    colours = {1: (1, 2, 3, 255), 2: (9, 8, 7, 255)} if pixels.shape[0] == 1 else None
    raster.describe(tags={"ORIGIN": "test"}, descriptions=["a"] * bands, colours=colours)
    return raster


def cog(
    folder: Path,
    pixels: NDArray[Any],
    how: Overviews,
    nodata: float | None,
    *,
    boxes: Sequence[Box] = (),
    own: bool = True,
) -> Path:
    """A COG of pixels written box by box, with overviews of our own, or of GDAL's."""
    scratch, target = folder / "s.tif", folder / f"{'own' if own else 'gdal'}.tif"
    with like(scratch, pixels, how if own else None, nodata) as raster:
        for box in boxes or [Box(0, 0, pixels.shape[2], pixels.shape[1])]:
            raster.write(box, pixels[:, box.row : box.bottom, box.col : box.right])
    write_cog(scratch, target, None if own else how)
    remove_scratch(scratch)
    assert cog_validate(target, strict=True, quiet=True) == (True, [], [])
    return target


def levels(path: Path) -> list[NDArray[Any]]:
    """The pixels of all overviews, finest first."""
    with rasterio.open(path) as file:
        count = len(file.overviews(1))
    found = []
    for level in range(count):
        with rasterio.open(path, overview_level=level) as file:
            found.append(file.read())
    return found


def cuts(whole: int) -> st.SearchStrategy[list[int]]:
    places = st.sets(st.integers(1, whole - 1), max_size=4)
    return places.map(lambda inner: [0, *sorted(inner), whole])


@given(cuts(WIDE), cuts(HIGH), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_a_class_map_written_in_any_pieces_has_the_bytes_of_gdals(
    tmp_path_factory: pytest.TempPathFactory, cols: list[int], rows: list[int], chance: Any
) -> None:
    folder = tmp_path_factory.mktemp("cog")
    boxes = [
        Box(left, top, right - left, bottom - top)
        for left, right in pairwise(cols)
        for top, bottom in pairwise(rows)
    ]
    chance.shuffle(boxes)
    ours = cog(folder, CLASSES, "mode", 255, boxes=boxes)
    gdals = cog(folder, CLASSES, "mode", 255, own=False)
    assert ours.read_bytes() == gdals.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["gdal.tif", "own.tif"]


@pytest.mark.parametrize("nodata", [-9999.0, np.nan], ids=str)
def test_overviews_of_values_are_gdals_averages(tmp_path: Path, nodata: float) -> None:
    values = np.random.default_rng(6).normal(0, 100, (2, HIGH, WIDE)).astype(np.float32)
    values[np.broadcast_to(CLASSES == 255, values.shape)] = nodata
    ours = cog(tmp_path, values, "average", nodata)
    gdals = cog(tmp_path, values, "average", nodata, own=False)
    np.testing.assert_array_equal(read(ours), values)
    assert len(levels(ours)) == 2
    for found, expected in zip(levels(ours), levels(gdals), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4, equal_nan=True)


def test_overviews_of_several_bands_of_bytes_are_gdals(tmp_path: Path) -> None:
    bands = np.random.default_rng(7).integers(0, 201, (3, HIGH, WIDE)).astype(np.uint8)
    bands[np.broadcast_to(CLASSES == 255, bands.shape)] = 255
    strips = [Box(0, row, WIDE, min(32, HIGH - row)) for row in range(0, HIGH, 32)]
    ours = cog(tmp_path, bands, "average", 255, boxes=strips)
    gdals = cog(tmp_path, bands, "average", 255, own=False)
    assert ours.read_bytes() == gdals.read_bytes()


def test_an_odd_raster_has_overviews_whose_pixels_lie_above_their_squares(tmp_path: Path) -> None:
    odd = CLASSES[:, :1011, :1033]
    half = halved(odd, "mode", 255)
    found = levels(cog(tmp_path, odd, "mode", 255))
    assert [item.shape for item in found] == [(1, 506, 517), (1, 253, 259)]
    np.testing.assert_array_equal(found[0], half)
    np.testing.assert_array_equal(found[1], halved(half, "mode", 255))


def test_what_is_written_twice_counts_as_it_was_written_last(tmp_path: Path) -> None:
    whole, part = Box(0, 0, WIDE, HIGH), Box(100, 300, 800, 501)
    other = np.zeros_like(CLASSES)
    with like(tmp_path / "s.tif", CLASSES, "mode", 255) as raster:
        raster.write(whole, other)
        raster.write(part, other[:, : part.height, : part.width])
        raster.write(whole, CLASSES)
    write_cog(tmp_path / "s.tif", tmp_path / "twice.tif")
    once = cog(tmp_path, CLASSES, "mode", 255)
    assert (tmp_path / "twice.tif").read_bytes() == once.read_bytes()


def test_what_was_left_of_a_larger_raster_is_not_taken_for_an_overview(tmp_path: Path) -> None:
    small = CLASSES[:, :600, :600]
    expected = cog(tmp_path, small, "mode", 255).read_bytes()
    with like(tmp_path / "s.tif", CLASSES, "mode", 255):
        pass
    assert len(list(tmp_path.glob("s.tif*"))) == 3
    assert cog(tmp_path, small, "mode", 255).read_bytes() == expected


def test_equal_bytes_where_gdal_is_told_to_look_at_no_other_file(tmp_path: Path) -> None:
    expected = cog(tmp_path, CLASSES[:, :601], "mode", 255).read_bytes()
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        assert cog(tmp_path, CLASSES[:, :601], "mode", 255).read_bytes() == expected


def test_a_raster_that_was_not_finished_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), like(tmp_path / "s.tif", CLASSES, "mode", 255) as raster:
        raster.write(Box(0, 0, WIDE, 600), CLASSES[:, :600])
        raise KeyboardInterrupt
    remove_scratch(tmp_path / "s.tif")
    assert list(tmp_path.iterdir()) == []
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [link for link in links if link.is_relative_to(tmp_path)]


_FULL = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
from affine import Affine
from geostudio_dagster.raster.cog import ScratchRaster, remove_scratch, write_cog
from geostudio_dagster.raster.patches import Box

folder = Path(sys.argv[1])
scratch, target = folder / "s.tif", folder / "o.tif"
pixels = np.random.default_rng(0).random((1, 1024, 1024), np.float32)
pixels[:, 500:520] = np.nan
most = resource.RLIM_INFINITY
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then it is an error, as on a full disk


def attempt(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        with ScratchRaster(
            scratch, size=(1024, 1024), bands=1, dtype="float32", nodata=np.nan,
            crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -10, 5_300_000),
            overviews="average",
        ) as raster:
            for row in range(0, 1024, 128):
                raster.write(Box(0, row, 1024, 128), pixels[:, row : row + 128])
        write_cog(scratch, target)
    except OSError:
        return None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        length = scratch.stat().st_size
        remove_scratch(scratch)
    return length


length = attempt(most)
whole = target.read_bytes()
target.unlink()
print(json.dumps([length, len(whole)]), flush=True)
for limit in sorted({*range(20_000, len(whole), len(whole) // 40), length - 1, len(whole) - 1}):
    assert attempt(limit) is None, limit
    assert not list(folder.iterdir()), limit
assert attempt(max(length, len(whole)) + 1)
assert target.read_bytes() == whole
"""


def test_where_the_disk_is_full_there_is_no_cog_and_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scratch, cog = json.loads(done.stdout)
    assert scratch < cog  # so that some limits are met by the one and not by the other
