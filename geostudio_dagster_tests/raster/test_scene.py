from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.vrt import WarpedVRT

from geostudio_dagster.connectors.header import check_scene
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.opening import Source
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.scene import Scene
from geostudio_dagster.raster.strips import SceneStrip
from geostudio_dagster_tests.prediction.builders import write_raster


def manifest(*names: str, **more: object) -> BundleManifest:
    document = {
        "name": "m",
        "runtime": "torchscript",
        "weights": "m.pt",
        "task": "regression",
        "bands": [{"name": name} for name in names or ("a",)],
    }
    return BundleManifest.model_validate(document | more)


def valid_pixels(source: Source, wants: BundleManifest) -> np.ndarray:
    with Scene(source, wants) as scene:
        box = scene.core(None)
        pixels = np.empty((len(scene.channels), box.height, box.width), scene.dtype)
        valid = np.empty((box.height, box.width), bool)
        scene.read(box, pixels, valid)
    return valid


def failure(source: Source, wants: BundleManifest) -> TaskError:
    with pytest.raises(TaskError) as caught:
        Scene(source, wants)
    return caught.value


PIXELS = np.arange(1, 2 * 8 * 8 + 1, dtype=np.uint16).reshape(2, 8, 8)


def test_a_pixel_counts_where_no_band_of_it_is_nodata(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, nodata=70, block=16)
    valid = valid_pixels(path, manifest("a", "b"))
    assert [tuple(place) for place in np.argwhere(~valid)] == [(0, 5)]  # 70 is in band 2


@pytest.mark.parametrize("nodata", [-9999, 70.5, 1e30, np.nan])
def test_nodata_that_no_pixel_can_have_is_none(tmp_path: Path, nodata: float) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    assert valid_pixels(path, manifest("a", "b", nodata=nodata)).all()


def test_unused_bands_do_not_invalidate(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, nodata=70, names=["a", "b"], block=16)
    assert valid_pixels(path, manifest("a")).all()


