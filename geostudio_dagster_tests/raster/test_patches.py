from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geostudio_dagster.raster.patches import Box, PatchAxis, PatchGrid, reflected


@st.composite
def axes(draw: st.DrawFn) -> PatchAxis:
    size = draw(st.integers(1, 300))
    overlap = draw(st.integers(0, size - 1))
    trim = draw(st.integers(0, overlap // 2))
    return PatchAxis(draw(st.integers(1, 1500)), size, overlap, trim)


def test_between_two_patches_weights_follow_a_squared_sine() -> None:
    axis = PatchAxis(100, 40, 16, 2)
    rise = np.sin(np.arange(1, 13) / 13 * np.pi / 2) ** 2  # over the 12 pixels without the trim
    np.testing.assert_allclose(axis.weights[1][:16], [0, 0, *rise, 1, 1], atol=1e-6)
    np.testing.assert_allclose(axis.weights[0][-16:], [1, 1, *rise[::-1], 0, 0], atol=1e-6)


@given(axes())
@settings(max_examples=200, deadline=None)
def test_weights_cover_every_pixel_and_sum_to_one(axis: PatchAxis) -> None:
    total = np.zeros(axis.length)
    for index, (start, weights) in enumerate(zip(axis.starts, axis.weights, strict=True)):
        low, high = axis.extent(index)
        inside = weights[low - start : high - start]
        assert (inside > 0).all()
        assert np.count_nonzero(weights) == high - low
        total[low:high] += inside
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(axes())
@settings(max_examples=200, deadline=None)
def test_patches_are_regular_and_flush_with_the_end(axis: PatchAxis) -> None:
    assert axis.starts[0] == 0
    assert axis.starts[-1] == max(axis.length - axis.size, 0)
    steps = np.diff(axis.starts)
    assert (steps > 0).all()
    assert (steps[:-1] == axis.size - axis.overlap).all()
    # The scene's own edges keep all their pixels.
    assert axis.extent(0)[0] == 0
    assert axis.extent(len(axis.starts) - 1)[1] == axis.length


@given(axes(), st.data())
@settings(max_examples=200, deadline=None)
def test_touching_finds_the_patches_with_weight(axis: PatchAxis, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, axis.length - 1))
    high = data.draw(st.integers(low + 1, axis.length))
    expected = [
        index
        for index, (start, weights) in enumerate(zip(axis.starts, axis.weights, strict=True))
        if any(low <= start + place < high for place in np.flatnonzero(weights))
    ]
    assert list(axis.touching(low, high)) == expected


def test_the_last_patch_may_overlap_several() -> None:
    axis = PatchAxis(length=224 + 192 + 1, size=224, overlap=32, trim=0)
    assert axis.starts == (0, 192, 193)
    shares = [
        weights[195 - start] for start, weights in zip(axis.starts, axis.weights, strict=True)
    ]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(("size", "overlap", "trim"), [(8, 8, 0), (8, -1, 0), (8, 4, 3), (0, 0, 0)])
def test_gaps_between_patches_are_refused(size: int, overlap: int, trim: int) -> None:
    with pytest.raises(ValueError, match="must"):
        PatchAxis(100, size, overlap, trim)


def test_a_window_gets_the_patches_that_reach_it() -> None:
    grid = PatchGrid(height=100, width=200, size=32, overlap=8, trim=2)
    rows, cols = grid.within(Box(col=0, row=0, width=10, height=10))
    assert (list(rows), list(cols)) == ([0], [0])
    assert grid.count(Box(0, 0, 200, 100)) == len(grid.rows.starts) * len(grid.cols.starts)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_reflection_mirrors_without_repeating_the_edge(length: int) -> None:
    pixels = np.arange(length)
    expected = np.pad(pixels, (0, 12 - length), mode="reflect") if length > 1 else np.zeros(12)
    np.testing.assert_array_equal(pixels[reflected(0, 12, length)], expected)
