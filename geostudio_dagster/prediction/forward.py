"""The forward pass: batches in, outputs out, in order, on one device."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geostudio_dagster.cores import computing_with, usable_cores, usual_workers
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.memory import is_out_of_memory, keep_freed_memory
from geostudio_dagster.models.packing import Batches
from geostudio_dagster.models.runtime import Model
from geostudio_dagster.prediction.batches import Batch
from geostudio_dagster.prediction.normalising import Normalisation
from geostudio_dagster.prediction.options import PredictOptions
from geostudio_dagster.prediction.report import StageClock
from geostudio_dagster.prediction.turns import Place

# Measured for two one-thread workers and a ResNet-18 U-Net, ms of wall time per patch: float32 with
# packed weights (AVX2) 69 at 1, 66 at 2, 65 at 3, 71 at 4, all good to some 5; bfloat16 29 at 4, 27
# at 8, of CPU time. Each patch more in flight adds its activations to the peak memory: float32 is
# at 210 MB at 2, and up to 308 at 3. Besides, 2 leaves less of a small scene's last batch empty.
# Above 4, glibc hands blocks of over 32 MB back to the system each time.
_CPU_BATCH = {"float32": 2, "bfloat16": 4}
# A transformer's layers are products of large matrices whatever the batch: Prithvi-tiny and -100M
# are as fast (within 5 %) at 1 as at 3, and take 185 and 194 MB instead of 387 and 412. In bfloat16
# Prithvi-tiny is as fast at 3 as at 4 (AMX), and takes 30 MB less.
_CPU_BATCH_OF_ATTENTION = {"float32": 1, "bfloat16": 3}
_GPU_BATCH = 32
_DEVICES = ("cpu", "cuda")
_GPU_WORKERS = 2  # one copies and asks for its work while the other's is computed


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """How batches are computed.

    Fixed by machine, bundle and options; by a timing only as :mod:`calibration` keeps it.
    """

    device: str
    bfloat16: bool
    batch_size: int
    workers: int
    threads: int
    calibrated: bool = False

    @property
    def dtype(self) -> str:
        """Name of the arithmetic's type."""
        return "bfloat16" if self.bfloat16 else "float32"


