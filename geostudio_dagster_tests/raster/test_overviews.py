"""Overviews of pixels: GDAL's own are what they are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import MemoryFile

from geostudio_dagster.raster.overviews import Overviews, halved
from geostudio_dagster_tests.prediction.builders import GRID

BYTES = st.sampled_from([0, 1, 2, 3, 255])
FLOATS = st.one_of(st.just(-9999.0), st.floats(-1e4, 1e4, width=32))


def by_gdal(
    pixels: NDArray[Any], how: Overviews, nodata: float | None, levels: int = 1
) -> NDArray[Any]:
    """The overview of this level that GDAL builds of pixels (bands, height, width)."""
    bands, height, width = pixels.shape
    profile: dict[str, Any] = {
        **{"driver": "GTiff", "count": bands, "height": height, "width": width},
        **{"dtype": pixels.dtype, "nodata": nodata, "crs": "EPSG:32633", "transform": GRID},
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as file:
            file.write(pixels)
            file.build_overviews([2**level for level in range(1, levels + 1)], Resampling[how])
        with memory.open(overview_level=levels - 1) as file:
            return np.asarray(file.read())


def images(
    dtype: str, elements: st.SearchStrategy[Any], *, multiple: int = 1, most: int = 12
) -> st.SearchStrategy[NDArray[Any]]:
    """One to three bands whose height and width are multiples of a number."""
    side = st.integers(1, most // multiple).map(lambda count: count * multiple)
    return st.tuples(st.integers(1, 3), side, side).flatmap(
        lambda shape: arrays(dtype, shape, elements=elements)
    )


@given(images("uint8", BYTES, multiple=4, most=24), st.sampled_from([255, 1, None]))
@settings(max_examples=200, deadline=None)
def test_modes_are_gdals_with_ties_and_nodata(pixels: NDArray[Any], nodata: float | None) -> None:
    once = halved(pixels, "mode", nodata)
    np.testing.assert_array_equal(once, by_gdal(pixels, "mode", nodata))
    twice = halved(once, "mode", nodata)
    np.testing.assert_array_equal(twice, by_gdal(pixels, "mode", nodata, levels=2))


def test_every_square_of_four_values_and_nodata_has_gdals_mode() -> None:
    values = np.array([0, 1, 2, 3, 65535], np.uint16)
    squares = values[np.indices([5] * 4).reshape(4, -1)]  # upper left, upper right, lower ...
    pixels = squares.reshape(2, 2, -1).transpose(0, 2, 1).reshape(1, 2, -1)
    found = halved(pixels, "mode", 65535)
    np.testing.assert_array_equal(found, by_gdal(pixels, "mode", 65535))
    assert found.ravel()[0] == 0  # all of them 0
    assert found.ravel()[-1] == 65535  # all of them nodata


@given(images("uint8", BYTES, multiple=4, most=24), st.sampled_from([255, 2, None]))
@settings(max_examples=200, deadline=None)
def test_averages_of_bytes_are_gdals(pixels: NDArray[Any], nodata: float | None) -> None:
    once = halved(pixels, "average", nodata)
    np.testing.assert_array_equal(once, by_gdal(pixels, "average", nodata))
    twice = halved(once, "average", nodata)
    np.testing.assert_array_equal(twice, by_gdal(pixels, "average", nodata, levels=2))


@pytest.mark.parametrize("nodata", [-9999.0, np.nan, None], ids=str)
@given(pixels=images("float32", FLOATS, multiple=2))
@settings(max_examples=100, deadline=None)
def test_averages_of_floats_are_gdals(pixels: NDArray[Any], nodata: float | None) -> None:
    if nodata is not None:
        pixels = np.where(pixels == -9999, np.float32(nodata), pixels)
    found, expected = halved(pixels, "average", nodata), by_gdal(pixels, "average", nodata)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    if nodata is None:  # then GDAL adds up in float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7 * float(np.abs(pixels).max()))
    else:
        np.testing.assert_array_max_ulp(found[~np.isnan(found)], expected[~np.isnan(expected)])


@given(images("uint8", BYTES, multiple=2))
def test_the_nearest_are_gdals(pixels: NDArray[Any]) -> None:
    np.testing.assert_array_equal(halved(pixels, "nearest", 255), by_gdal(pixels, "nearest", 255))


@pytest.mark.parametrize("how", ["mode", "average"])
@given(pixels=images("uint8", BYTES))
def test_what_an_odd_edge_lacks_has_no_say(pixels: NDArray[Any], how: Overviews) -> None:
    _, height, width = pixels.shape
    found = halved(pixels, how, 255)
    assert found.shape[1:] == ((height + 1) // 2, (width + 1) // 2)
    even = np.pad(pixels, [(0, 0), (0, height % 2), (0, width % 2)], constant_values=255)
    np.testing.assert_array_equal(found, by_gdal(even, how, 255))


def test_a_mean_that_is_the_number_of_nodata_stays_valid() -> None:
    pixels = np.array([[[-10_000, -9998], [-10_000, -9998]]], np.float32)
    (mean,) = halved(pixels, "average", -9999).ravel()
    assert mean != -9999
    assert mean == pytest.approx(-9999, abs=0.01)
    assert halved(np.array([[[99, 101]]], np.uint8), "average", 100).ravel() == [101]


def test_not_a_number_spreads_unless_it_is_nodata() -> None:
    pixels = np.array([[[np.nan, 2], [4, 6]], [[np.inf, 2], [-np.inf, 6]]], np.float32)
    assert np.isnan(halved(pixels, "average", -9999)).all()
    assert halved(pixels[:1], "average", np.nan).ravel() == [4]
