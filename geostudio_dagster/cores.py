"""How much of the machine is ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_FEW_CORES = 4


def usable_cores() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usual_workers() -> int:
    """Forward passes at the same time on a processor, unless somebody chooses otherwise.

    One-thread workers share no barrier, so a busy neighbour slows them by its share only.
    """
    cores = usable_cores()
    return 1 if cores > _FEW_CORES else cores


def usual_threads() -> int:
    """Threads within each of them."""
    return max(usable_cores() // usual_workers(), 1)


def instruction_sets() -> str:
    """Those of this processor that decide how torch computes, such as ``AVX512 bfloat16``."""
    import torch

    names = [torch.backends.cpu.get_cpu_capability()]
    names += ["bfloat16"] if torch.cpu._is_avx512_bf16_supported() else []
    names += ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    return " ".join(names)


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """What this thread does with torch in the body is spread over that many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