def plan_forward(options: PredictOptions, model: Model, most: int = _GPU_BATCH) -> ForwardPlan:
    """Choose batch size, precision, workers and threads for ``model`` on this machine.

    Args:
        options: what the caller chose. model: the loaded model.
        most: patches that the whole scene has; of the scene, not of a window of it, so that a
            patch is computed in the same way for both.
    """
    gpu = model.device.startswith("cuda")
    cores = usable_cores()
    workers = options.workers or model.concurrency or (_GPU_WORKERS if gpu else usual_workers())
    bfloat16 = options.precision == "auto" and model.autocasts and has_bfloat16(model.device)
    on_cpu = _CPU_BATCH_OF_ATTENTION if model.attends else _CPU_BATCH
    batch = min(_GPU_BATCH, most) if gpu else on_cpu["bfloat16" if bfloat16 else "float32"]
    return ForwardPlan(
        device=model.device,
        bfloat16=bfloat16,
        batch_size=model.batch_size or options.batch_size or batch,
        workers=workers,
        threads=options.threads or max(cores // workers, 1),
    )


def choose_device(options: PredictOptions, runtime: str = "") -> str:
    """The device that was asked for, or a GPU where there is one, or the processor.

    A GPU has its number with it, whichever way it was asked for. Its convolutions in float32 are
    that from now on, not TF32, which is 0.1 % off, and the same each time.

    Args:
        options: choices of the prediction. runtime: the bundle's; where OpenVINO is chosen for
            its ONNX models, the processor is, too.

    Raises:
        TaskError: ``no_such_device``. RuntimeError: its memory does not do for anything now.
    """
    on_processor = runtime == "onnx" and options.onnx_engine == "openvino"
    usual = "cuda" if torch.cuda.is_available() and not on_processor else "cpu"
    device = options.device or usual
    try:
        kind = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:  # without CUDA support, torch asserts
        if is_out_of_memory(error):
            raise
        raise _no_device(device) from error
    if kind not in _DEVICES:
        raise _no_device(device)
    if device.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    if device == "cuda":
        return f"cuda:{torch.cuda.current_device()}"
    return device


def _no_device(name: str) -> TaskError:
    return TaskError(
        "no_such_device", f"There is no device {name} for torch here; name cpu, or none."
    )


def has_bfloat16(device: str) -> bool:
    """Whether the device computes in bfloat16, instead of only storing it."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def host_memory(device: str) -> Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]:
    """What makes room for a batch: for a GPU page-locked memory, which it copies from by itself."""
    pinned = device.startswith("cuda")

    def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        return torch.empty(shape, dtype=kind, pin_memory=pinned).numpy()

    return room


class ForwardPass:
    """Runs a model over batches, one or several at a time; outputs come in the batches' order.

    ``normalise`` makes what the model sees of their pixels; None where they are that already.
    ``fits`` is how many patches go through the model at once: the plan's, halved whenever memory
    runs out. ``coming`` says what its batches are like. ``place`` is the prediction's among those
    that want the device as well; None where no other computes meanwhile.
    """

    def __init__(
        self,
        model: Model,
        plan: ForwardPlan,
        clock: StageClock,
        *,
        place: Place | None = None,
        normalise: Normalisation | None = None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._clock = clock
        self._place = place
        self._normalise = normalise
        self._own = threading.local()  # of each worker
        self._over = threading.Event()
        self.fits = plan.batch_size
        self.coming = Batches(plan.batch_size, plan.threads)
        gpu = plan.device.startswith("cuda") and model.engine == "torch"  # others copy themselves
        self._copies = _Copies(plan.device) if gpu else None
        keep_freed_memory()
        # Importing terratorch sets "medium" for the whole process, which computes float32
        # products in bfloat16: 1 % off, and different from batch size to batch size. Not put
        # back afterwards, since another thread may be in the middle of its own forward pass.
        torch.set_float32_matmul_precision("highest")

    def over(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Tensor | None]]:
        """Each batch with its output, float32 (patches, channels, size, size).

        Those are the batch's, and perhaps empty ones behind them. The output is None for a batch
        without patches. A batch may be filled anew once it has come out.
        """
        workers = ThreadPoolExecutor(
            self._plan.workers, "forward", torch.set_num_threads, (self._plan.threads,)
        )
        # Also a single worker has a thread of its own: this one blends meanwhile.
        with self._model.expecting(self.coming, first=self._place is None), workers as pool:
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
            self._over.set()
            for _, future in pending:
                future.cancel()

    def _next(
        self, pending: deque[tuple[Batch, Future[Tensor | None]]]
    ) -> tuple[Batch, Tensor | None]:
        batch, future = pending.popleft()
        with self._clock.measure("forward"):
            output = future.result()
        if output is not None and output.is_cuda:
            # Whoever takes it may use another stream; its memory is not free before that is done.
            output.record_stream(torch.cuda.current_stream(output.device))
        return batch, output

    def _run(self, batch: Batch) -> Tensor | None:
        if not batch.used:
            return None
        with self._turn(), self._computing():
            output = self._within_memory(*self._patches(batch))
            if self._copies:
                # Until here the batch's memory may still be read, and its time is not over.
                with self._clock.computing("forward"):
                    self._copies.wait()
            return output

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This worker's share of the device, unless nobody wants the outputs any more."""
        # Of endpoints all predictions together ask no more at a time than they are said to take.
        if self._place is None or self._model.concurrency:
            yield
            return
        plan = self._plan
        with ExitStack() as stack:
            with self._clock.queuing():
                share = self._place.share(plan.device, plan.workers, self._over.is_set)
                stack.enter_context(share)
            yield

    @contextmanager
    def _computing(self) -> Iterator[None]:
        kind, bfloat16 = self._plan.device.partition(":")[0], self._plan.bfloat16
        autocast = torch.autocast(kind, dtype=torch.bfloat16) if bfloat16 else nullcontext()
        with torch.inference_mode(), autocast:
            yield

    def _patches(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Pixels of the batch's patches, and which are valid unless all are.

        Also the empty ones behind them if the model wants whole batches.
        """
        whole = batch.used == len(batch.pixels) or not self._model.takes_fewer()
        count = len(batch.pixels) if whole else batch.used
        valid = batch.valid if batch.gaps else None
        pixels = torch.from_numpy(batch.pixels[:count])
        return pixels, None if valid is None else torch.from_numpy(valid[:count])

    def _within_memory(self, pixels: Tensor, valid: Tensor | None) -> Tensor:
        """The output, of parts that fit; where memory runs out, from then on of halves."""
        parts: list[Tensor] = []
        done = 0
        while done < len(pixels):
            size = min(self.fits, len(pixels) - done)
            part = slice(done, done + size)
            output = self._attempt(pixels[part], None if valid is None else valid[part])
            if output is None:
                # Not before the attempt has returned: until then its layers hold their memory.
                self.fits = size // 2
                gc.collect()  # networks hold themselves in circles
                torch.cuda.empty_cache()
                continue
            parts.append(output)
            done += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attempt(self, pixels: Tensor, valid: Tensor | None) -> Tensor | None:
        """The output, or None where memory runs out but might do for half of the patches."""
        try:
            if self._copies is None:
                seen = self._seen(pixels, valid)
                with self._clock.computing("forward"):
                    output = self._model(seen)
                return output.clone() if _share_memory(output, seen) else output
            with self._clock.computing("forward"):
                there, copied = self._copies.there(pixels, valid)
                with _launching(self._plan.device):
                    self._copies.arrive(there, copied)
                    return self._model(self._seen(*there))
        except Exception as error:
            if len(pixels) == 1 or self._model.batch_size or not is_out_of_memory(error):
                raise
            return None

    def _seen(self, pixels: Tensor, valid: Tensor | None) -> Tensor:
        """What the model sees of pixels that are where it computes."""
        if self._normalise is None:
            return pixels
        began = time.perf_counter()
        with self._clock.computing("normalise"):
            seen = self._normalise(pixels, valid, self._room(pixels))
        self._clock.add("normalise", time.perf_counter() - began)
        return seen

    def _room(self, pixels: Tensor) -> Tensor | None:
        """Where this worker puts what the model sees of them; None for torch to find some.

        On a processor fresh memory each time would take more of it; on a GPU torch keeps some.
        """
        if pixels.device.type != "cpu":
            return None
        if len(pixels) > len(getattr(self._own, "room", ())):
            self._own.room = torch.empty(pixels.shape, dtype=torch.float32)
        room: Tensor = self._own.room
        return room


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class _Copies:
    """Copies to a GPU on a stream of their own, while it computes the batch before."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = _stream_of(device, "copies")

    def there(
        self, pixels: Tensor, valid: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor | None], torch.cuda.Event]:
        """Both on the GPU, and what happens once they have arrived."""
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
        with torch.cuda.stream(self._stream):
            copies = (
                pixels.to(self._device, non_blocking=True),
                None if valid is None else valid.to(self._device, non_blocking=True),
            )
            copied.record()
        return copies, copied

    def arrive(self, copies: Iterable[Tensor | None], copied: torch.cuda.Event) -> None:
        """Let what is asked of the GPU from now on begin no sooner."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        for copy in copies:
            if copy is not None:
                copy.record_stream(computing)  # its memory is not free before that

    def wait(self) -> None:
        """Until all that this thread asked for is computed; other threads' work may queue up."""
        # Blocking: or the thread spins, on a core that reading and blending need. (No types again.)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._device))
        done.synchronize()


@contextmanager
def beside(device: str) -> Iterator[None]:
    """What this thread does in the body, blending and the like, goes on beside the forward pass.

    On a processor with one thread per operation: small work takes ten times the CPU time if it
    is spread over threads, which then also spin for more while the forward pass needs the cores.
    On a GPU on a stream of its own, or else waiting for finished rows would also wait for all
    batches that were asked for since.
    """
    with computing_with(1), _stream(device):
        yield


def _stream(device: str) -> AbstractContextManager[Any]:
    if not device.startswith("cuda"):
        return nullcontext()
    return torch.cuda.stream(_stream_of(device, "blending"))


@cache
def _launching(device: str) -> threading.Lock:
    """For one batch to ask the device for all of its kernels before the next one does.

    Mixed, two would need memory for their layers at a time, and one wait for the other's pixels.
    """
    return threading.Lock()


@cache
def _stream_of(device: str, purpose: Literal["copies", "blending"]) -> torch.cuda.Stream:
    """The device's one stream for that: what torch keeps of freed memory, it keeps by stream."""
    # Blending is of a higher priority (the lower the number), since what it does is short.
    priority = -1 if purpose == "blending" else 0
    # torch has no types for what makes a stream.
    return torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
