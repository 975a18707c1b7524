"""One run of one script on one raster: started, watched, ended, told."""

from __future__ import annotations

import os
import selectors
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geostudio_dagster.errors import Cancelled, TaskError, Unavailable
from geostudio_dagster.processors import contract as contracts
from geostudio_dagster.processors.contract import Contract, OptionKind
from geostudio_dagster.processors.log import BoundedLog
from geostudio_dagster.processors.printed import printed_json
from geostudio_dagster.processors.python import INTERPRETER, INTERPRETER_WITH_PATH
from geostudio_dagster.processors.sandbox import Confined, Room, Sandbox
from geostudio_dagster.processors.verdict import Ending, Reason, judged
from geostudio_dagster.processors.watch import Watch
from geostudio_dagster.settings import ScriptLimits

_CHUNK = 1 << 16
_DRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class ScriptJob:
    """What to run on what, and the folder (empty, of its own) that may be filled for it.

    Attributes:
        script: the file as it was registered.
        input: the raster that it reads; never changed.
        folder: where ``output`` and ``work`` are made; removing it is the caller's.
        packages: folder of what the script declared, if it did.
        threads: how many threads numpy and GDAL may use.
    """

    script: Path
    input: Path
    folder: Path
    contract: Contract
    parameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, OptionKind] = field(default_factory=dict)
    packages: Path | None = None
    threads: int = 2


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """How a run ended.

    Attributes:
        reason: ``ok``, or what ended it; ``reported`` is a ``status: error`` of its own.
        message: the sentence for its user, with the script's own last lines; empty when ok.
        exit_code: 128 + n for signal n.
        log: what it printed, bounded and safe to show.
        printed: the JSON object that it printed last, as metadata.
        output: the folder that it filled; nothing in it was checked yet.
        peak_memory: bytes, as seen while watching.
    """

    reason: Reason
    message: str
    exit_code: int
    seconds: float
    cpu_s: float
    peak_memory: int
    log: str
    printed: dict[str, Any]
    output: Path
    isolation: str

    def raise_if_failed(self) -> None:
        """Raise what the task's user reads.

        Raises:
            TaskError: the script failed; ``code`` is ``processor_`` and the reason.
        """
        if self.reason != "ok":
            raise TaskError(f"processor_{self.reason}", self.message)


