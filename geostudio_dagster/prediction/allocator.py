"""glibc's allocator, told to keep the memory of one forward pass for the next.

It gives large blocks back to the system when they are freed, and the system hands out zeroed
pages when they are wanted again: 1000 to 6000 page faults per patch of a small U-Net, a tenth of
its time and more for larger batches. torch has no pool of its own on the processor.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEPT = 1024**3  # bytes: more than any activation
# The heap of a thread is 64 MB long; one that this is free of is not given back.
_PAD = 64 * 1024**2


@contextmanager
def memory_kept() -> Iterator[None]:
    """Freed memory stays with the process in the body; afterwards it goes back to the system.

    Does nothing without glibc, or where the environment has settings of its own (``MALLOC_...``).
    The thresholds stay raised for the process's life: they have no defined way back.
    """
    library = _raised()
    try:
        yield
    finally:
        if library is not None:
            library.malloc_trim(0)


@cache
def _raised() -> Any:
    """The C library, its thresholds raised; None where that can't or shouldn't be."""
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or chosen:
        return None
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _KEPT)
    library.mallopt(_TRIM_THRESHOLD, _KEPT)
    library.mallopt(_TOP_PAD, _PAD)
    return library
