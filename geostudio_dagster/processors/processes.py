"""Trees of processes as /proc shows them: who is in one, and what it uses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_UTIME, _CUTIME_END, _THREADS = 11, 15, 17  # fields of /proc/<pid>/stat after the name


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree uses now: threads, memory (bytes), CPU (s), and bytes written to disks so far."""

    threads: int = 0
    memory: int = 0
    cpu_s: float = 0.0
    written: int = 0


def descendants(root: int) -> list[int]:
    """``root`` and all that descends from it."""
    found = [root]
    for pid in found:
        found.extend(_children(pid))
    return found


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            with suppress(OSError):
                yield from map(int, (task / "children").read_text().split())


def usage(pids: Iterable[int], *, exact: bool = False) -> Usage:
    """What these processes use together; those that are gone count nothing.

    Memory that processes share counts for each of them unless ``exact``, which is slower.
    """
    threads = memory = written = 0
    cpu_s = 0.0
    for pid in pids:
        with suppress(OSError, ValueError):
            fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
            cpu_s += sum(map(int, fields[_UTIME:_CUTIME_END])) / _TICKS
            threads += int(fields[_THREADS])
            written += _number(pid, "io", b"write_bytes:")
            memory += _proportional(pid) if exact else _resident(pid)
    return Usage(threads, memory, cpu_s, written)


def _resident(pid: int) -> int:
    """Anonymous and shared memory and its page tables, bytes; mapped files can be dropped."""
    kinds = (b"RssAnon:", b"RssShmem:", b"VmPTE:")
    return sum(_number(pid, "status", kind) for kind in kinds) * 1024


def _proportional(pid: int) -> int:
    anonymous = _number(pid, "smaps_rollup", b"Pss_Anon:")
    tables = _number(pid, "status", b"VmPTE:")
    return (anonymous + _number(pid, "smaps_rollup", b"Pss_Shmem:") + tables) * 1024


def _number(pid: int, file: str, label: bytes) -> int:
    with suppress(OSError):
        for line in (_PROC / str(pid) / file).read_bytes().splitlines():
            if line.startswith(label):
                return int(line.split()[1])
    return 0
