"""A prediction does not depend on how it was cut, and is what one whole forward pass gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    Identity,
    read,
    whole_forward,
    write_bundle,
    write_raster,
)

HEIGHT, WIDTH = 311, 407
SLOW: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


class Mean(nn.Module):
    """The mean of the whole patch, in each of its pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.shape[3])


def test_where_patches_disagree_one_fades_into_the_other(tmp_path: Path) -> None:
    pixels = np.zeros((1, 64, 300), np.float32)
    pixels[:, :, 150:] = 1
    bundle = write_bundle(tmp_path / "b", Mean(), bands=1, patch=(64, 24, 2))
    scene = write_raster(tmp_path / "s.tif", pixels)
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    row = read(tmp_path / "o.tif", 1)[30]
    assert (row[0], row[-1]) == (0, 1)
    assert np.diff(row).max() < 0.1  # of means that differ by up to 0.625
    assert np.diff(row).min() > -1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exactness")


@pytest.fixture(scope="module")
def identity(folder: Path) -> Bundle:
    return write_bundle(folder / "identity", Identity(), bands=2)


@pytest.fixture(scope="module")
def network() -> Convolutions:
    return Convolutions(bands=3, channels=4)


@pytest.fixture(scope="module")
def regression(folder: Path, network: Convolutions) -> Bundle:
    return write_bundle(folder / "regression", network, patch=(64, 16, 4))


