"""Processes of an installation: however their parent ends, none is left that nobody knows of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geostudio_dagster import services
from geostudio_dagster.services import Service
from geostudio_dagster.settings import Settings

# Starts a stand-in for the daemon as `dev` and `demo` start theirs, and tells its process id.
_PARENT = """
import dataclasses, sys, time
from pathlib import Path
from geostudio_dagster import services
from geostudio_dagster.settings import Settings

settings = Settings(data_folder=Path(sys.argv[1]))
with services.sole_daemon(settings, Path("workspace.yaml")) as daemon:
    idle = dataclasses.replace(daemon, arguments=("-c", "import time; time.sleep(600)"))
    with services.running([idle], settings, settings.data_folder) as processes:
        print(processes["daemon"].pid, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return Settings(data_folder=tmp_path)


def started(place: Settings) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-c", _PARENT, str(place.data_folder)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_sigterm_ends_what_was_started(place: Settings) -> None:
    parent, daemon = started(place)
    parent.terminate()
    parent.communicate(timeout=60)
    assert not is_there(daemon)


def test_a_daemon_whose_parent_was_killed_is_still_the_only_one(place: Settings) -> None:
    parent, daemon = started(place)
    parent.kill()
    parent.communicate(timeout=60)
    try:
        with services.sole_daemon(place, Path("workspace.yaml")) as second:
            assert second is None
    finally:
        descriptor = os.pidfd_open(daemon)
        os.kill(daemon, signal.SIGKILL)
    _wait_until_over(descriptor)
    with services.sole_daemon(place, Path("workspace.yaml")) as third:
        assert isinstance(third, Service)


def _wait_until_over(descriptor: int) -> None:
    import select

    assert select.select([descriptor], [], [], 60)[0]
    os.close(descriptor)
