"""Reading ahead of the forward pass, in one thread, by a bounded number of batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass

from geostudio_dagster.prediction.batches import Batch
from geostudio_dagster.prediction.report import StageClock

AHEAD = 2
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _End:
    """The reader is done, or failed."""

    error: BaseException | None = None


@contextmanager
def read_ahead(batches: Iterator[Batch], clock: StageClock) -> Iterator[Iterator[Batch]]:
    """Iterate over ``batches`` in a thread; the body gets them in order, errors included.

    Leaving the body stops the thread and waits for it. The time that the body waits for a batch
    is added to the stage ``stall``, and how often it waited to ``clock.stalls``.
    """
    belt = _Belt()
    # In a copy of this context, so that what reading logs is told from what other tasks log.
    reading = copy_context().run
    thread = threading.Thread(
        target=reading, args=(belt.fill, batches), name="read-ahead", daemon=True
    )
    thread.start()
    try:
        yield belt.arriving(clock)
    finally:
        belt.stop()
        thread.join()


class _Belt:
    """What one thread puts batches on, and another takes them from; it holds few."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Batch | _End] = queue.Queue(AHEAD)
        self._stopped = threading.Event()

    def fill(self, batches: Iterator[Batch]) -> None:
        """Put on all batches, then their end or the error that ended them."""
        try:
            for batch in batches:
                if not self._put(batch):
                    return
            self._put(_End())
        except BaseException as error:
            self._put(_End(error))

    def arriving(self, clock: StageClock) -> Iterator[Batch]:
        """Batches as they come; raises the error that ended them."""
        while True:
            clock.stalls += self._waiting.empty()
            with clock.measure("stall"):
                item = self._waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def stop(self) -> None:
        """Nobody takes anything any more: whoever fills it gives up."""
        self._stopped.set()

    def _put(self, item: Batch | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._waiting.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False
