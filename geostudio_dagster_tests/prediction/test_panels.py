"""Panels share the core and its patches among them, and change no pixel."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.panels import panels
from geostudio_dagster.raster.patches import Box, PatchGrid
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
