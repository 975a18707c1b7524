"""Peak memory does not follow the scene's size. Measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import rasterio
import torch
from torch import nn

from geostudio_dagster_tests.prediction.builders import GRID, write_bundle

MEASURE = """
import json, sys
from pathlib import Path
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.models.cache import loaded
from geostudio_dagster.prediction import predict
from geostudio_dagster.prediction.report import peak_rss

folder, scene = Path(sys.argv[1]), sys.argv[2]
bundle = load_bundle(folder / "bundle")
loaded(bundle)
before = peak_rss()
report = predict(folder / scene, bundle, folder / f"out-{scene}", scratch=folder)
print(json.dumps({"above_model": report.peak_rss - before, "pixels": report.pixels}))
"""


class Mix(nn.Module):
    """Two channels out of six, pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x)


def sparse_scene(path: Path, width: int, height: int) -> None:
    """6 bands of uint16 zeros (valid ones) that take no space on disk."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=6,
        dtype="uint16",
        crs="EPSG:32633",
        transform=GRID,
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="deflate",
        sparse_ok=True,
    ):
        pass


def measured(folder: Path, scene: str) -> dict[str, int]:
    command = [sys.executable, "-c", MEASURE, str(folder), scene]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    numbers: dict[str, int] = json.loads(process.stdout)
    return numbers


def test_sixteen_times_the_pixels_take_hardly_more_memory(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", Mix(), bands=6, classes=2, patch=(224, 32, 8))
    sparse_scene(tmp_path / "small.tif", 2048, 1024)
    sparse_scene(tmp_path / "large.tif", 8192, 4096)
    small, large = measured(tmp_path, "small.tif"), measured(tmp_path, "large.tif")
    assert large["pixels"] == 16 * small["pixels"]
    megabyte = 1024**2
    assert small["above_model"] < 300 * megabyte
    # The whole scene would be 400 MB of pixels, or 800 MB in float32.
    assert large["above_model"] - small["above_model"] < 100 * megabyte


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    ballast = np.ones(400 * 1024**2, np.uint8)
    program = "from geostudio_dagster.prediction.report import peak_rss; print(peak_rss())"
    child = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert 10e6 < int(child) < ballast.nbytes