def test_the_manifests_nodata_serves_scenes_without_one(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    assert np.argwhere(~valid_pixels(path, manifest("a", "b", nodata=1))).tolist() == [[0, 0]]


def test_nan_and_infinity_are_nodata(tmp_path: Path) -> None:
    pixels = PIXELS.astype(np.float32)
    pixels[0, 1, 2], pixels[1, 3, 4] = np.nan, np.inf
    path = write_raster(tmp_path / "s.tif", pixels, nodata=np.nan, block=16)
    invalid = np.argwhere(~valid_pixels(path, manifest("a", "b")))
    assert invalid.tolist() == [[1, 2], [3, 4]]


def test_numbers_that_float32_has_not_are_nodata(tmp_path: Path) -> None:
    pixels = PIXELS.astype(np.float64)
    pixels[0, 1, 2], pixels[1, 3, 4], pixels[0, 5, 5] = -1.7e308, 3.5e38, 3.4e38
    path = write_raster(tmp_path / "s.tif", pixels, block=16)
    invalid = np.argwhere(~valid_pixels(path, manifest("a", "b")))
    assert invalid.tolist() == [[1, 2], [3, 4]]


def test_a_mask_band_counts(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    mask = np.full((8, 8), 255, np.uint8)
    mask[2:4] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    np.testing.assert_array_equal(valid_pixels(path, manifest("a", "b")), mask > 0)


def test_the_mask_of_every_date_counts(tmp_path: Path) -> None:
    dates = [write_raster(tmp_path / f"{n}.tif", PIXELS, block=16) for n in range(2)]
    mask = np.full((8, 8), 255, np.uint8)
    mask[5, 1:3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(dates[1], "r+") as file:
        file.write_mask(mask)
    np.testing.assert_array_equal(valid_pixels(dates, manifest("a", "b", dates=2)), mask > 0)


def test_integers_are_scaled_to_what_floats_are(tmp_path: Path) -> None:
    band = {"name": "a", "integer_scale": 1e-4, "mean": 0.3, "std": 0.1}
    wants = manifest(bands=[band])
    stored = write_raster(tmp_path / "i.tif", PIXELS[:1] * 100, block=16)
    real = write_raster(tmp_path / "f.tif", (PIXELS[:1] / 100).astype(np.float32), block=16)
    seen = []
    for path in (stored, real):
        with Scene(path, wants) as scene:
            pixels = np.empty((1, 8, 8), scene.dtype)
            scene.read(scene.core(None), pixels, np.empty((8, 8), bool))
            (channel,) = scene.channels
            seen.append((pixels - channel.centre) * channel.gain)
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)
    np.testing.assert_allclose(seen[1], (PIXELS[:1] / 100 - 0.3) / 0.1, atol=1e-6)


def test_band_files_of_several_types_lose_nothing(tmp_path: Path) -> None:
    small = write_raster(tmp_path / "a.tif", PIXELS[:1].astype(np.uint8), names="a", block=16)
    large = write_raster(tmp_path / "b.tif", PIXELS[1:] + 40_000, names="b", block=16)
    with Scene([small, large], manifest("a", "b")) as scene:
        pixels = np.empty((2, 8, 8), scene.dtype)
        scene.read(scene.core(None), pixels, np.empty((8, 8), bool))
    np.testing.assert_array_equal(pixels, [PIXELS[0], PIXELS[1] + 40_000])


def test_what_lies_beside_a_scene_changes_nothing_of_it(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    with Scene(path, manifest("a", "b")) as scene:
        alone = (scene.transform, scene.crs, scene.channels)
    Path(f"{path}.aux.xml").write_text(
        "<PAMDataset><GeoTransform>0,10,0,0,0,-10</GeoTransform><SRS>EPSG:3035</SRS>"
        '<PAMRasterBand band="1"><NoDataValue>1</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    path.with_suffix(".tfw").write_text("7\n0\n0\n-7\n1\n2\n")
    mask = write_raster(tmp_path / "mask.tif", np.zeros((1, 8, 8), np.uint8), block=16)
    mask.rename(f"{path}.msk")
    with Scene(path, manifest("a", "b")) as scene:
        assert (scene.transform, scene.crs, scene.channels) == alone
    assert valid_pixels(path, manifest("a", "b")).all()


@pytest.mark.parametrize("nodata", [None, 7])
def test_an_alpha_band_is_a_mask_and_no_input(tmp_path: Path, nodata: int | None) -> None:
    pixels = PIXELS.copy()
    pixels[1] = 255
    pixels[1, :, 0] = 0
    path = write_raster(tmp_path / "s.tif", pixels, nodata=nodata, block=16)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    expected = pixels[1] > 0
    if nodata:
        expected &= pixels[0] != nodata
    np.testing.assert_array_equal(valid_pixels(path, manifest("a")), expected)
    assert failure(path, manifest("a", "b")).code == "too_few_bands"


def test_scale_and_offset_tags_are_part_of_the_value(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.5, 0.25), (-3, 8)
    bands = [
        {"name": "a", "scale": 2, "offset": 1, "mean": 10, "std": 4},
        {"name": "b", "mean": 10, "std": 4},
    ]
    with Scene(path, manifest(bands=bands)) as scene:
        normalised = [
            (PIXELS[n].astype(np.float64) - item.centre) * item.gain
            for n, item in enumerate(scene.channels)
        ]
    np.testing.assert_allclose(normalised[0], (2 * (PIXELS[0] * 0.5 - 3) + 1 - 10) / 4)
    np.testing.assert_allclose(normalised[1], (PIXELS[1] * 0.25 + 8 - 10) / 4)
    with Scene(path, manifest(bands=bands, scale_tags=False)) as scene:
        assert scene.channels[1].gain == 0.25


def test_band_files_make_one_scene_in_the_models_order(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / f"{name}.tif", PIXELS[n : n + 1], names=[name], block=16)
        for n, name in enumerate("ab")
    ]
    with Scene(paths, manifest("b", "a")) as scene:
        pixels = np.empty((2, 8, 8), scene.dtype)
        scene.read(scene.core(None), pixels, np.empty((8, 8), bool))
    np.testing.assert_array_equal(pixels, PIXELS[::-1])


def test_several_dates_are_channels_by_date_then_band(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / f"{n}.tif", PIXELS + 100 * n, names="ab", block=16)
        for n in range(3)
    ]
    with Scene(paths, manifest("b", "a", dates=3)) as scene:
        pixels = np.empty((6, 8, 8), scene.dtype)
        scene.read(scene.core(None), pixels, np.empty((8, 8), bool))
    expected = np.concatenate([(PIXELS + 100 * n)[::-1] for n in range(3)])
    np.testing.assert_array_equal(pixels, expected)
    error = failure(paths[:2], manifest("a", dates=3))
    assert (error.code, str(error)[:36]) == ("wrong_dates", "Model m wants 3 dates but got 2 file")


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (
            {"transform": Affine(10, 0, 500_010, 0, -10, 5_300_000)},
            "pixels of 10 from 500010, 5300000) is not on the grid of a.tif (8 x 8 pixels of 10 f",
        ),
        ({"transform": Affine(20, 0, 500_000, 0, -20, 5_300_000)}, "pixels of 20"),
        ({"crs": "EPSG:32634"}, "CRS EPSG:32634"),
    ],
)
def test_dates_on_different_grids_are_refused(
    tmp_path: Path, profile: dict[str, object], words: str
) -> None:
    first = write_raster(tmp_path / "a.tif", PIXELS, block=16)
    other = write_raster(tmp_path / "b.tif", PIXELS, block=16, **profile)
    error = failure([first, other], manifest("a", "b", dates=2))
    assert error.code == "grids_differ"
    assert "b.tif" in str(error)
    assert words in str(error)


