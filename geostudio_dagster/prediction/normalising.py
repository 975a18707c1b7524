"""Raw pixels become what a model sees, where it computes.

On a GPU: so they travel as they are in the file, mostly half the bytes of float32, and the one
thread that reads only cuts patches. The arithmetic is float32, one operation at a time, and gives
the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geostudio_dagster.raster.scene import Channel


class Normalisation:
    """``(pixel - centre) * gain`` for each plane, and ``fill`` wherever a pixel is not valid."""

    def __init__(self, channels: Sequence[Channel], fill: float) -> None:
        self._fill = fill
        numbers = [(channel.centre, channel.gain) for channel in channels]
        pairs = torch.tensor(numbers, dtype=torch.float32).T[:, :, None, None]
        self._pairs = {pairs.device: pairs}  # centres and gains, each (planes, 1, 1), by device

    def __call__(self, raw: Tensor, valid: Tensor | None, room: Tensor | None = None) -> Tensor:
        """float32 (N, planes, H, W), on the device of the pixels.

        Args:
            raw: (N, planes, H, W), of any real type. valid: bool (N, H, W); None if all are.
            room: for at least so many patches, which the result may lie in.
        """
        centres, gains = self._on(raw.device)
        if room is None:
            room = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        seen = room[: len(raw)]
        # A patch stays in a processor's cache between the passes; a GPU does best with all at once.
        parts = zip(seen, raw, strict=True) if raw.device.type == "cpu" else ((seen, raw),)
        for part, pixels in parts:
            part.copy_(pixels).sub_(centres).mul_(gains)
        if valid is not None:
            seen.masked_fill_(~valid.unsqueeze(1), self._fill)
        return seen

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._pairs:  # once for all batches: each copy may wait for the GPU
            self._pairs[device] = next(iter(self._pairs.values())).to(device)
        return self._pairs[device]
