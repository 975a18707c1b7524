"""How a blended output becomes the pixels of a file: classes, probabilities or values."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.cog import Colours
from geostudio_dagster.raster.nodata import told_apart
from geostudio_dagster.raster.overviews import Overviews

BYTE_NODATA = 255
VALUE_NODATA = -9999.0
FULL = 200  # what a probability of 1 is written as
PROBABILITY_SCALE = 1 / FULL


class Encoding(Protocol):
    """One kind of file.

    Attributes:
        names: of the bands.
        dtype: of the pixels, a numpy name.
        nodata: the pixel value where the scene has no valid one.
        overviews: how overviews are made.
        scale: what pixels are multiplied by to get the value that they stand for.
    """

    names: list[str]
    dtype: str
    nodata: float
    overviews: Overviews
    scale: float
    colours: Colours | None

    def pixels(self, blended: Tensor) -> NDArray[np.generic]:
        """Pixels (bands, height, width) of an output, float32 (channels, height, width)."""


def encoding_of(manifest: BundleManifest, channels: int) -> Encoding:
    """What the bundle's outputs are written as."""
    if manifest.task == "regression":
        return Values(manifest, channels)
    return Probabilities(manifest) if manifest.output == "probabilities" else Classes(manifest)


class Classes:
    """One uint8 band of class values, with a colour table."""

    dtype = "uint8"
    nodata: float = BYTE_NODATA
    overviews: Overviews = "mode"  # classes are never interpolated
    scale = 1.0

    def __init__(self, manifest: BundleManifest) -> None:
        self.names = [manifest.title or manifest.name]
        self.colours: Colours | None = {item.value: item.rgba for item in manifest.classes}

    def pixels(self, blended: Tensor) -> NDArray[np.uint8]:
        """The class with the highest score, the first of equals."""
        # Plane by plane: torch.argmax over the first axis takes a hundred times as long.
        winner = (blended[1] > blended[0]).to(torch.uint8)
        best = blended[0]
        for value in range(2, len(blended)):
            best = torch.maximum(best, blended[value - 1])
            higher = (blended[value] > best).to(torch.uint8)
            torch.maximum(winner, higher.mul_(value), out=winner)
        classes: NDArray[np.uint8] = winner.unsqueeze(0).cpu().numpy()
        return classes


class Probabilities:
    """A uint8 band per class: 0 to 200 stands for 0 to 100 %.

    The softmax is of the blended scores, not a blend of patches' probabilities: so the likeliest
    class is always the one that the class map has, it is as exact as the scores are however the
    work was cut, and it is computed once per pixel, not once per patch that sees the pixel.
    """

    dtype = "uint8"
    nodata: float = BYTE_NODATA
    overviews: Overviews = "average"
    scale = PROBABILITY_SCALE
    colours: Colours | None = None

    def __init__(self, manifest: BundleManifest) -> None:
        self.names = [item.name for item in manifest.classes]

    def pixels(self, blended: Tensor) -> NDArray[np.uint8]:
        """Probabilities in steps of half a per cent, rounded."""
        scaled = torch.softmax(blended.float(), dim=0).mul_(FULL).round_()
        pixels: NDArray[np.uint8] = scaled.to(torch.uint8).cpu().numpy()
        return pixels


class Values:
    """A float32 band per channel of the model."""

    dtype = "float32"
    nodata = VALUE_NODATA
    overviews: Overviews = "average"
    scale = 1.0
    colours: Colours | None = None

    def __init__(self, manifest: BundleManifest, channels: int) -> None:
        name = manifest.title or manifest.name
        several = [f"{name} {number}" for number in range(1, channels + 1)]
        self.names = [name] if channels == 1 else several

    def pixels(self, blended: Tensor) -> NDArray[np.float32]:
        """The output itself, but no value of it passes for no data."""
        return told_apart(blended.cpu().numpy(), VALUE_NODATA)
