"""What a prediction did: counts, seconds by stage, and what it was made with."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Span(NamedTuple):
    """What a thread did, and when: seconds since the clock was made."""

    thread: str
    stage: str
    start: float
    stop: float


class StageClock:
    """Seconds by stage. Stages overlap in time (threads), so they need not add up to the total.

    Threads may share it. ``busy`` are the seconds in which at least one worker computed,
    ``queued`` those in which none did, but one waited for other predictions. ``spans`` are kept
    only where a timeline is to be drawn, else None.
    """

    def __init__(self, *stages: str, profiling: bool = False) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        self.stalls = 0  # batches that were not there yet when the forward loop asked for one
        self.busy = 0.0
        self.queued = 0.0
        self.spans: list[Span] | None = [] if profiling else None
        self._started = time.perf_counter()
        self._computing = 0  # workers
        self._queuing = 0
        self._counted = self._started  # until when busy and queued are
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the body to ``stage``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)
            self._keep(stage, began)

    @contextmanager
    def computing(self, stage: str) -> Iterator[None]:
        """A worker computes in the body, maybe beside others: it adds to ``busy`` and the spans.

        Not to the stage's seconds, which are one thread's.
        """
        began = time.perf_counter()
        self._count(computing=1)
        try:
            yield
        finally:
            self._count(computing=-1)
            self._keep(stage, began)

    @contextmanager
    def queuing(self) -> Iterator[None]:
        """A worker waits in the body for its turn, which others may have."""
        self._count(queuing=1)
        try:
            yield
        finally:
            self._count(queuing=-1)

    def _count(self, computing: int = 0, queuing: int = 0) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._computing:
                self.busy += now - self._counted
            elif self._queuing:
                self.queued += now - self._counted
            self._counted = now
            self._computing += computing
            self._queuing += queuing

    def _keep(self, stage: str, began: float) -> None:
        if self.spans is not None:
            thread = threading.current_thread().name
            self.spans.append(Span(thread, stage, began - self._started, self.total()))

    def add(self, stage: str, seconds: float) -> None:
        """Add a duration to ``stage``."""
        with self._lock:
            self.seconds[stage] += seconds

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """Facts about one finished prediction.

    Attributes:
        pixels: pixels of the window, valid or not.
        patches: patches that went through the model.
        skipped_patches: patches without a single valid pixel, which did not.
        engine: what computed: torch, onnxruntime, openvino or an endpoint.
        folded: batch normalisations that convolutions carried.
        channels_last: whether torch's convolutions computed with the channels last.
        packed: convolutions with packed weights.
        seconds: wall seconds by stage: total, model, read, blend, write, cog; normalise, of all
            workers together (on a GPU, of asking it to); stall, the time in which the forward
            loop waited for pixels; forward, in which it waited for the workers' outputs; room, in
            which it waited, before it began to read, for other predictions' memory.
        queued: wall seconds of ``forward`` in which the workers waited for other predictions.
        forward_busy: wall seconds in which at least one worker normalised or was in its forward
            pass.
        stalls: how often it waited; at least once, for the first batch.
        nodata_fraction: share of the window's pixels that are nodata in the output.
        not_finite: of these, pixels with data that the network gave no finite number for.
        class_counts: pixels by class value; None for a regression.
        bounds: west, south, east, north in the units of ``crs``.
        shape: bands, height, width of the output.
        peak_rss: largest resident memory of the process so far, bytes.
    """

    pixels: int
    patches: int
    skipped_patches: int
    batch_size: int
    workers: int
    threads: int
    device: str
    engine: str
    folded: int
    channels_last: bool
    packed: int
    dtype: str
    patch: int
    overlap: int
    trim: int
    seconds: dict[str, float]
    forward_busy: float
    queued: float
    stalls: int
    nodata_fraction: float
    not_finite: int
    class_counts: dict[int, int] | None
    bounds: tuple[float, float, float, float]
    crs: str
    shape: tuple[int, int, int]
    peak_rss: int
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return dataclasses.asdict(self)


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    # Linux's getrusage counts what the process that started this one had, too.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