def run_script(
    job: ScriptJob,
    limits: ScriptLimits,
    sandbox: Sandbox,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> ScriptResult:
    """Run a script to its end, or to its limits; no process of it lives afterwards.

    Raises:
        Unavailable: the sandbox could not be set up.
        Cancelled: ``cancelled`` became true meanwhile.
        InvalidRequest: the parameters cannot be passed.
    """
    room = _prepare(job)
    shown = sandbox.shown(room)
    output = shown.output
    if job.contract == "positional":
        output = f"{output}/{job.input.stem}_processed.tif"
    command = contracts.command_line(
        job.contract, shown.script, shown.input, output, job.parameters, options=job.options
    )
    variables = contracts.environment(shown.input, output, job.parameters)
    variables |= surroundings(shown.work, job.threads)
    interpreter: tuple[str, ...] = INTERPRETER
    if job.packages:
        interpreter = INTERPRETER_WITH_PATH
        variables["PYTHONPATH"] = shown.extra[0]
    started = time.monotonic()
    ending = supervised(
        room, [*interpreter, *command], variables, limits, sandbox, cancelled=cancelled
    )
    return _told(ending, room, limits, sandbox.name, time.monotonic() - started)


def supervised(
    room: Room,
    command: Sequence[str],
    variables: Mapping[str, str],
    limits: ScriptLimits,
    sandbox: Sandbox,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Ending:
    """Run a command of the room's paths until it ends; what it came to.

    Raises:
        Unavailable: the sandbox could not be set up.
        Cancelled: ``cancelled`` became true meanwhile.
    """
    confined = sandbox.start(room, command, variables, limits)
    ending = _supervise(confined, room, limits, cancelled)
    if ending.exit_code is None:
        said = ending.errors.text().strip().splitlines() or ["it says nothing"]
        raise Unavailable(f"The sandbox for users' scripts could not be set up: {said[-1]}.")
    return ending


def _prepare(job: ScriptJob) -> Room:
    folder = job.folder
    output, work, scripts = folder / "output", folder / "work", folder / "script"
    for place in (output, work, scripts):
        place.mkdir(parents=True)
    script = scripts / job.script.name
    shutil.copyfile(job.script, script)
    script.chmod(0o444)
    source = open_to_all(job.input, folder)
    return Room(script, source, output, work, (job.packages,) if job.packages else ())


def open_to_all(path: Path, folder: Path) -> Path:
    """``path``, or a copy in ``folder`` where the user that root becomes could not read it."""
    source = path.resolve()
    if os.geteuid() != 0 or source.stat().st_mode & stat.S_IROTH:
        return source
    copy = folder / "input" / path.name
    copy.parent.mkdir()
    shutil.copyfile(source, copy)
    copy.chmod(0o444)
    return copy


def surroundings(work: str, threads: int) -> dict[str, str]:
    """What programs expect of any environment; nothing of this process's own."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": work,
        "TMPDIR": work,
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "GDAL_NUM_THREADS": str(threads),
    }


def _supervise(
    confined: Confined, room: Room, limits: ScriptLimits, cancelled: Callable[[], bool]
) -> Ending:
    """Read what it prints and watch what it uses until it ends; then nothing of it lives."""
    watch = Watch(confined, (room.output, room.work), limits)
    log, printed, errors = (BoundedLog(limits.log_bytes) for _ in range(3))
    ending = Ending(log, printed, errors, watch)
    with confined.process, selectors.DefaultSelector() as selector:
        _register(selector, confined.process, ending)
        handle = os.pidfd_open(confined.process.pid)
        selector.register(handle, selectors.EVENT_READ)
        try:
            while not _read(selector, watch.interval):
                ending.breach = watch.look()
                if ending.breach:
                    break
                if cancelled():
                    raise Cancelled("The processor was stopped on request.")
        finally:
            selector.unregister(handle)
            os.close(handle)
            if ending.breach or sys.exc_info()[0]:
                confined.kill()
            ending.exit_code = confined.finish()
        _drain(selector)
    return ending


def _register(
    selector: selectors.BaseSelector, process: subprocess.Popen[bytes], ending: Ending
) -> None:
    for stream, own in ((process.stdout, ending.printed), (process.stderr, ending.errors)):
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, (ending.log, own))


def _read(selector: selectors.BaseSelector, timeout: float) -> bool:
    """Take what was printed; whether the process has ended."""
    ended = False
    for key, _ in selector.select(timeout):
        if key.data is None:
            ended = True
            continue
        chunk = _chunk(key.fd)
        for log in key.data:
            log.add(chunk)
        if not chunk:
            selector.unregister(key.fileobj)
    return ended


def _chunk(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return b""


def _drain(selector: selectors.BaseSelector) -> None:
    """Take what is still in the pipes; not longer than for a moment, whoever holds them."""
    deadline = time.monotonic() + _DRAIN_S
    while selector.get_map() and time.monotonic() < deadline:
        if not selector.select(0.05):
            break
        _read(selector, 0)


def _told(ending: Ending, room: Room, limits: ScriptLimits, name: str, s: float) -> ScriptResult:
    printed = printed_json(ending.printed.text())
    reason, message = judged(ending, printed, limits)
    return ScriptResult(
        reason=reason,
        message=message,
        exit_code=ending.exit_code or 0,
        seconds=s,
        cpu_s=ending.watch.cpu_s,
        peak_memory=ending.watch.peak_memory,
        log=ending.log.text(),
        printed=printed,
        output=room.output,
        isolation=name,
    )
