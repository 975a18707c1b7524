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

# Of malloc.h: larger pieces come from the system each time; more at the end goes back to it.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_MOST_MAPPED = 32 * 1024**2


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
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what is asked for next, up to 64 MB a thread.

    It finds out by itself how much is worth keeping, of what is freed by chance: where that is
    little, each layer's memory comes from the system anew. Prithvi-tiny spent a tenth of its time
    so, over scenes of 4096 x 4096 pixels in bfloat16. These are the most that it would come to.
    """
    if (tune := _of_glibc("mallopt")) is not None:
        tune(_MMAP_THRESHOLD, _MOST_MAPPED)
        tune(_TRIM_THRESHOLD, 2 * _MOST_MAPPED)


@cache
def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return None
    return found
