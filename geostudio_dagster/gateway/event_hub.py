"""Who waits for events of which request, and one poller of the catalog for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from geostudio_dagster.catalog import Catalog

log = logging.getLogger(__name__)

_POLL_S = 0.5


class EventHub:
    """Wakes the streams of requests that something happened to: one query serves all of them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._streams: dict[str, set[asyncio.Event]] = {}
        self._seen: dict[str, int] = {}
        self._poller: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """How many streams are open."""
        return sum(map(len, self._streams.values()))

    @contextmanager
    def watching(self, request_id: str) -> Iterator[asyncio.Event]:
        """A flag that is set whenever the request has new events, while the body runs."""
        flag = asyncio.Event()
        self._streams.setdefault(request_id, set()).add(flag)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield flag
        finally:
            flags = self._streams[request_id]
            flags.discard(flag)
            if not flags:
                del self._streams[request_id]
                self._seen.pop(request_id, None)

    async def _poll(self) -> None:
        while self._streams:
            wanted = {request_id: self._seen.get(request_id, -1) for request_id in self._streams}
            try:
                latest = await asyncio.to_thread(self._catalog.latest_events, wanted)
            except Exception:
                log.exception("the catalog could not be asked for events")
                latest = {}
            for request_id, event_id in latest.items():
                if request_id in self._streams:
                    self._seen[request_id] = event_id
                    for flag in self._streams[request_id]:
                        flag.set()
            await asyncio.sleep(_POLL_S)
