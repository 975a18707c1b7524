"""Several predictions of one process at a time share the device and the memory, in order.

While one scene's first rows are read or its file is finished, another one computes. Whoever began
first goes first, so a scene is not slowed by those behind it, and no more is in flight on the
device than a single prediction would have there.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

from geostudio_dagster.cores import usable_cores
from geostudio_dagster.errors import Cancelled

_MOST_AT_ONCE = 4
_LOOK_S = 0.2  # between two looks at whether to wait any longer


def at_once() -> int:
    """Predictions of one shard that are worked at a time.

    So the device computes one scene while others are opened, written, checked and stored. It pays
    most for small scenes; large ones have all the memory one by one. More where there are many
    cores: a GPU has done a small scene in less time than it takes to read one.
    """
    return max(2, min(_MOST_AT_ONCE, usable_cores() // 4))


class Turns:
    """One whole, of which predictions take parts; thread-safe.

    Where several wait, the one of the lowest ``order`` is next, even if its part is not free yet
    and a smaller one's would be: a large scene must not wait for ever.
    """

    def __init__(self) -> None:
        self._free = Fraction(1)
        self._waiting: list[tuple[int, int]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, part: Fraction, order: int, stopped: Callable[[], bool]) -> Iterator[None]:
        """Have ``part`` of the whole in the body, as soon as it is free.

        Args:
            part: above 0, at most 1. order: the prediction's. stopped: asked while waiting.

        Raises:
            Cancelled: ``stopped`` said so while it waited.
        """
        self._take(part, order, stopped)
        try:
            yield
        finally:
            with self._changed:
                self._free += part
                self._changed.notify_all()

    def _take(self, part: Fraction, order: int, stopped: Callable[[], bool]) -> None:
        ticket = order, next(self._numbers)
        with self._changed:
            heapq.heappush(self._waiting, ticket)
            try:
                while self._waiting[0] != ticket or part > self._free:
                    if stopped():
                        raise Cancelled("Nobody waits for this any more.")
                    self._changed.wait(_LOOK_S)
                self._free -= part
            finally:
                # Also after an interruption: those behind it must not wait for it.
                self._waiting.remove(ticket)
                heapq.heapify(self._waiting)
                self._changed.notify_all()


_numbers = itertools.count()
_devices: dict[str, Turns] = {}
_memory = Turns()


@dataclass(frozen=True, slots=True)
class Place:
    """Where one prediction stands among all of its process, from its beginning on.

    It waits for nothing any more once ``stopped`` says so: then :class:`Cancelled` is raised.
    """

    stopped: Callable[[], bool] = bool
    order: int = field(default_factory=lambda: next(_numbers))

    def share(
        self, device: str, workers: int, unwanted: Callable[[], bool]
    ) -> AbstractContextManager[None]:
        """One worker of so many may use the device in the body; ``unwanted`` stops it as well."""
        part = Fraction(1, workers)
        return _on(device).taken(part, self.order, lambda: unwanted() or self.stopped())

    def alone(self, device: str) -> AbstractContextManager[None]:
        """Nobody else uses the device in the body."""
        return _on(device).taken(Fraction(1), self.order, self.stopped)

    def room(self, needed: int, memory: int) -> AbstractContextManager[None]:
        """In the body so many bytes, of those that all may have, are for this prediction.

        One that needs more, and makes do with less, has all of them.
        """
        part = min(Fraction(needed, memory), Fraction(1))
        return _memory.taken(part, self.order, self.stopped)


def _on(device: str) -> Turns:
    return _devices.setdefault(device, Turns())
