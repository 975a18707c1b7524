"""The forward pass: batches in, outputs out, in order, on one device."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.runtime import Model
from geostudio_dagster.prediction.batches import Batch
from geostudio_dagster.prediction.options import PredictOptions, usable_cores
from geostudio_dagster.prediction.report import StageClock

# Measured for one-thread workers and a ResNet-18 U-Net, CPU time per patch: float32 97 to 100 ms
# at 2 and 3, 109 at 4, 117 at 8, 125 at 1; bfloat16 42 ms at 2, 31 at 4, 33 at 8. Larger batches
# lose to memory allocation, and each adds its activations to the peak memory.
_CPU_BATCH = {"float32": 2, "bfloat16": 4}
_GPU_BATCH = 32
_FEW_CORES = 4


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """How batches are computed. Fixed by machine, bundle and options, never by a timing."""

    device: str
    bfloat16: bool
    batch_size: int
    workers: int
    threads: int

    @property
    def dtype(self) -> str:
        """Name of the arithmetic's type."""
        return "bfloat16" if self.bfloat16 else "float32"


def plan_forward(options: PredictOptions, model: Model) -> ForwardPlan:
    """Choose batch size, precision, workers and threads for ``model`` on this machine."""
    gpu = model.device.startswith("cuda")
    cores = usable_cores()
    # One-thread workers share no barrier, so a busy neighbour slows them by its share only.
    workers = options.workers or model.concurrency or (1 if gpu or cores > _FEW_CORES else cores)
    bfloat16 = options.precision == "auto" and model.autocasts and _has_bfloat16(model.device)
    usual = _GPU_BATCH if gpu else _CPU_BATCH["bfloat16" if bfloat16 else "float32"]
    return ForwardPlan(
        device=model.device,
        bfloat16=bfloat16,
        batch_size=model.batch_size or options.batch_size or usual,
        workers=workers,
        threads=options.threads or max(cores // workers, 1),
    )


def choose_device(options: PredictOptions) -> str:
    """The device that was asked for, or a GPU where there is one, or the processor.

    Raises:
        TaskError: ``no_such_device``.
    """
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # without CUDA support, torch asserts
        raise TaskError(
            "no_such_device", f"There is no device {device} for torch here; name cpu, or none."
        ) from error
    return device


def _has_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class ForwardPass:
    """Runs a model over batches, one or several at a time; outputs come in the batches' order."""

    def __init__(self, model: Model, plan: ForwardPlan, clock: StageClock) -> None:
        self._model = model
        self._plan = plan
        self._clock = clock
        # Importing terratorch sets "medium" for the whole process, which computes float32
        # products in bfloat16: 1 % off, and different from batch size to batch size. Not put
        # back afterwards, since another thread may be in the middle of its own forward pass.
        torch.set_float32_matmul_precision("highest")

    def over(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Tensor | None]]:
        """Each batch with its output, float32 (batch size, channels, size, size).

        The output is None for a batch without patches.
        """
        workers = ThreadPoolExecutor(
            self._plan.workers, "forward", torch.set_num_threads, (self._plan.threads,)
        )
        # Also a single worker has a thread of its own: this one blends meanwhile, small work that
        # would take ten times the CPU time if it were spread over threads.
        with workers as pool, _threads(1):
            yield from self._overlapped(pool, batches)

    def _overlapped(
        self, pool: ThreadPoolExecutor, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Tensor | None]]:
        pending: deque[tuple[Batch, Future[Tensor | None]]] = deque()
        try:
            for batch in batches:
                pending.append((batch, pool.submit(self._run, batch)))
                # One more than the workers, so that none waits while this thread blends.
                if len(pending) > self._plan.workers:
                    yield self._next(pending)
            while pending:
                yield self._next(pending)
        finally:
            for _, future in pending:
                future.cancel()

    def _next(
        self, pending: deque[tuple[Batch, Future[Tensor | None]]]
    ) -> tuple[Batch, Tensor | None]:
        batch, future = pending.popleft()
        with self._clock.measure("forward"):
            return batch, future.result()

    def _run(self, batch: Batch) -> Tensor | None:
        if not batch.used:
            return None
        with torch.inference_mode(), self._autocast():
            return self._halving(torch.from_numpy(batch.pixels))

    def _autocast(self) -> Any:
        if not self._plan.bfloat16:
            return nullcontext()
        return torch.autocast(self._plan.device.partition(":")[0], dtype=torch.bfloat16)

    def _halving(self, pixels: Tensor) -> Tensor:
        """The output; where memory runs out, of two halves one after the other."""
        try:
            return self._model(pixels)
        except torch.OutOfMemoryError:
            if len(pixels) == 1 or self._model.batch_size:
                raise
            torch.cuda.empty_cache()
        half = len(pixels) // 2
        return torch.cat([self._halving(pixels[:half]), self._halving(pixels[half:])])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Threads per operation in the body; what it was before, afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
