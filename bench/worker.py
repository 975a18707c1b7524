"""Processes that wait for their turn: set up once, then one measurement per line of input."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

_LOOK_S = 0.5
_QUIET = 0.3  # cores


class Worker:
    """The parent's side. A context manager; only one worker is asked at a time."""

    def __init__(self, kind, log: Path, patience: float = 0.0, **settings):
        command = [sys.executable, "-m", "bench.worker", kind, json.dumps(settings)]
        self._log, self._patience = log, patience
        self._errors = log.open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.set_up = self._answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(60)
        self._errors.close()

    def ask(self, method, *arguments):
        """Run a method of the contender; seconds, CPU seconds, others' load and what it returns."""
        _await_quiet(self._patience)
        before, began = busy_seconds(), time.perf_counter()
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        wall = time.perf_counter() - began
        answer["others"] = max(0.0, busy_seconds() - before - answer["cpu"]) / wall
        return answer

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text()[-2000:]
            raise RuntimeError(f"a worker died:\n{tail}")
        return json.loads(line)


def _await_quiet(patience):
    """Wait until hardly anything else runs on this machine, for ``patience`` seconds at most."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(_LOOK_S)
        if busy_seconds() - before < _QUIET * _LOOK_S:
            return


def cpu_seconds():
    """CPU seconds of this process and of the children that it waited for."""
    return sum(os.times()[:4])


def busy_seconds():
    """CPU seconds that all processes of this machine have used so far; 0 where unknown."""
    with contextlib.suppress(OSError):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        ticks = [int(field) for field in fields]
        return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _serve(kind, settings):
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from bench.contenders import KINDS

    began, cpu = time.perf_counter(), cpu_seconds()
    contender = KINDS[kind](**settings)
    _send(answers, {"wall": time.perf_counter() - began, "cpu": cpu_seconds() - cpu})
    for line in sys.stdin:
        method, arguments = json.loads(line)
        began, cpu = time.perf_counter(), cpu_seconds()
        result = getattr(contender, method)(*arguments)
        _send(
            answers,
            {
                "wall": time.perf_counter() - began,
                "cpu": cpu_seconds() - cpu,
                "result": result,
            },
        )


def _send(answers, document):
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