@pytest.fixture(scope="module")
def segmentation(folder: Path, network: Convolutions) -> Bundle:
    return write_bundle(folder / "segmentation", network, patch=(64, 16, 4), classes=4)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(3, HEIGHT, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def scene(folder: Path, pixels: NDArray[np.float32]) -> Path:
    return write_raster(folder / "scene.tif", pixels)


Run = Callable[..., NDArray[np.float32]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Predicts and gives the pixels back."""

    def predicted(source: Path, bundle: Bundle, **more: object) -> NDArray[np.float32]:
        window = more.pop("window", None)
        options = PredictOptions(**more)  # type: ignore[arg-type]
        target = tmp_path / "out.tif"
        predict(source, bundle, target, scratch=tmp_path, window=window, options=options)  # type: ignore[arg-type]
        return read(target)

    return predicted


@st.composite
def patch_settings(draw: st.DrawFn) -> dict[str, int]:
    size = draw(st.integers(16, 60))
    overlap = draw(st.integers(0, size - 4))
    return {"patch": size, "overlap": overlap, "trim": draw(st.integers(0, overlap // 2))}


@given(height=st.integers(1, 120), width=st.integers(1, 120), patches=patch_settings())
@settings(max_examples=25, **SLOW)
def test_an_identity_model_gives_the_input_back(
    identity: Bundle, run: Run, tmp_path: Path, *, height: int, width: int, patches: dict[str, int]
) -> None:
    pixels = np.random.default_rng(height).normal(size=(2, height, width)).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels, block=32)
    np.testing.assert_allclose(run(scene, identity, **patches), pixels, atol=1e-5)


def test_no_seams_where_the_trim_covers_half_the_receptive_field(
    run: Run, tmp_path: Path, pixels: NDArray[np.float32], regression: Bundle, network: Convolutions
) -> None:
    pixels = pixels / 16  # outputs are about 1 then, and 1e-5 is eighty steps of float32
    scene = write_raster(tmp_path / "scene.tif", pixels)
    expected = whole_forward(network, pixels)
    assert np.abs(expected).max() > 1
    trimmed = np.abs(run(scene, regression) - expected).max()
    untrimmed = np.abs(run(scene, regression, trim=0) - expected).max()
    assert trimmed < 1e-5
    assert untrimmed > 1e-3, "this test would not see a seam"


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 7},
        {"workers": 1, "threads": 1},
        {"workers": 1, "threads": 2},
        {"workers": 3, "threads": 1},
        {"memory": 1},
    ],
    ids=str,
)
def test_batches_threads_and_panels_change_nothing(
    run: Run, scene: Path, regression: Bundle, segmentation: Bundle, options: dict[str, int]
) -> None:
    np.testing.assert_allclose(run(scene, regression, **options), run(scene, regression), atol=1e-5)
    np.testing.assert_array_equal(run(scene, segmentation, **options), run(scene, segmentation))


@given(st.data())
@settings(max_examples=15, **SLOW)
def test_a_window_is_the_same_as_that_part_of_the_whole(
    run: Run, scene: Path, regression: Bundle, whole: NDArray[np.float32], data: st.DataObject
) -> None:
    col, row = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
    width = data.draw(st.integers(1, WIDTH - col))
    height = data.draw(st.integers(1, HEIGHT - row))
    part = run(scene, regression, window=(col, row, width, height))
    np.testing.assert_array_equal(part, whole[:, row : row + height, col : col + width])


@pytest.fixture
def whole(run: Run, scene: Path, regression: Bundle) -> NDArray[np.float32]:
    return run(scene, regression)


@pytest.mark.parametrize("precision", ["exact", "auto"])
def test_shards_in_any_order_make_the_same_class_map(
    run: Run, scene: Path, segmentation: Bundle, precision: str
) -> None:
    joined = np.full((1, HEIGHT, WIDTH), 255, np.uint8)
    for row in (200, 0):
        for col in (301, 0, 111):
            width = {0: 111, 111: 190, 301: WIDTH - 301}[col]
            height = {0: 200, 200: HEIGHT - 200}[row]
            window = (col, row, width, height)
            part = run(scene, segmentation, window=window, precision=precision)
            joined[:, row : row + height, col : col + width] = part
    np.testing.assert_array_equal(joined, run(scene, segmentation, precision=precision))


SHARD = """
import sys
from pathlib import Path
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.prediction import predict
bundle, scene, out, *windows = sys.argv[1:]
for number, window in enumerate(windows):
    place = tuple(map(int, window.split(",")))
    target = Path(out) / f"{number}.tif"
    predict(Path(scene), load_bundle(Path(bundle)), target, scratch=Path(out), window=place)
"""


def test_shards_of_two_processes_at_the_same_time_make_the_same_maps(
    run: Run, tmp_path: Path, scene: Path, regression: Bundle, segmentation: Bundle
) -> None:
    halves = [(0, 0, WIDTH, 150), (0, 150, 203, HEIGHT - 150)], [(203, 150, WIDTH - 203, 161)]
    for bundle in (regression, segmentation):
        processes = []
        for number, windows in enumerate(halves):
            out = tmp_path / f"{bundle.folder.name}{number}"
            out.mkdir()
            texts = [",".join(map(str, window)) for window in windows]
            command = [sys.executable, "-c", SHARD, bundle.folder, scene, out, *texts]
            processes.append(subprocess.Popen(command))
        assert [process.wait() for process in processes] == [0, 0]
        expected = run(scene, bundle)
        for number, windows in enumerate(halves):
            for part, (col, row, width, height) in enumerate(windows):
                found = read(tmp_path / f"{bundle.folder.name}{number}" / f"{part}.tif")
                wanted = expected[:, row : row + height, col : col + width]
                np.testing.assert_allclose(
                    found, wanted, atol=0 if bundle is segmentation else 1e-5
                )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_normalisation_is_what_plain_numpy_gives(run: Run, tmp_path: Path, dtype: str) -> None:
    low = -3000 if np.dtype(dtype).kind != "u" else 0
    pixels = np.random.default_rng(5).integers(low, 255 if dtype == "uint8" else 9000, (2, 50, 70))
    bands = [
        {"name": "a", "scale": 1e-4, "offset": -0.1, "mean": 0.12, "std": 0.05},
        {"name": "b", "mean": 1234.5, "std": 987.6},
    ]
    bundle = write_bundle(tmp_path / "bundle", Identity(), bands=bands)
    output = run(write_raster(tmp_path / "s.tif", pixels.astype(dtype)), bundle)
    values = pixels.astype(np.float64)
    expected = [(values[0] * 1e-4 - 0.1 - 0.12) / 0.05, (values[1] - 1234.5) / 987.6]
    np.testing.assert_allclose(output, np.array(expected), rtol=1e-5, atol=1e-5)


def test_auto_precision_stays_close_to_exact(run: Run, scene: Path, regression: Bundle) -> None:
    exact = run(scene, regression)
    auto = run(scene, regression, precision="auto")
    assert np.abs(auto - exact).max() < 0.05 * exact.std()


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"workers": 3}], ids=str)
def test_batches_and_workers_flip_next_to_no_class_in_auto(
    run: Run, scene: Path, segmentation: Bundle, options: dict[str, int]
) -> None:
    # None where it was measured; a processor may still round sums of bfloat16 in other orders.
    usual = run(scene, segmentation, precision="auto")
    assert (run(scene, segmentation, precision="auto", **options) != usual).mean() < 1e-3
