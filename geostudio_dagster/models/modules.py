"""Models that are torch modules, wherever they came from."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, fx, nn

from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.graph import Graph, built, lower
from geostudio_dagster.models.packing import pack_weights
from geostudio_dagster.models.programs import graph_in

_IMAGE = 4  # dimensions of (N, bands, H, W)


@dataclass(frozen=True, slots=True)
class TorchRuntime:
    """A module in evaluation mode: see :class:`contract.Runtime`.

    ``batch_size`` is the only one that it was exported for, or None.
    """

    module: nn.Module
    spec: InputSpec
    device: str
    batch_size: int | None = None

    engine: ClassVar[str] = "torch"
    concurrency: ClassVar[None] = None
    autocasts: ClassVar[bool] = True

    def forward(self, pixels: Tensor) -> Any:
        """The module's output; a multi-modal one gets a dict by modality."""
        given = self.spec.arrange(pixels.to(self.device, non_blocking=True))
        if isinstance(given, dict):
            return self.module({name: _laid_out(plane) for name, plane in given.items()})
        return self.module(_laid_out(given))

    def moved(self, device: str) -> TorchRuntime:
        """The same module, on ``device`` from now on."""
        return replace(self, module=self.module.to(device), device=device)


class ProgramRuntime:
    """A network that a graph was made of, its input's arrangement included; any batch size.

    Its weights are of the type that the calling thread's autocast asks for. Only those asked for
    last are kept; others are read again from the file, which is held open: so it may be removed.
    """

    engine: ClassVar[str] = "torch"
    batch_size: ClassVar[None] = None
    concurrency: ClassVar[None] = None
    autocasts: ClassVar[bool] = True

    def __init__(self, graph: Graph, device: str, file: BinaryIO) -> None:
        self.device = device
        self._file = file
        weakref.finalize(self, file.close)
        self._packs = graph.packs and torch.device(device).type == "cpu"
        self._plain: fx.GraphModule | None = built(graph, device)
        self._made: tuple[bool, fx.GraphModule] | None = None
        self._lock = threading.Lock()

    def forward(self, pixels: Tensor) -> Tensor:
        """The network's output tensor."""
        output: Tensor = self._fitting()(pixels.to(self.device, non_blocking=True))
        return output

    def _fitting(self) -> fx.GraphModule:
        """The network with weights of the type that autocast asks for here."""
        kind = torch.device(self.device).type
        bfloat16 = (
            torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        )
        with self._lock:
            if self._made is None or self._made[0] != bfloat16:
                self._made = None
                # The old weights go before the new ones come: a graph and its module hold each
                # other, so without this they would stay for as long as Python likes.
                gc.collect()
                self._made = bfloat16, self._read(bfloat16)
            return self._made[1]

    def _read(self, bfloat16: bool) -> fx.GraphModule:
        module, self._plain = self._plain, None
        if module is None:
            module = built(graph_in(self._file), self.device)
        if bfloat16:
            lower(module, torch.bfloat16)
        # Not as the graph comes in: whoever read it holds its weights until then.
        if self._packs:
            pack_weights(module)
        return module


def _laid_out(pixels: Tensor) -> Tensor:
    # Convolutions are up to 1.4 times as fast with the channels last.
    if pixels.ndim != _IMAGE:
        return pixels
    return pixels.contiguous(memory_format=torch.channels_last)
