"""What is counted as a script's own: nothing of the machine's, however slowly a sandbox starts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from geostudio_dagster.processors.bubblewrap import _Namespaced
from geostudio_dagster.processors.sandbox import Room, Sandbox
from geostudio_dagster.settings import ScriptLimits
from geostudio_dagster_tests.processors.attacks.test_attacks import isolated_or_skip


@pytest.fixture
def sandbox() -> Sandbox:
    return isolated_or_skip()


def test_files_of_the_machine_are_not_counted_before_the_sandbox_stands() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        read, write = os.pipe()
        with os.fdopen(write, "w") as status:
            json.dump({"child-pid": process.pid}, status)
        confined = _Namespaced(process, os.fdopen(read, "rb", buffering=0))
        assert confined.memory_folders == []
        confined.kill()
        confined.finish()


def test_files_in_the_sandboxs_own_memory_are_counted(tmp_path: Path, sandbox: Sandbox) -> None:
    room = Room(*(tmp_path / name for name in ("probe.py", "input", "output", "work")))
    room.script.touch()
    room.input.touch()
    room.output.mkdir()
    room.work.mkdir()
    command = ["/bin/sh", "-c", "echo stands; exec sleep 600"]
    confined = sandbox.start(room, command, {}, ScriptLimits())
    try:
        assert confined.process.stdout is not None
        assert confined.process.stdout.readline() == b"stands\n"
        assert len(confined.memory_folders) == 2
    finally:
        confined.kill()
        confined.finish()
        confined.process.communicate()
