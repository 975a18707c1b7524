"""``geostudio-dagster dev`` as a user starts and stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from geostudio_dagster_tests.dagster_side.patience import PATIENCE_S, get, until
from geostudio_dagster_tests.ports import port_for_a_process

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]


def test_dev_says_what_is_where_and_ctrl_c_stops_everything(tmp_path: Path) -> None:
    ports = {
        "--webserver-port": str(port_for_a_process()),
        "--gateway-port": str(port_for_a_process()),
    }
    command = [sys.executable, "-m", "geostudio_dagster", "dev"]
    dev = subprocess.Popen(
        [*command, *(part for option in ports.items() for part in option)],
        cwd=ROOT,
        env={**os.environ, "GEOSTUDIO_DATA_FOLDER": str(tmp_path / "data"), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert dev.stdout is not None
    said = ""
    while not said.endswith("Ctrl-C stops all of them.\n"):
        line = dev.stdout.readline()
        assert line, f"it ended by itself: {said}"
        said += line
    for port in ports.values():
        assert f"http://127.0.0.1:{port}" in said
        assert get(f"http://127.0.0.1:{port}/").status_code < 500
    second = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "GEOSTUDIO_DATA_FOLDER": str(tmp_path / "data"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "Another daemon works on" in second.stderr

    dev.send_signal(signal.SIGINT)
    assert dev.wait(PATIENCE_S) == 0
    for port in ports.values():
        with pytest.raises(httpx.ConnectError):
            get(f"http://127.0.0.1:{port}/")
    mine = str(tmp_path / "data").encode()
    assert [pid for pid in processes() if mine in environment(pid)] == []


def test_sigterm_stops_everything_while_it_still_starts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ports = ("--webserver-port", str(port_for_a_process()), "--gateway-port")
    dev = subprocess.Popen(
        [sys.executable, "-m", "geostudio_dagster", "dev", *ports, str(port_for_a_process())],
        cwd=ROOT,
        env={**os.environ, "GEOSTUDIO_DATA_FOLDER": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    said = data / "logs" / "webserver.log"  # the first to start, and long before it answers
    until(lambda: said.exists() and said.stat().st_size > 0, "the webserver says its first word")
    dev.terminate()
    assert dev.wait(PATIENCE_S) != 0
    assert [pid for pid in processes() if str(data).encode() in environment(pid)] == []


def processes() -> list[str]:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def environment(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "environ").read_bytes()
    except OSError:
        return b""
