"""A small, honest model for the demo: five kinds of land cover from four Sentinel-2 bands.

It is a convolutional network with fixed weights, not a trained one. It derives NDVI
(vegetation), NDWI (open water) and visible brightness (cloud) from the reflectance, turns them
into one logit per class by a 1 x 1 convolution, and smooths the logits by a 3 x 3 kernel. Its
receptive field is 3 x 3 pixels, so the declared trim of 8 pixels makes a tiled prediction equal
to an untiled one. What it shows is that the platform works; use a model trained for your
question for anything else.
"""

from __future__ import annotations

import os
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import MANIFEST, Bundle, BundleManifest, load_bundle

if TYPE_CHECKING:
    from torch import nn

NAME = "demo-land-cover"
RECEPTIVE_FIELD = 3
_SHARPNESS = 12.0
_SPARSE, _DENSE = 0.35, 0.60  # NDVI where vegetation begins, and where it closes
_WATER = 0.02  # NDWI above which open water is
_CLOUD = 0.24  # visible reflectance above which cloud (or bright roofs) is
_OFFSET = 1e-3  # reflectance added to the ratios' denominators, so that they stay finite

# Paul Tol's and Okabe and Ito's colours: told apart with any kind of colour vision.
_CLASSES = (
    ("Open water", "#0072b2", 1.0),
    ("Bare soil or built-up", "#d9b27c", 1.0),
    ("Sparse vegetation", "#b8d85a", 1.0),
    ("Dense vegetation", "#117733", 1.0),
    ("Cloud or very bright", "#f2f2f2", 1.0),
)
_BANDS = (("B02", "B"), ("B03", "G"), ("B04", "R"), ("B08", None))

DemoRuntime = Literal["torchscript", "torch_export"]


def demo_bundle(folder: Path, runtime: DemoRuntime = "torchscript") -> Bundle:
    """The demo model as a bundle in ``folder``, written there unless it is there already.

    Raises:
        InvalidRequest: ``folder`` holds something else.
    """
    if folder.exists():
        bundle = load_bundle(folder)
        if bundle.manifest != _manifest(runtime):
            raise InvalidRequest(
                "model", f"{folder} holds another bundle", "remove it or name another folder"
            )
        return bundle
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    manifest = _manifest(runtime)
    _export(scratch / manifest.weights, runtime)
    document = manifest.model_dump(mode="json", exclude_defaults=True)
    (scratch / MANIFEST).write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    scratch.replace(folder)
    return load_bundle(folder)


def demo_network() -> nn.Module:
    """The network: float32 (N, 4, H, W) reflectance in, float32 (N, 5, H, W) logits out."""
    import torch
    from torch import nn
    from torch.nn import functional

    class LandCover(nn.Module):
        """Fixed weights; see the module's docstring."""

        kernel: torch.Tensor
        weight: torch.Tensor
        bias: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            side = torch.tensor([0.2, 0.6, 0.2])
            kernel = torch.outer(side, side)[None, None]
            weight, bias = _logit_weights()
            self.register_buffer("kernel", kernel.repeat(5, 1, 1, 1))
            self.register_buffer("weight", torch.tensor(weight)[:, :, None, None])
            self.register_buffer("bias", torch.tensor(bias))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen = pixels.clamp(min=0.0)
            blue, green, red, nir = (seen[:, band : band + 1] for band in range(4))
            ndvi = (nir - red) / (nir + red + _OFFSET)
            ndwi = (green - nir) / (green + nir + _OFFSET)
            brightness = (blue + green + red) / 3.0
            features = torch.cat((ndvi, ndwi, brightness), dim=1)
            logits = functional.conv2d(features, self.weight, self.bias)
            padded = functional.pad(logits, (1, 1, 1, 1), mode="replicate")
            return functional.conv2d(padded, self.kernel, groups=5)

    return LandCover().eval()


def _logit_weights() -> tuple[list[list[float]], list[float]]:
    """Rows for water, bare, sparse, dense, cloud over (NDVI, NDWI, brightness), and biases.

    Neighbouring classes have equal logits exactly at the thresholds above.
    """
    k = _SHARPNESS
    weight = [[0.0, k, 0.0], [0.0, 0.0, 0.0], [k, 0.0, 0.0], [2 * k, 0.0, 0.0], [0.0, 0.0, 8 * k]]
    bias = [-k * _WATER, 0.0, -k * _SPARSE, -k * (_SPARSE + _DENSE), -8 * k * _CLOUD]
    return weight, bias


def _manifest(runtime: DemoRuntime) -> BundleManifest:
    return BundleManifest.model_validate(
        {
            "name": NAME,
            "title": "Land cover (demonstration)",
            "description": "Fixed thresholds of NDVI, NDWI and brightness as a small "
            "convolutional network; it shows the platform, not the state of the art.",
            "runtime": runtime,
            "weights": "model.pt" if runtime == "torchscript" else "model.pt2",
            "task": "segmentation",
            "bands": [
                {"name": name, "index": index, "scale": 1e-4} | ({"rgb": rgb} if rgb else {})
                for index, (name, rgb) in enumerate(_BANDS)
            ],
            "patch": {"size": 256, "overlap": 32, "trim": 8},
            "classes": [
                {"value": value, "name": name, "colour": colour, "opacity": opacity}
                for value, (name, colour, opacity) in enumerate(_CLASSES)
            ],
            "licence": "Apache-2.0",
        }
    )


@cache  # tracing a second time in one process would name the code, and so the digest, differently
def _traced() -> Any:
    import torch

    return torch.jit.trace(demo_network(), _example())  # type: ignore[no-untyped-call]


def _example() -> tuple[Any, ...]:
    import torch

    return (torch.zeros(2, len(_BANDS), 256, 256),)


def _export(target: Path, runtime: DemoRuntime) -> None:
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        # TorchScript is what many deployed models still are; that it is deprecated is known.
        warnings.simplefilter("ignore")
        if runtime == "torchscript":
            _traced().save(str(target))
            return
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(demo_network(), _example(), dynamic_shapes=({0: batch},))
        torch.export.save(program, target)
