"""What is masked, to the pixel: by Sentinel-2's scene classification and by Fmask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.errors import TaskError
from geostudio_dagster.planning.masks import Masking
from geostudio_dagster.postprocess.masking import is_masked, write_masked
from geostudio_dagster.postprocess.statistics import statistics
from geostudio_dagster_tests.postprocess.test_statistics import SEGMENTATION
from geostudio_dagster_tests.raster.test_checksums import hole

SCL = Masking(band="SCL", index=1, encoding="sentinel2_scl", kinds=("cloud", "snow_ice"))
FMASK = Masking(band="Fmask", encoding="hls_fmask", kinds=("cloud", "snow_ice"))
CLASSES = np.array([[0, 1, 2, 0], [1, 1, 255, 2]], np.uint8)
CODES = np.array([[4, 8, 9, 3], [11, 6, 9, 10]], np.uint8)


def raster(
    path: Path, *bands: np.ndarray[Any, Any], names: tuple[str, ...] = (), **more: Any
) -> Path:
    height, width = bands[0].shape
    profile = {
        "driver": "GTiff", "count": len(bands), "height": height, "width": width,
        "dtype": bands[0].dtype, "crs": "EPSG:32633",
        "transform": from_origin(500_000, 5_300_000, 10, 10), **more,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        for number, pixels in enumerate(bands, start=1):
            file.write(pixels, number)
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
    return path


def masked(
    tmp_path: Path, prediction: Path, scene: Path, masking: Masking = SCL, **more: Any
) -> Any:
    target = tmp_path / "pred_masked.tif"
    write_masked(prediction, scene, masking, target, scratch=tmp_path, **more)
    assert cog_validate(target)[0]
    assert not list(tmp_path.glob("*.mask*"))
    return rasterio.open(target)


@pytest.fixture
def prediction(tmp_path: Path) -> Path:
    return raster(tmp_path / "pred.tif", CLASSES, nodata=255)


def test_clouds_and_snow_get_geostudios_values_and_nodata_stays(
    tmp_path: Path, prediction: Path
) -> None:
    scene = raster(tmp_path / "s.tif", CODES * 0, CODES, names=("B02", "scl"))
    with masked(tmp_path, prediction, scene) as found:
        assert found.read(1).tolist() == [[0, 999, 999, 999], [998, 1, 65535, 2]]
        assert (found.nodata, found.dtypes[0], found.crs) == (65535, "uint16", "EPSG:32633")
        assert found.transform == from_origin(500_000, 5_300_000, 10, 10)
        assert found.tags()["GEOSTUDIO_MASKED"] == "cloud,snow_ice by SCL"


def test_figures_are_of_the_masked_map(tmp_path: Path, prediction: Path) -> None:
    scene = raster(tmp_path / "s.tif", CODES * 0, CODES, names=("B02", "SCL"))
    masked(tmp_path, prediction, scene).close()
    found = statistics(tmp_path / "pred_masked.tif", SEGMENTATION)
    counted = {entry["value"]: (entry["name"], entry["pixels"]) for entry in found["classes"]}
    assert counted == {
        0: ("water", 1),
        1: ("land", 1),
        2: ("cloud", 1),
        998: ("Snow and ice", 1),
        999: ("Clouds", 3),
    }
    assert found["valid_pixels"] == 7


def test_only_what_was_asked_for_is_masked(tmp_path: Path, prediction: Path) -> None:
    scene = raster(tmp_path / "s.tif", CODES, names=("SCL",))
    snow = SCL.model_copy(update={"kinds": ("snow_ice",)})
    with masked(tmp_path, prediction, scene, snow) as found:
        assert found.read(1).tolist() == [[0, 1, 2, 0], [998, 1, 65535, 2]]


def test_a_band_without_a_name_is_found_by_its_place(tmp_path: Path, prediction: Path) -> None:
    scene = raster(tmp_path / "s.tif", CODES.astype(np.float32), CODES.astype(np.float32))
    with masked(tmp_path, prediction, scene) as found:
        assert found.read(1)[1, 0] == 998


def test_what_lies_beside_the_scene_names_no_band(tmp_path: Path, prediction: Path) -> None:
    scene = raster(tmp_path / "s.tif", CODES * 0, CODES, names=("B02", "B03"))
    named = '<PAMRasterBand band="2"><Description>SCL</Description></PAMRasterBand>'
    (tmp_path / "s.tif.aux.xml").write_text(f"<PAMDataset>{named}</PAMDataset>")
    with pytest.raises(TaskError, match=r"has no band SCL to mask by \(2 bands: B02, B03\)"):
        masked(tmp_path, prediction, scene)


def test_fmask_is_read_by_its_bits(tmp_path: Path, prediction: Path) -> None:
    codes = np.array([[0, 0b10, 0b1000, 0b100000], [0b10000, 0b11000000, 255, 0b10010]], np.uint8)
    scene = raster(tmp_path / "s.tif", codes, names=("Fmask",))
    with masked(tmp_path, prediction, scene, FMASK) as found:
        assert found.read(1).tolist() == [[0, 999, 999, 0], [998, 1, 65535, 998]]


def test_a_window_is_masked_by_its_part_of_the_scene(tmp_path: Path) -> None:
    codes = np.zeros((6, 8), np.uint8)
    codes[2:4, 4:8] = CODES
    scene = raster(tmp_path / "s.tif", codes, names=("SCL",))
    corner = from_origin(500_040, 5_299_980, 10, 10)
    part = raster(tmp_path / "part.tif", CLASSES, nodata=255, transform=corner)
    with masked(tmp_path, part, scene, window=(4, 2, 4, 2)) as found:
        assert found.read(1).tolist() == [[0, 999, 999, 999], [998, 1, 65535, 2]]


def test_of_values_what_is_masked_becomes_nodata(tmp_path: Path) -> None:
    values = raster(tmp_path / "v.tif", CLASSES.astype(np.float32), nodata=-9999.0)
    scene = raster(tmp_path / "s.tif", CODES, names=("SCL",))
    with masked(tmp_path, values, scene) as found:
        assert found.read(1).tolist() == [[0, -9999, -9999, -9999], [-9999, 1, -9999, 2]]
        assert found.dtypes[0] == "float32"


def test_the_same_again_is_the_same_bytes(tmp_path: Path, prediction: Path) -> None:
    scene = raster(tmp_path / "s.tif", CODES, names=("SCL",))
    bytes_of = []
    for _ in range(2):
        masked(tmp_path, prediction, scene).close()
        bytes_of.append((tmp_path / "pred_masked.tif").read_bytes())
    assert bytes_of[0] == bytes_of[1]


def test_without_the_band_nothing_is_said_to_be_masked(tmp_path: Path, prediction: Path) -> None:
    scene = raster(tmp_path / "s.tif", CODES, names=("B02",))
    with pytest.raises(TaskError, match="has no band SCL to mask by"):
        masked(tmp_path, prediction, scene)
    assert not (tmp_path / "pred_masked.tif").exists()


def test_what_a_damaged_block_tells_masks_nothing(tmp_path: Path) -> None:
    # GDAL takes it for pixels without clouds.
    codes = np.random.default_rng(0).choice([4, 5, 8], (256, 64)).repeat(4, axis=1).astype(np.uint8)
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "band"}
    bands = [codes * 0, codes]
    scene = raster(tmp_path / "s.tif", *bands, names=("B02", "SCL"), compress="deflate", **tiles)
    prediction = raster(tmp_path / "pred.tif", codes // 5, nodata=255)
    part = raster(tmp_path / "part.tif", codes[:, :128] // 5, nodata=255)
    hole(scene, 1, 2, band=2)
    with pytest.raises(TaskError) as caught:
        masked(tmp_path, prediction, scene)
    assert caught.value.code == "corrupt"
    assert str(caught.value) == (
        "s.tif can't be read: the block of 64 x 64 pixels at column 128, row 64 of band 2 is "
        "damaged or cut short, by its checksum; upload the file again."
    )
    assert not (tmp_path / "pred_masked.tif").exists()
    with masked(tmp_path, part, scene, window=(0, 0, 128, 256)) as found:
        assert ((found.read(1) == 999) == (codes[:, :128] == 8)).all()


def test_another_grid_is_refused(tmp_path: Path, prediction: Path) -> None:
    scene = raster(
        tmp_path / "s.tif", CODES, names=("SCL",), transform=from_origin(500_000, 5_300_000, 20, 20)
    )
    with pytest.raises(TaskError, match="another grid"):
        masked(tmp_path, prediction, scene)


@given(code=st.integers(0, 255))
def test_no_code_is_both_clear_and_clouded(code: int) -> None:
    band = np.array([code])
    by_bits = bool(code & 0b1111) and code != 255
    assert bool(is_masked(band, "hls_fmask", "cloud")[0]) is by_bits
    assert bool(is_masked(band, "sentinel2_scl", "cloud")[0]) is (code in (3, 8, 9))
