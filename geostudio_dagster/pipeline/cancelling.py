"""A cancelled run ends in time whatever holds it up, else its process is ended."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from geostudio_dagster.installation import Installation

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at whether the request was cancelled
GRACE_S = 2.5  # that work has from then on to end by itself
EXIT_CODE = 128 + signal.SIGINT  # as of a command that was stopped

_LAST_WORDS = b"The request was cancelled, and this run did not end by itself: it is ended.\n"


@contextmanager
def ended_if_cancelled(installation: Installation, request_id: str) -> Iterator[None]:
    """Work on a request within: once that is cancelled, this process has not long to live.

    The engine asks between batches whether to stop, and Dagster interrupts the main thread between
    two of its instructions. Neither happens while native code is at work: a large COG that is
    compressed, a graph that is compiled, a forward pass that never returns. So a thread of its own
    looks, too, and what is not over by ``GRACE_S`` after is ended with the process, as by SIGKILL;
    nothing that was finished is lost by that. (A process asks the kernel for its own end, and not
    for a signal, which the first process of a container would not get.)
    """
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(installation, request_id, over), name="cancellation", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(installation: Installation, request_id: str, over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        if _is_cancelled(installation, request_id):
            if not over.wait(GRACE_S):
                os.write(2, _LAST_WORDS)  # logging may be what holds the run up
                os._exit(EXIT_CODE)
            return


def _is_cancelled(installation: Installation, request_id: str) -> bool:
    try:
        return installation.catalog.is_cancelled(request_id)
    except Exception:  # whatever it is, the next look may do; a watcher must not end over it
        log.exception("request %s: whether it was cancelled is not known", request_id)
        return False
