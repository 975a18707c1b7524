"""Cutting scenes: exact cover, aligned inner edges, bounded sides."""

from __future__ import annotations

from itertools import pairwise
from math import isqrt

from hypothesis import example, given
from hypothesis import strategies as st

from geostudio_dagster.planning.grid import cores

SIDES = st.integers(1, 30_000)
TASKS = st.integers(256, 9_000)


@given(SIDES, SIDES, TASKS | st.none(), st.integers(256**2, 10_000**2))
@example(4096, 4096, 2048, 8192**2)
@example(2049, 1, 2048, 8192**2)
@example(300, 30_000, 256, 8192**2)
@example(1, 1536, 1024, 256**2)
def test_windows_cover_the_scene_exactly(
    width: int, height: int, task_size: int | None, max_pixels: int
) -> None:
    windows = cores(width, height, task_size=task_size, max_pixels=max_pixels)
    if windows is None:
        assert task_size is None or max(width, height) <= task_size
        assert width * height <= max_pixels
        return
    assert len(windows) > 1
    assert sum(w * h for _, _, w, h in windows) == width * height
    columns = sorted({(x, w) for x, _, w, _ in windows})
    rows = sorted({(y, h) for _, y, _, h in windows})
    assert [(x, y, w, h) for y, h in rows for x, w in columns] == list(windows)
    for spans, length in ((columns, width), (rows, height)):
        assert spans[0][0] == 0
        assert all(a + n == b for (a, n), (b, _) in pairwise(spans))
        assert sum(spans[-1]) == length
        limits = [task_size] if task_size else []
        if width * height > max_pixels:
            limits.append(isqrt(max_pixels))
        block = 512 if min(limits) >= 512 else 256
        assert all(start % block == 0 for start, _ in spans)
        lengths = [n for _, n in spans]
        assert min(lengths) > 0
        # Near-equal: a block apart, and less at the scene's edge, which ends inside a block.
        assert max(lengths) - min(lengths) < 2 * block
        if task_size is not None:
            assert max(lengths) <= max(task_size, 256)
        if width * height > max_pixels:
            assert max(w * h for _, _, w, h in windows) <= max(max_pixels, 256**2)


def test_exact_windows() -> None:
    assert cores(4096, 4096, task_size=2048, max_pixels=8192**2) == (
        (0, 0, 2048, 2048),
        (2048, 0, 2048, 2048),
        (0, 2048, 2048, 2048),
        (2048, 2048, 2048, 2048),
    )
    assert cores(1000, 300, task_size=512, max_pixels=8192**2) == (
        (0, 0, 512, 300),
        (512, 0, 488, 300),
    )
    assert cores(10_980, 10_980, task_size=None, max_pixels=8192**2) == (
        (0, 0, 5632, 5632),
        (5632, 0, 5348, 5632),
        (0, 5632, 5632, 5348),
        (5632, 5632, 5348, 5348),
    )


def test_scenes_that_stay_whole() -> None:
    assert cores(2048, 2048, task_size=2048, max_pixels=8192**2) is None
    assert cores(8192, 8192, task_size=None, max_pixels=8192**2) is None
    assert cores(200_000, 100, task_size=None, max_pixels=8192**2) is None
