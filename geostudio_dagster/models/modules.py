"""Models that are torch modules, wherever they came from."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, fx, nn

from geostudio_dagster.cores import instruction_sets
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.graph import Graph, built, lower
from geostudio_dagster.models.packing import Batches, Packed, pack_weights
from geostudio_dagster.models.programs import graph_in

_IMAGE = 4  # dimensions of (N, bands, H, W)


@dataclass(frozen=True, slots=True)
class TorchRuntime:
    """A module in evaluation mode: see :class:`contract.Runtime`.

    ``batch_size`` is the only one that it was exported for, or None. ``channels_last`` is how
    it gets its pixels.
    """

    module: nn.Module
    spec: InputSpec
    device: str
    batch_size: int | None = None
    channels_last: bool = True

    engine: ClassVar[str] = "torch"
    concurrency: ClassVar[None] = None
    autocasts: ClassVar[bool] = True

    def forward(self, pixels: Tensor) -> Any:
        """The module's output; a multi-modal one gets a dict by modality."""
        given = self.spec.arrange(pixels.to(self.device, non_blocking=True))
        if isinstance(given, dict):
            return self.module({name: self._laid_out(plane) for name, plane in given.items()})
        return self.module(self._laid_out(given))

    def moved(self, device: str) -> TorchRuntime:
        """The same module, on ``device`` from now on."""
        return replace(self, module=self.module.to(device), device=device)

    def _laid_out(self, pixels: Tensor) -> Tensor:
        # Convolutions are up to 1.4 times as fast with the channels last.
        if self.channels_last and pixels.ndim == _IMAGE:
            return pixels.contiguous(memory_format=torch.channels_last)
        return pixels


class ProgramRuntime:
    """A network that a graph was made of, its input's arrangement included; any batch size.

    Its weights are of the type that the calling thread's autocast asks for, and packed for the
    batches that were announced. Only those asked for last are kept; others are read again from
    the file, which is held open: so it may be removed. ``pack`` is whether they are packed at all.
    """

    engine: ClassVar[str] = "torch"
    batch_size: ClassVar[None] = None
    concurrency: ClassVar[None] = None
    autocasts: ClassVar[bool] = True

    def __init__(self, graph: Graph, device: str, file: BinaryIO, *, pack: bool = True) -> None:
        self.device = device
        self._file = file
        weakref.finalize(self, file.close)
        on_processor = torch.device(device).type == "cpu"
        self._packs = graph.packs if on_processor and pack else ()
        self._convolved = graph.convolved
        as_seen = on_processor and graph.seen_on == instruction_sets()
        self._steady = graph.steady if as_seen else ()
        self._packed = Packed()
        self._module: fx.GraphModule | None = built(graph, device)
        self._weights: _Weights | None = _Weights(torch.float32)
        self._expectations: list[Batches] = []
        self._expected: Batches | None = None
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def expecting(self, batches: Batches, *, first: bool = False) -> Iterator[None]:
        """In the body such batches come, and are computed quickly.

        Others get the same numbers, but may take longer. Of several expectations the oldest one
        holds, for weights can't be packed for two; ``first`` puts one before all others.
        """
        with self._lock:
            self._expectations.insert(0 if first else len(self._expectations), batches)
            self._expected = self._expectations[0]
        try:
            yield
        finally:
            with self._lock:
                self._expectations.remove(batches)
                if self._expectations:  # or else the next batches may well be such, too
                    self._expected = self._expectations[0]

    @property
    def packed(self) -> int:
        """How many weights are packed now."""
        with self._lock:
            return self._packed.count

    def takes_fewer(self) -> bool:
        """Whether the patches of a smaller batch give the same numbers, and as soon."""
        with self._lock:
            wanted = self._wanted()
            if wanted.dtype not in self._steady:
                return False
            self._fit(wanted)
            return self._packed.for_smaller

    def forward(self, pixels: Tensor) -> Tensor:
        """The network's output tensor."""
        with self._lock:
            module = self._fit(self._wanted())
            self._running += 1
        try:
            output: Tensor = module(pixels.to(self.device, non_blocking=True))
        finally:
            with self._lock:
                self._running -= 1
                replaced = module is not self._module
            del module
            if replaced:
                gc.collect()  # see _made
        return output

    def _wanted(self) -> _Weights:
        """Of the type that autocast asks for here, packed for what is expected."""
        kind = torch.device(self.device).type
        low = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        dtype = torch.bfloat16 if low else torch.float32
        return _Weights(dtype, self._expected if dtype in self._packs else None)

    def _fit(self, wanted: _Weights) -> fx.GraphModule:
        """The network with such weights, which is the one from now on."""
        if self._module is None or wanted != self._weights:
            self._module = self._made(wanted)
            self._weights = wanted
        return self._module

    def _made(self, wanted: _Weights) -> fx.GraphModule:
        """The network with such weights: of those that are there, if nobody uses them."""
        module, before = self._module, self._weights
        self._module = self._weights = None  # should this fail, they are neither
        if module is None or before is None or self._running or not before.suit(wanted):
            # The old weights go before the new ones come: a graph and its module hold each
            # other, so without this they would stay for as long as Python likes.
            module = None
            gc.collect()
            module = built(graph_in(self._file), self.device)
        if wanted.dtype is not torch.float32:
            lower(module, wanted.dtype)
        # Not as the graph comes in: whoever read it holds its weights until then.
        self._packed = Packed()
        if wanted.packed_for:
            self._packed = pack_weights(module, self._convolved, wanted.packed_for)
        return module


@dataclass(frozen=True, slots=True)
class _Weights:
    """What was made of a program's weights."""

    dtype: torch.dtype
    packed_for: Batches | None = None

    def suit(self, other: _Weights) -> bool:
        """Whether the others can be made of these."""
        return self.packed_for is None and self.dtype in (torch.float32, other.dtype)
