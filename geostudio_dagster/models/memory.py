"""Memory that runs out, which says nothing of the model or the scene, and what is given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

# What torch raises for these is a plain RuntimeError, and onnxruntime has classes of its own.
_SENTENCES = (
    "DefaultCPUAllocator",
    "ALLOC_FAILED",
    "CUDA error: out of memory",
    "Failed to allocate memory for requested buffer",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's or a GPU's memory did not do: another time it may."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # where nobody imported it, the error is none of its own
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sentence in str(error) for sentence in _SENTENCES)


def give_back_memory() -> None:
    """Let the system have what was freed.

    glibc keeps it by thread, in pieces: over a scene of 32768 x 32768 pixels that grew to 60 MB.
    """
    if trim := _trim():
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return None
    return found