def test_grids_may_differ_by_what_rounding_does(tmp_path: Path) -> None:
    first = write_raster(tmp_path / "a.tif", PIXELS, block=16)
    near = Affine(10 + 1e-9, 1e-14, 500_000 + 2e-9, 0, -10, 5_300_000.001)
    other = write_raster(tmp_path / "b.tif", PIXELS, block=16, transform=near)
    for paths in ([first, other], [other, first]):
        with Scene(paths, manifest("a", "b", dates=2)) as scene:
            assert scene.size == (8, 8)


def test_names_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, names=["aX", "b"], block=16)
    path.write_bytes(path.read_bytes().replace(b"aX", b"a\xe9"))
    error = failure(path, manifest("a", "b"))
    assert error.code == "not_a_raster"
    assert "s.tif can't be opened as a GeoTIFF: the names of its bands or of" in str(error)
    with pytest.raises(TaskError, match=r"my scene can't be opened .* are not UTF-8"):
        check_scene(path, "my scene")  # as it comes in


def test_a_file_cut_off_before_its_mask_is_told(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    whole = path.stat().st_size
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.full((8, 8), 255, np.uint8))
    with path.open("rb+") as stream:
        stream.truncate(whole + 8)
    error = failure(path, manifest("a", "b"))
    assert (error.code, str(error)[:31]) == ("not_a_raster", "s.tif can't be opened as a GeoT")


@pytest.mark.parametrize(("scale", "offset"), [(0.0, 1.0), (np.nan, 1.0), (2.0, np.inf)])
def test_scales_that_make_no_numbers_are_told(tmp_path: Path, scale: float, offset: float) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [1, scale], [0, offset]
    error = failure(path, manifest("a", "b", scale_tags=True))
    assert error.code == "bad_scale"
    assert f"Band b of s.tif has the scale {scale:g} and the offset {offset:g}" in str(error)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("profile", "code"),
    [
        ({"crs": None}, "not_georeferenced"),
        ({"transform": Affine.identity()}, "not_georeferenced"),
        ({"transform": Affine(8, 6, 500_000, 6, -8, 5_300_000)}, "rotated_grid"),
        ({"transform": Affine(np.nan, 0, 500_000, 0, -10, 5_300_000)}, "not_georeferenced"),
        ({"dtype": "complex64"}, "unsupported_pixels"),
        ({"dtype": "complex_int16"}, "unsupported_pixels"),
    ],
)
def test_rasters_that_make_no_map_are_refused(
    tmp_path: Path, profile: dict[str, object], code: str
) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16, **profile)
    assert failure(path, manifest("a", "b")).code == code


