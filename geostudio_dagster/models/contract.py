"""What the engine asks of a model, whatever runs it.

A loader turns a bundle into a :class:`Runtime`; :mod:`models.runtime` has one per kind of
bundle and checks what they loaded. A new kind needs a loader, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from geostudio_dagster.models.bundle import Bundle, BundleManifest

_SINGLE = ""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The input of a model, as its manifest has it.

    Attributes:
        dates: dates per sample. size: side of the square, pixels.
        modalities: names and numbers of bands, in order; one without a name for a model that
            takes one tensor.
    """

    dates: int
    size: int
    modalities: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, manifest: BundleManifest) -> InputSpec:
        """What ``manifest`` says."""
        named = tuple((name, len(bands)) for name, bands in manifest.modalities.items())
        modalities = named or ((_SINGLE, len(manifest.bands)),)
        return cls(manifest.dates, manifest.patch.size, modalities)

    @property
    def planes(self) -> int:
        """Planes of a patch: dates x bands of all modalities."""
        return self.dates * sum(bands for _, bands in self.modalities)

    def arrange(self, pixels: Tensor) -> Tensor | dict[str, Tensor]:
        """Pixels as the model takes them; views, nothing is copied.

        Takes (N, planes, H, W), ordered by date, then by band. Gives (N, bands, H, W), or
        (N, bands, dates, H, W) for several dates; a dict of such by modality, if there are any.
        """
        if self.dates > 1:
            pixels = pixels.view(pixels.shape[0], self.dates, -1, *pixels.shape[2:]).transpose(1, 2)
        names, counts = zip(*self.modalities, strict=True)
        if names == (_SINGLE,):
            return pixels
        return dict(zip(names, torch.split(pixels, list(counts), dim=1), strict=True))


class Runtime(Protocol):
    """A loaded model. Several threads may ask it at the same time."""

    @property
    def engine(self) -> str:
        """What computes: ``torch``, ``onnxruntime``, ``openvino`` or ``endpoint``."""

    @property
    def device(self) -> str:
        """Where its outputs are, and its inputs best are."""

    @property
    def batch_size(self) -> int | None:
        """The only batch size that it takes, or None for any."""

    @property
    def concurrency(self) -> int | None:
        """Batches to ask it at the same time; None where the machine's cores decide."""

    @property
    def autocasts(self) -> bool:
        """Whether it computes in bfloat16 where the calling thread is under torch's autocast."""

    def forward(self, pixels: Tensor) -> Any:
        """The model's output for float32 (N, planes, H, W), normalised: (N, channels, H, W).

        A tensor on ``device``, or something that holds one, see :func:`runtime.as_tensor`.
        """


Loader = Callable[[Bundle, str], Runtime]
