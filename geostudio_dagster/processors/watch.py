"""The limits that Linux does not hold for a whole tree of processes, looked at again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geostudio_dagster.processors.processes import Usage, usage
from geostudio_dagster.processors.sandbox import Confined
from geostudio_dagster.settings import ScriptLimits

_INTERVAL_S = 0.05
_DISK_INTERVAL_S = 0.2
_MOST_ENTRIES = 20_000
_REWRITES = 4  # how often a script may write over all that it may keep
_DEEPEST = 100  # beyond, paths grow too long to look at
_LONGEST_PATH = 3500
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Breach:
    """A limit that was passed, and the clause that says so."""

    reason: Literal["timeout", "cpu", "memory", "disk", "processes"]
    clause: str

    @classmethod
    def of(cls, reason: Literal["timeout", "cpu", "memory"], limits: ScriptLimits) -> Breach:
        """The limit of that name, passed."""
        clauses = {
            "timeout": f"took longer than {limits.wall_s:g} s",
            "cpu": f"used more than {limits.cpu_s:g} s of processor time",
            "memory": f"used more than {megabytes(limits.memory_bytes)} of memory",
        }
        return cls(reason, clauses[reason])


class Watch:
    """Looks at a running script; ``look`` says which limit it has passed, if any."""

    interval = _INTERVAL_S

    def __init__(self, confined: Confined, folders: Sequence[Path], limits: ScriptLimits) -> None:
        self._confined = confined
        self._folders = folders
        self._limits = limits
        self._started = time.monotonic()
        self._next_look = self._next_disk_look = 0.0
        self.cpu_s = 0.0
        self.peak_memory = 0

    def look(self) -> Breach | None:
        """Judge what it uses now; does nothing when it was looked at a moment ago."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + _INTERVAL_S
        if now - self._started > self._limits.wall_s:
            return Breach.of("timeout", self._limits)
        return self._processes() or self._disk(now)

    def _processes(self) -> Breach | None:
        limits = self._limits
        members = self._confined.processes()
        used = usage(members)
        if used.memory > limits.memory_bytes:
            used = usage(members, exact=True)
        self.cpu_s = max(self.cpu_s, used.cpu_s)
        self.peak_memory = max(self.peak_memory, used.memory)
        return self._passed(used)

    def _passed(self, used: Usage) -> Breach | None:
        limits = self._limits
        if used.memory > limits.memory_bytes:
            return Breach.of("memory", limits)
        if used.cpu_s > limits.cpu_s:
            return Breach.of("cpu", limits)
        if used.threads > 2 * limits.processes:
            return Breach("processes", f"started more than {limits.processes} processes")
        if used.written > _REWRITES * limits.output_bytes:
            text = f"wrote more than {_REWRITES} times the {megabytes(limits.output_bytes)}"
            return Breach("disk", f"{text} that it may leave")
        return None

    def _disk(self, now: float) -> Breach | None:
        if now < self._next_disk_look:
            return None
        entries = sum(map(_inodes, self._confined.memory_folders))
        breach = disk_breach(self._folders, self._limits.output_bytes, entries)
        # The more there is to count, the more seldom.
        self._next_disk_look = time.monotonic() + max(
            _DISK_INTERVAL_S, 10 * (time.monotonic() - now)
        )
        return breach


def disk_breach(folders: Sequence[Path], most_bytes: int, more_entries: int = 0) -> Breach | None:
    """What the folders hold too much of, if anything; ``more_entries`` lie elsewhere."""
    entries, taken, depth = occupied(folders)
    if entries + more_entries > _MOST_ENTRIES:
        return Breach("disk", f"made more than {_MOST_ENTRIES} files")
    if depth > _DEEPEST:
        return Breach("disk", f"made more than {_DEEPEST} folders within each other")
    if taken > most_bytes:
        return Breach("disk", f"filled more than {megabytes(most_bytes)} of disk")
    return None


def occupied(folders: Sequence[Path]) -> tuple[int, int, int]:
    """Entries below the folders, the disk space that they take (bytes), and their greatest depth.

    Links are not followed. Stops counting when there are too many, or they lie too deep.
    """
    entries = taken = deepest = 0
    waiting = [(str(folder), 1) for folder in folders]
    while waiting and entries <= _MOST_ENTRIES and deepest <= _DEEPEST:
        folder, depth = waiting.pop()
        # What no path reaches cannot be counted.
        deepest = max(deepest, depth if len(os.fsencode(folder)) < _LONGEST_PATH else _DEEPEST + 1)
        with suppress(OSError), os.scandir(folder) as listing:
            for entry in listing:
                entries += 1
                if entries > _MOST_ENTRIES:
                    break
                with suppress(OSError):
                    taken += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, depth + 1))
    return entries, taken, deepest


def _inodes(folder: Path) -> int:
    """How many files lie on a file system; files in memory take memory that nothing else counts."""
    with suppress(OSError):
        facts = os.statvfs(folder)
        return facts.f_files - facts.f_ffree
    return 0


def megabytes(size: int) -> str:
    """A size as people write it."""
    return f"{size / 1024**2:,.0f} MiB"
