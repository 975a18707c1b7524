"""Ten seconds after a cancellation nothing runs any more: by what waits there are, not by luck."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from dagster._grpc.server import CLEANUP_TICK

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.defs.sensors import TICK_S
from geostudio_dagster.gateway import launching
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.cancelling import EXIT_CODE, GRACE_S, LOOK_S
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import submit

MOST_S = 10


def test_the_waits_after_a_cancellation_add_up_to_less_than_ten_seconds() -> None:
    """What is longest: a run that does not end by itself, and Dagster does not reach."""
    dead = LOOK_S + GRACE_S
    seen = dead + CLEANUP_TICK  # the code server looks after its runs' processes
    # The gateway watches until the run is over, and the sensors do where it is not there.
    assert seen + launching._POLL_S < launching._STOPPED_WITHIN_S <= MOST_S
    assert seen + TICK_S < MOST_S


@pytest.fixture
def request_id(installation: Installation, model: ModelRecord, make_scene: MakeScene) -> str:
    return submit(installation, [make_scene("s.tif", size=64)], model)


def started(request_id: str, kind: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "geostudio_dagster_tests.pipeline.stuck", request_id, kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_what_native_code_holds_up_is_ended_all_the_same(
    installation: Installation, request_id: str
) -> None:
    with started(request_id, "native") as process:
        process.send_signal(signal.SIGINT)  # as Dagster does
        process.send_signal(signal.SIGTERM)
        installation.catalog.cancel(request_id)
        _, said = process.communicate()
    assert process.returncode == EXIT_CODE
    assert b"did not end by itself" in said


def test_what_ends_by_itself_is_left_to(installation: Installation, request_id: str) -> None:
    with started(request_id, "polite") as process:
        installation.catalog.cancel(request_id)
        _, said = process.communicate()
    assert (process.returncode, said) == (0, b"")
