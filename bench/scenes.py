"""Scenes to measure on: textured ones that compress as real reflectance does, and sparse ones."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

BANDS = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
MEANS = (900.0, 1200.0, 1300.0, 2600.0, 2200.0, 1500.0)
STDS = (420.0, 480.0, 560.0, 900.0, 800.0, 650.0)
_BLOCK = 512


def textured(path: Path, size: int, seed: int = 1) -> Path:
    """6 bands of uint16: gradients, fields and sensor noise; deflate with predictor 2."""
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    fields = rng.normal(0, 1, (6, size // 64 + 2, size // 64 + 2)).astype(np.float32)
    part = path.with_suffix(".part.tif")
    with rasterio.open(part, "w", **_profile(size)) as file:
        for row in range(0, size, _BLOCK):
            for col in range(0, size, _BLOCK):
                height, width = min(_BLOCK, size - row), min(_BLOCK, size - col)
                block = _block(
                    rng, fields, np.arange(row, row + height), np.arange(col, col + width)
                )
                file.write(block, window=Window(col, row, width, height))
        _name_bands(file)
    part.rename(path)
    return path


def sample(side: int):
    """A block of such pixels: uint16 (6, side, side)."""
    rng = np.random.default_rng(0)
    fields = rng.normal(0, 1, (6, side // 64 + 1, side // 64 + 1)).astype(np.float32)
    return _block(rng, fields, np.arange(side), np.arange(side))


def sparse(path: Path, size: int) -> Path:
    """6 bands of uint16 zeros, all of them valid, that take no space on disk."""
    if not path.exists():
        with rasterio.open(path, "w", **_profile(size), sparse_ok=True) as file:
            _name_bands(file)
    return path


def _block(rng, fields, rows, cols):
    """Pixels of one block, float arithmetic rounded to uint16."""
    y, x = rows[:, None].astype(np.float32), cols[None, :].astype(np.float32)
    block = np.empty((6, len(rows), len(cols)), np.uint16)
    for band in range(6):
        waves = np.sin(x / (90 + band)) * np.cos(y / 130) + 0.5 * np.sin((x + y) / 31)
        field = fields[band][rows[:, None] // 64, cols[None, :] // 64]
        noise = rng.normal(0, 12, waves.shape).astype(np.float32)
        value = MEANS[band] + STDS[band] * (0.5 * waves + 0.6 * field) + noise
        block[band] = value.clip(1, 10_000)
    return block


def _profile(size):
    return {
        "driver": "GTiff",
        "width": size,
        "height": size,
        "count": 6,
        "dtype": "uint16",
        "crs": "EPSG:32633",
        "transform": Affine(10, 0, 500_000, 0, -10, 5_300_000),
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "predictor": 2,
        "interleave": "pixel",
        "bigtiff": "IF_SAFER",
    }


def _name_bands(file):
    for number, name in enumerate(BANDS, start=1):
        file.set_band_description(number, name)
