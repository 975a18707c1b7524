"""Rasters and bundles made for one test."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from affine import Affine
from numpy.typing import NDArray
from torch import nn

from geostudio_dagster.models.bundle import Bundle, load_bundle

COLOURS = ("#1f78b4", "#33a02c", "#e31a1c", "#ff7f00", "#6a3d9a")
GRID = Affine(10, 0, 500_000, 0, -10, 5_300_000)


def write_raster(
    path: Path,
    pixels: NDArray[Any],
    *,
    names: Sequence[str] = (),
    nodata: float | None = None,
    block: int = 64,
    **profile: Any,
) -> Path:
    """``pixels`` (bands, height, width) as a GeoTIFF, tiled, UTM 33N, 10 m."""
    bands, height, width = pixels.shape
    settings = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": bands,
        "dtype": pixels.dtype,
        "crs": "EPSG:32633",
        "transform": GRID,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", **(settings | profile)) as file:
        file.write(pixels)
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
    return path


def write_bundle(
    folder: Path,
    network: nn.Module,
    *,
    bands: Sequence[dict[str, Any]] | int = 3,
    classes: int = 0,
    patch: tuple[int, int, int] = (32, 8, 2),
    runtime: str = "torchscript",
    batch: int | None = None,
    **manifest: Any,
) -> Bundle:
    """A bundle of ``network``: a regression, or a segmentation where ``classes`` are given.

    ``batch`` fixes the batch size of an exported program or graph; None leaves it free.
    """
    folder.mkdir(parents=True)
    listed = [{"name": f"B{n}"} for n in range(bands)] if isinstance(bands, int) else list(bands)
    size, overlap, trim = patch
    weights = {"torch_export": "model.pt2", "onnx": "model.onnx"}.get(runtime, "model.pt")
    shape = (batch or 2, len(listed), size, size)
    if runtime == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(network.eval()).save(str(folder / weights))
    elif runtime == "onnx":
        _export_onnx(folder / weights, network.eval(), shape, batch)
    else:
        _export(folder / weights, network.eval(), shape, batch)
    document = {
        "name": "test-model",
        "runtime": runtime,
        "weights": weights,
        "task": "segmentation" if classes else "regression",
        "bands": listed,
        "patch": {"size": size, "overlap": overlap, "trim": trim},
        "classes": [
            {"value": n, "name": f"class {n}", "colour": COLOURS[n % 5]} for n in range(classes)
        ],
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(document | manifest), "utf-8")
    return load_bundle(folder)


def _export(path: Path, network: nn.Module, shape: tuple[int, ...], batch: int | None) -> None:
    free = None if batch else ({0: torch.export.Dim("n", min=1, max=64)},)
    program = torch.export.export(network, (torch.zeros(shape),), dynamic_shapes=free)
    torch.export.save(program, path)


def _export_onnx(path: Path, network: nn.Module, shape: tuple[int, ...], batch: int | None) -> None:
    free = None if batch else ({0: torch.export.Dim("n", min=1, max=64)},)
    torch.onnx.export(
        network,
        (torch.zeros(shape),),
        path,
        dynamo=True,
        dynamic_shapes=free,
        external_data=False,
        verbose=False,
    )


class Identity(nn.Module):
    """Gives back what it gets."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Convolutions(nn.Module):
    """Random weights; a receptive field of 7 x 7 pixels, so 3 pixels of trim make it exact."""

    def __init__(self, bands: int, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first = nn.Conv2d(bands, 12, 5, padding=2)
        self.second = nn.Conv2d(12, channels, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def whole_forward(network: nn.Module, normalised: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's output for a whole scene at once: (bands, H, W) in, (channels, H, W) out."""
    with torch.inference_mode():
        output: NDArray[np.float32] = network.eval()(torch.from_numpy(normalised)[None])[0].numpy()
    return output


def noise(*shape: int) -> torch.Tensor:
    """Normally distributed numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def read(path: Path, band: int | None = None) -> NDArray[Any]:
    """Pixels of a raster."""
    with rasterio.open(path) as file:
        return np.asarray(file.read(band))