def test_only_geotiffs_are_opened(tmp_path: Path) -> None:
    inner = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    vrt = tmp_path / "s.vrt"
    with rasterio.open(inner) as file, WarpedVRT(file) as warped:
        rasterio.shutil.copy(warped, vrt, driver="VRT")
    assert failure(vrt, manifest("a", "b")).code == "not_a_raster"
    text = tmp_path / "t.tif"
    text.write_text("no raster")
    assert "t.tif can't be opened as a GeoTIFF" in str(failure(text, manifest("a", "b")))
    assert failure(tmp_path / "absent.tif", manifest("a")).code == "not_a_raster"


@pytest.mark.parametrize("window", [(0, 0, 0, 4), (-1, 0, 4, 4), (5, 0, 4, 4), (0, 8, 1, 1)])
def test_windows_outside_the_scene_are_refused(
    tmp_path: Path, window: tuple[int, int, int, int]
) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    with (
        Scene(path, manifest("a", "b")) as scene,
        pytest.raises(TaskError, match="is not inside"),
    ):
        scene.core(window)


def test_a_band_that_gdal_marked_as_alpha_is_told_where_it_is_missed(tmp_path: Path) -> None:
    # As GDAL does with the fourth of four 8-bit bands.
    path = write_raster(tmp_path / "s.tif", np.ones((4, 40, 40), np.uint8))
    with pytest.raises(TaskError) as caught, Scene(path, manifest("a", "b", "c", "d")):
        pass
    assert caught.value.code == "too_few_bands"
    assert "s.tif has 3 bands" in str(caught.value)
    assert str(caught.value).endswith(
        "Its band 4 is marked as alpha, so it counts as a mask; if it is data, mark it as "
        "undefined (gdal_edit.py -colorinterp_4 undefined)."
    )


def test_a_strips_memory_goes_with_it(tmp_path: Path) -> None:
    # Not only once the collector comes by: the next panel's is needed at once.
    path = write_raster(tmp_path / "s.tif", np.ones((2, 32, 64), np.uint16), block=16)
    with Scene(path, manifest("a", "b")) as scene:
        strip = SceneStrip(scene, columns=(0, 64), rows=(0, 32), size=16, load=16)
        strip.advance(0)
        strip.patch(0, 0)
        gone = weakref.ref(strip)
        gc.disable()
        try:
            del strip
            assert gone() is None
        finally:
            gc.enable()


def test_a_truncated_file_names_file_and_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 9999, (1, 256, 256)).astype(np.uint16)
    path = write_raster(tmp_path / "s.tif", pixels)
    with path.open("rb+") as stream:
        stream.truncate(path.stat().st_size // 2)
    with Scene(path, manifest()) as scene, pytest.raises(TaskError) as caught:
        scene.read(scene.core(None), np.empty_like(pixels), np.empty((256, 256), bool))
    assert caught.value.code == "corrupt"
    assert "s.tif can't be read at columns 0 to 256, rows 0 to 256" in str(caught.value)


def test_a_scene_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", PIXELS, block=16)
    with Scene(path, manifest("a", "b")) as scene:
        scene.check_unchanged()
        os.utime(path, (1, 1))
        with pytest.raises(TaskError, match="changed while it was read") as caught:
            scene.check_unchanged()
    assert caught.value.retryable


@pytest.mark.parametrize(("block", "load"), [(16, 256), (64, 64), (256, 256), (256, 100)])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_strips_hold_the_scenes_pixels_wherever_they_are(
    tmp_path: Path, block: int, load: int, interleave: str
) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 9999, (2, 700, 90)).astype(np.uint16)
    pixels[0, 300:310, 20:30] = 0
    path = write_raster(tmp_path / "s.tif", pixels, nodata=0, block=block, interleave=interleave)
    with Scene(path, manifest("a", "b")) as scene:
        strip = SceneStrip(scene, columns=(5, 85), rows=(40, 700), size=48, load=load)
        for row in (40, 72, 104, 290, 300, 500, 652):
            strip.advance(row)
            for col in (5, 21, 37):
                values, valid = strip.patch(row, col)
                expected = pixels[:, row : row + 48, col : col + 48]
                np.testing.assert_array_equal(values, expected)
                np.testing.assert_array_equal(valid, expected[0] != 0)
            part = strip.valid(Box(col=6, row=row + 1, width=40, height=3))
            np.testing.assert_array_equal(part, pixels[0, row + 1 : row + 4, 6:46] != 0)
