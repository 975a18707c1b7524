"""The weaker mode: limits and a session of its own, but this machine's files and network.

For machines without namespaces, chosen by name. A script can read what this account can read.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from geostudio_dagster.processors.processes import descendants
from geostudio_dagster.processors.sandbox import Confined, Room, Shown
from geostudio_dagster.settings import ScriptLimits

_MARK = "GEOSTUDIO_RUN"


def bounds(limits: ScriptLimits, *, processes: bool) -> list[str]:
    """Arguments of prlimit; the number of processes only where the user runs nothing else."""
    cpu = max(int(limits.cpu_s), 1)
    arguments = [
        f"--cpu={cpu}:{cpu + 1}",
        f"--data={limits.memory_bytes}",
        f"--fsize={limits.file_bytes}",
        f"--nofile={limits.open_files}",
        "--core=0",
        "--msgqueue=0",
    ]
    return [*arguments, f"--nproc={limits.processes}"] if processes else arguments


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
        tool = shutil.which("prlimit", path="/usr/bin:/bin:/usr/sbin:/sbin") or "prlimit"
        process = subprocess.Popen(
            [tool, *bounds(limits, processes=False), *command],
            env={**environment, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=room.work,
            start_new_session=True,
        )
        return _Session(process, f"{_MARK}={mark}".encode())


class _Session:
    """A program and what can be found of its processes: descendants, and those with its mark."""

    def __init__(self, process: subprocess.Popen[bytes], mark: bytes) -> None:
        self._process = process
        self._mark = mark

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._process

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
