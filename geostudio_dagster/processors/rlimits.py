"""The weaker mode: limits and a session of its own, but this machine's files and network.

For machines without namespaces, chosen by name. A script can read what this account can read;
what root started becomes another user where that user can reach the interpreter and the room.
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from geostudio_dagster.processors.processes import descendants
from geostudio_dagster.processors.sandbox import Confined, Room, Shown
from geostudio_dagster.settings import ScriptLimits

_MARK = "GEOSTUDIO_RUN"


_FIRST_USER = 1_900_000_000
_runs = itertools.count(os.getpid() * 1000)


def tool(name: str) -> str:
    """A program of the system, never one of whoever set PATH."""
    return shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin") or name


def bounds(limits: ScriptLimits, processes: int | None) -> list[str]:
    """The command that sets the limits; ``processes`` is how many its user may have in all."""
    cpu = max(int(limits.cpu_s), 1)
    command = [
        tool("prlimit"),
        bound("cpu", cpu, cpu + 1),
        bound("data", limits.memory_bytes),
        bound("fsize", limits.file_bytes),
        bound("nofile", limits.open_files),
        no_core(),
        bound("msgqueue", 0),
    ]
    return command if processes is None else [*command, bound("nproc", processes)]


def bound(name: str, soft: int, hard: int | None = None) -> str:
    """An option of prlimit; never above the hard limit of this process, which few may raise."""
    most = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    if most == resource.RLIM_INFINITY:
        most = sys.maxsize
    return f"--{name}={min(soft, most)}:{min(soft if hard is None else hard, most)}"


def no_core() -> str:
    """An option of prlimit: 0 would not hold for a program that the system pipes cores to."""
    return bound("core", 1)


def another_user(folders: Sequence[Path]) -> list[str]:
    """The command by which root becomes a user whom nothing but ``folders`` belongs to."""
    user = _FIRST_USER + next(_runs) % 100_000_000
    for folder in folders:
        os.chown(folder, user, user)
    names = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [tool("setpriv"), *names, "--inh-caps=-all", "--no-new-privs"]


@dataclass(frozen=True, slots=True)
class RlimitSandbox:
    """Runs programs with limits only."""

    name: str = "rlimits"

    def shown(self, room: Room) -> Shown:
        """The true paths."""
        places = (room.script, room.input, room.output, room.work)
        script, given, output, work = map(str, places)
        return Shown(script, given, output, work, tuple(map(str, room.extra)))

    def start(
        self,
        room: Room,
        command: Sequence[str],
        environment: Mapping[str, str],
        limits: ScriptLimits,
    ) -> Confined:
        """Start ``command`` in a session of its own."""
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [*_confining(room, Path(command[0]), limits), *command],
            env={**environment, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=room.work,
            start_new_session=True,
        )
        return _Session(process, f"{_MARK}={mark}".encode())


def _confining(room: Room, program: Path, limits: ScriptLimits) -> list[str]:
    """Linux counts the processes of a user, whatever else runs for that user, and never root's."""
    if os.geteuid() != 0:
        return bounds(limits, limits.processes + _threads_of_user())
    places = (program, program.resolve(), room.script, room.input, room.output, *room.extra)
    if not all(_is_open(folder) for place in places for folder in place.parents):
        return bounds(limits, None)
    return [*another_user((room.output, room.work)), *bounds(limits, limits.processes)]


def _is_open(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IXOTH)


def _threads_of_user() -> int:
    """Threads that this account has now."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if entry.stat().st_uid == os.geteuid():
                count += len(list((entry / "task").iterdir()))
    return count


class _Session:
    """A program and what can be found of its processes: descendants, and those with its mark."""

    def __init__(self, process: subprocess.Popen[bytes], mark: bytes) -> None:
        self._process = process
        self._mark = mark

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._process

    @property
    def memory_folders(self) -> Sequence[Path]:
        return ()

    def processes(self) -> list[int]:
        return descendants(self._process.pid)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in self._marked():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def finish(self) -> int | None:
        code = self._process.wait()
        self.kill()
        return code if code >= 0 else 128 - code

    def _marked(self) -> list[int]:
        """Processes that left the session but kept the environment that they were born with."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found
