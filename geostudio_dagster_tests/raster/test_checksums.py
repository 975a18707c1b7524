"""Deflate blocks that GDAL would return garbage for: told by their checksums, wherever they are."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.scene import Scene
from geostudio_dagster_tests.prediction.builders import write_raster

RNG = np.random.default_rng(0)
# Like imagery: differences between neighbours are small, so that a hole of zeros inflates well.
PIXELS = (3000 + np.cumsum(RNG.integers(-20, 21, (2, 200, 260)), axis=2)).astype(np.uint16)
BLOCKS = {"blockxsize": 64, "blockysize": 64}
MASK = RNG.random((200, 260)) < 1 / 3
MANIFEST = BundleManifest.model_validate(
    {
        "name": "m",
        "runtime": "torchscript",
        "weights": "m.pt",
        "task": "regression",
        "bands": [{"name": "a"}, {"name": "b"}],
    }
)


def written(path: Path, **profile: Any) -> Path:
    return write_raster(path, PIXELS, **({"predictor": 2, "interleave": "pixel"} | profile))


def place(path: Path, row: int, col: int, band: int = 1, page: int = 1) -> tuple[int, int]:
    """Offset and size of a block in its file."""
    with rasterio.open(f"GTIFF_DIR:{page}:{path}") as file:
        offset, size = (
            file.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band)
            for what in ("OFFSET", "SIZE")
        )
    return int(offset), int(size)


def hole(path: Path, row: int, col: int, band: int = 1, page: int = 1) -> Path:
    """The file with the last three quarters of a block zero, as a broken copy leaves it."""
    offset, size = place(path, row, col, band, page)
    with path.open("rb+") as stream:
        stream.seek(offset + size // 4)
        stream.write(bytes(size - size // 4))
    return path


def read(scene: Scene, box: Box | None = None) -> np.ndarray:
    box = box or scene.core(None)
    pixels = np.empty((len(scene.channels), box.height, box.width), scene.dtype)
    scene.read(box, pixels, np.empty((box.height, box.width), bool))
    return pixels


def failure(path: Path, threads: int = 1) -> TaskError:
    with Scene(path, MANIFEST, threads) as scene, pytest.raises(TaskError) as caught:
        read(scene)
    return caught.value


def test_gdal_alone_takes_a_hole_for_pixels(tmp_path: Path) -> None:
    path = hole(written(tmp_path / "s.tif"), 1, 2)
    with rasterio.open(path) as file:
        assert (file.read() != PIXELS).any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("profile", "where"),
    [
        (
            {},
            "the block of 64 x 64 pixels at column 128, row 64 is damaged or cut short",
        ),
        ({"interleave": "band"}, "of 64 x 64 pixels at column 128, row 64 of band 2 is damaged"),
        ({"driver": "COG", "blocksize": 64}, "of 64 x 64 pixels at column 128, row 64"),
        ({"tiled": False, "blockysize": 16}, "of 260 x 16 pixels at column 0, row 16"),
    ],
)
def test_a_hole_in_a_block_is_told_by_file_and_place(
    tmp_path: Path, profile: dict[str, Any], where: str, threads: int
) -> None:
    path = written(tmp_path / "s.tif", **profile)
    with Scene(path, MANIFEST, threads) as scene:
        np.testing.assert_array_equal(read(scene), PIXELS)
    band = 2 if profile.get("interleave") == "band" else 1
    error = failure(hole(path, 1, 0 if "tiled" in profile else 2, band), threads)
    assert (error.code, error.retryable) == ("corrupt", False)
    assert str(error).startswith("s.tif can't be read at columns 0 to 260, rows 0 to 200: ")
    assert where in str(error)
    assert str(error).endswith("; upload the file again.")


def with_mask(path: Path, **profile: Any) -> Path:
    """The file with a mask of its own in it, where a third of the pixels counts."""
    rough = written(path.with_name("rough.tif"))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(rough, "r+") as file:
        file.build_overviews([2, 4])
        file.write_mask(MASK)
        if profile:
            rasterio.shutil.copy(file, path, **profile)
    return path if profile else rough.rename(path)


@pytest.mark.parametrize(
    ("profile", "page"),
    [
        ({"driver": "COG", "blocksize": 64, "compress": "deflate"}, 2),
        ({"driver": "GTiff", "compress": "lzw", "tiled": True, **BLOCKS}, 2),
        ({}, 4),  # after the overviews
    ],
)
def test_a_hole_in_a_mask_is_told(tmp_path: Path, profile: dict[str, Any], page: int) -> None:
    path = with_mask(tmp_path / "s.tif", **profile)
    valid = np.empty(MASK.shape, bool)
    with Scene(path, MANIFEST) as scene:
        scene.read(scene.core(None), np.empty(PIXELS.shape, np.uint16), valid)
        np.testing.assert_array_equal(valid, MASK)
    error = failure(hole(path, 1, 2, page=page))
    assert error.code == "corrupt"
    assert "pixels at column 128, row 64 of the mask is damaged or cut short" in str(error)


def test_a_hole_in_an_alpha_band_is_told(tmp_path: Path) -> None:
    pixels = np.concatenate([PIXELS, PIXELS[:1]])
    path = write_raster(tmp_path / "s.tif", pixels, interleave="band", predictor=2, **BLOCKS)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
    with Scene(path, MANIFEST) as scene:
        np.testing.assert_array_equal(read(scene), PIXELS)
    error = failure(hole(path, 1, 2, band=3))
    assert error.code == "corrupt"
    assert "column 128, row 64 of band 3 is damaged" in str(error)


def test_whoever_does_not_need_a_damaged_block_may_read_on(tmp_path: Path) -> None:
    path = hole(written(tmp_path / "s.tif", interleave="band"), 1, 2, band=2)
    with Scene(path, MANIFEST) as scene:
        box = Box(0, 0, 128, 200)
        np.testing.assert_array_equal(read(scene, box), PIXELS[:, :, :128])
    only = MANIFEST.model_copy(
        update={"bands": (MANIFEST.bands[0].model_copy(update={"index": 0}),)}
    )
    with Scene(path, only) as scene:
        np.testing.assert_array_equal(read(scene), PIXELS[:1])


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_never_passes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "flipped.tif")
    offset, size = place(path, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 4)))
    at, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    content = bytearray(path.read_bytes())
    content[offset + at] ^= 1 << bit
    path.write_bytes(content)
    with Scene(path, MANIFEST) as scene:
        try:
            found = read(scene)
        except TaskError as error:
            assert error.code == "corrupt"
        else:
            np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize("compress", ["lzw", "zstd", None])
def test_other_compressions_have_nothing_to_check(tmp_path: Path, compress: str | None) -> None:
    path = written(tmp_path / "s.tif", compress=compress, predictor=1)
    with Scene(path, MANIFEST) as scene:
        np.testing.assert_array_equal(read(scene), PIXELS)


def test_blocks_that_are_not_stored_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    write_raster(path, np.zeros_like(PIXELS), sparse_ok=True)
    with Scene(path, MANIFEST) as scene:
        assert not read(scene).any()


def test_a_last_strip_with_more_rows_than_the_scene_is_no_damage(tmp_path: Path) -> None:
    # Some writers pad it. Here the scene ends earlier than it did when its strips were written.
    path = written(tmp_path / "s.tif", tiled=False, blockysize=40)
    content = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry) == (257,):  # ImageLength
            struct.pack_into("<HIHH", content, entry + 2, 3, 1, 170, 0)
    path.write_bytes(content)
    with Scene(path, MANIFEST) as scene:
        assert scene.size == (260, 170)
        np.testing.assert_array_equal(read(scene), PIXELS[:, :170])


@pytest.mark.parametrize("bands", [1, 2])
@pytest.mark.parametrize("box", [Box(0, 0, 512, 2100), Box(0, 1500, 512, 9)])
def test_one_strip_of_very_many_rows_is_checked_as_a_whole(
    tmp_path: Path, bands: int, box: Box
) -> None:
    # GDAL shows it as blocks of one row.
    pixels = RNG.integers(0, 12, (bands, 2100, 512)).astype(np.uint8)
    profile = {"tiled": False, "blockysize": 2100, "interleave": "pixel"}
    path = write_raster(tmp_path / "s.tif", pixels, **profile)
    with rasterio.open(path) as file:
        assert file.block_shapes[0] == (1, 512)
    wants = MANIFEST.model_copy(update={"bands": MANIFEST.bands[:bands]})
    with Scene(path, wants) as scene:
        expected = pixels[:, box.row : box.bottom]
        np.testing.assert_array_equal(read(scene, box), expected)
    offset, size = place(path, 0, 0)
    with path.open("rb+") as stream:
        stream.seek(offset + size - 9000)
        stream.write(bytes(9000))
    with (
        Scene(path, wants) as scene,
        pytest.raises(TaskError, match="block of 512 x 2100 pixels at column 0, row 0 is damaged"),
    ):
        read(scene, box)


def test_rows_of_a_sparse_file_are_checked_one_by_one(tmp_path: Path) -> None:
    # An empty second row looks like one strip, of which GDAL shows the first row alone.
    pixels = RNG.integers(1, 12, (1, 40, 512)).astype(np.uint8)
    pixels[0, 1] = 0
    path = write_raster(
        tmp_path / "s.tif", pixels, tiled=False, blockysize=1, nodata=0, sparse_ok=True
    )
    assert place(path, 0, 0)[0] > 0
    with rasterio.open(path) as file:
        assert file.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1) is None
    wants = MANIFEST.model_copy(update={"bands": MANIFEST.bands[:1]})
    with Scene(path, wants) as scene:
        np.testing.assert_array_equal(read(scene), pixels)
    offset, size = place(path, 20, 0)
    with path.open("rb+") as stream:
        stream.seek(offset + size // 3)
        stream.write(bytes(size - size // 3))
    with rasterio.open(path) as file:
        assert not np.array_equal(file.read(), pixels)  # without a word
    with Scene(path, wants) as scene, pytest.raises(TaskError, match="row 20 is damaged"):
        read(scene)


def test_damage_by_one_who_writes_meanwhile_may_be_tried_again(tmp_path: Path) -> None:
    path = written(tmp_path / "s.tif")
    os.utime(path, (1, 1))
    with Scene(path, MANIFEST) as scene:
        hole(path, 1, 2)
        with pytest.raises(TaskError, match=r"s\.tif changed while it was read") as caught:
            read(scene)
    assert (caught.value.code, caught.value.retryable) == ("input_changed", True)


def test_a_block_of_zeros_without_end_is_given_up(tmp_path: Path) -> None:
    # A stream as long as its block may be huge when inflated.
    path = write_raster(tmp_path / "s.tif", PIXELS, block=256, interleave="pixel")
    offset, size = place(path, 0, 0)
    bomb = zlib.compressobj(9)
    stream = bomb.compress(bytes(size * 900))
    assert len(stream) < size
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(stream)
    assert failure(path).code == "corrupt"
