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
    waiting: queue.Queue[Batch | _End] = queue.Queue(AHEAD)
    stop = threading.Event()

    def hand_over(item: Batch | _End) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not hand_over(batch):
                    return
            hand_over(_End())
        except BaseException as error:
            hand_over(_End(error))

    def arriving() -> Iterator[Batch]:
        while True:
            clock.stalls += waiting.empty()
            with clock.measure("stall"):
                item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    # In a copy of this context, so that what reading logs is told from what other tasks log.
    reading = copy_context().run
    thread = threading.Thread(target=reading, args=(work,), name="read-ahead", daemon=True)
    thread.start()
    try:
        yield arriving()
    finally:
        stop.set()
        thread.join()
