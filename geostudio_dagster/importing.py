"""Imports while Python's garbage collector rests.

An import makes many objects and hardly any garbage, yet the collector looks through all of them
again and again: a quarter of the time that the code location takes, and a tenth of torch's. And
once more as the process ends, for half a second.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing(module: str) -> Iterator[None]:
    """In the body ``module`` is imported, unless it is there: then this does nothing.

    For what stays until the process ends, and early: from then on the collector passes over all
    that there is, garbage included. Several threads may be in a body at the same time.
    """
    if module in sys.modules:
        yield
        return
    resting = gc.isenabled()  # or another thread lets it rest, and ends that
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if resting:
            gc.enable()
