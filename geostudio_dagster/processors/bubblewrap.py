"""Isolation by bubblewrap: its own namespaces, a root of its own, no network, no privileges.

An unprivileged account gets a user namespace. Root does not need one, and must not stay root:
Linux counts the processes of a user, and never root's. So the script becomes a user that nothing
on this machine belongs to, another for every run.
"""

from __future__ import annotations

import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from geostudio_dagster.processors.processes import descendants
from geostudio_dagster.processors.python import python_folders, system_folders
from geostudio_dagster.processors.rlimits import another_user, bounds
from geostudio_dagster.processors.sandbox import Confined, Room, Sandbox, Shown
from geostudio_dagster.processors.seccomp import filter_program
from geostudio_dagster.settings import ScriptLimits

# Enough for the dynamic loader and local time; nothing that names people or holds secrets.
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime")
_NOBODY = "65534"
_IN_MEMORY = ("/dev/shm", "/tmp")  # noqa: S108 - its own, and bounded


@dataclass(frozen=True, slots=True)
class BubblewrapSandbox:
    """Runs programs in namespaces; ``user_namespace`` is how it does without being root."""

    program: str
    user_namespace: bool
    hidden: tuple[Path, ...] = ()
    name: str = "bubblewrap"

    def shown(self, room: Room) -> Shown:
        """Fixed paths below /job, whatever they are on this machine."""
        return Shown(
            f"/job/script/{room.script.name}",
            f"/job/input/{room.input.name}",
            "/job/output",
            "/job/work",
            tuple(f"/job/extra/{place}/{path.name}" for place, path in enumerate(room.extra)),
        )

    def start(
        self,
        room: Room,
        command: Sequence[str],
        environment: Mapping[str, str],
        limits: ScriptLimits,
    ) -> Confined:
        """Start ``command`` in namespaces of its own."""
        become = [] if self.user_namespace else another_user((room.output, room.work))
        inner = [*become, *bounds(limits, limits.processes), *command]
        with ExitStack() as stack:
            status_read, status_write = os.pipe()
            stack.callback(os.close, status_write)
            passed = [status_write]
            arguments = [*self._arguments(room, limits), "--json-status-fd", str(status_write)]
            if program := filter_program():
                descriptor = _readable(program)
                stack.callback(os.close, descriptor)
                passed.append(descriptor)
                arguments += ["--seccomp", str(descriptor)]
            process = subprocess.Popen(
                [self.program, *arguments, "--", *inner],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
            )
        return _Namespaced(process, os.fdopen(status_read, "rb", buffering=0))

    def _arguments(self, room: Room, limits: ScriptLimits) -> Iterator[str]:
        yield from ("--die-with-parent", "--new-session", "--unshare-ipc", "--unshare-pid")
        yield from ("--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
        yield from ("--hostname", "processor", "--cap-drop", "ALL")
        if self.user_namespace:
            yield from ("--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY)
        else:
            yield from ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
        # Below /proc/sys the files belong to root, as which the namespace may run outside.
        yield from ("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev")
        for place in _IN_MEMORY:
            yield from ("--perms", "1777", "--size", str(limits.temporary_bytes), "--tmpfs", place)
        yield from ("--remount-ro", "/dev")
        yield from self._system()  # behind those, for the interpreter may itself lie below /tmp
        yield from self._job(room)
        yield from ("--remount-ro", "/", "--chdir", "/job/work")

    def _system(self) -> Iterator[str]:
        for folder in system_folders():
            if folder.is_symlink():
                yield from ("--symlink", str(folder.readlink()), str(folder))
            else:
                yield from ("--ro-bind", str(folder), str(folder))
        yield from _folder("/etc")
        for name in _ETC:
            yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
        seen = python_folders()
        # Otherwise bubblewrap makes them as closed as they are outside, such as /root.
        parents = {str(parent) for folder in seen for parent in folder.parents}
        parents -= {"/", *_IN_MEMORY}
        for parent in sorted(parents):
            yield from _folder(parent)
        for folder in seen:
            yield from ("--ro-bind", str(folder), str(folder))
        for folder in self.hidden:
            if any(folder.is_relative_to(other) for other in (*seen, *system_folders())):
                yield from ("--perms", "0000", "--size", "4096", "--tmpfs", str(folder))

    def _job(self, room: Room) -> Iterator[str]:
        shown = self.shown(room)
        for folder in ("/job", "/job/script", "/job/input", "/job/extra"):
            yield from _folder(folder)
        yield from ("--ro-bind", str(room.script), shown.script)
        yield from ("--ro-bind", str(room.input), shown.input)
        for outside, inside in zip(room.extra, shown.extra, strict=True):
            yield from _folder(str(PurePosixPath(inside).parent))
            yield from ("--ro-bind", str(outside), inside)
        yield from ("--bind", str(room.output), shown.output)
        yield from ("--bind", str(room.work), shown.work)


def _folder(path: str) -> tuple[str, ...]:
    return ("--perms", "0755", "--dir", str(PurePosixPath(path)))


def _readable(data: bytes) -> int:
    """A descriptor that yields ``data``, which is smaller than a pipe."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


class _Namespaced:
    """A program whose processes are exactly those of one process namespace."""

    def __init__(self, process: subprocess.Popen[bytes], status: IO[bytes]) -> None:
        self.process = process
        self._status = status
        self._root, self._handle = self._await_root()

    def _await_root(self) -> tuple[int | None, int | None]:
        line = self._status.readline()
        if not line:
            return None, None  # set-up failed
        root = int(json.loads(line)["child-pid"])
        with suppress(ProcessLookupError):
            return root, os.pidfd_open(root)
        return root, None

    @property
    def memory_folders(self) -> Sequence[Path]:
        # Until bubblewrap has made them, these are this machine's, with all that lies there.
        folders = {place: Path(f"/proc/{self._root}/root{place}") for place in _IN_MEMORY}
        return [folder for place, folder in folders.items() if _lie_apart(folder, Path(place))]

    def processes(self) -> list[int]:
        return [] if self._root is None else descendants(self._root)

    def kill(self) -> None:
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self.process.kill()

    def finish(self) -> int | None:
        # Not from the status pipe: a script in a user namespace may reach that one's other end.
        code = self.process.wait()
        self.kill()
        if self._handle is not None:
            # The namespace's first process ends when all others in it have ended.
            _wait_readable(self._handle)
            os.close(self._handle)
            self._handle = None
        self._status.close()
        if self._root is None:
            return None
        return code if code >= 0 else 128 - code


def _lie_apart(folder: Path, other: Path) -> bool:
    """Whether a folder is there, and not on the file system that another one is on."""
    try:
        device = folder.stat().st_dev
    except OSError:
        return False
    return not other.exists() or device != other.stat().st_dev


def _wait_readable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()


@functools.lru_cache
def working_bubblewrap(hidden: tuple[Path, ...] = ()) -> Sandbox | str:
    """A sandbox that was seen to work here, tried once; else the reason why there is none."""
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap (bwrap) is not installed"
    # Root in a user namespace would still be root to every file that it can see.
    sandbox = BubblewrapSandbox(program, os.geteuid() != 0, hidden)
    return _failure(sandbox) or sandbox


def _failure(sandbox: Sandbox) -> str:
    """What goes wrong when the sandbox starts the interpreter; nothing if it works."""
    with tempfile.TemporaryDirectory(prefix="geostudio-probe-") as name:
        folder = Path(name)
        room = Room(folder / "probe.py", folder / "input", folder / "output", folder / "work")
        room.script.write_text("import os; print(os.getuid(), os.listdir('/job/work'))")
        room.input.touch()
        room.output.mkdir()
        room.work.mkdir()
        command = [sys.executable, "-I", "-S", sandbox.shown(room).script]
        try:
            confined = sandbox.start(room, command, {}, ScriptLimits())
        except OSError as error:
            return str(error)
        with confined.process:
            out, error_text = confined.process.communicate()
            code = confined.finish()
        if code == 0 and out.strip() and not out.startswith(b"0 "):
            return ""
        said = error_text.decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"the sandbox ended with exit code {code}"
