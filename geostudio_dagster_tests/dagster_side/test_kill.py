"""kill -9 at any moment loses nothing: the files end up as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.settings import Settings, ShardSettings
from geostudio_dagster.storage import sha256_of
from geostudio_dagster_tests.conftest import write_scene

KILLS = 10
PATIENCE_S = 600  # with a busy machine
ROUNDS = 5
LEASE_S = 0.5


class Place:
    """An installation on which worker processes come and go."""

    def __init__(self, folder: Path, scenes: Path) -> None:
        self.folder = folder
        self.settings = Settings(
            data_folder=folder / "data",
            allowed_roots=(scenes,),
            shards=ShardSettings(
                lease_s=LEASE_S, start_grace_s=2 * LEASE_S, retry_delay_s=0, max_crashes=KILLS
            ),
        )
        self.environment = {
            **os.environ,
            "GEOSTUDIO_DATA_FOLDER": str(folder / "data"),
            "GEOSTUDIO_ALLOWED_ROOTS": f'["{scenes}"]',
            "GEOSTUDIO_SHARDS__LEASE_S": str(LEASE_S),
            "GEOSTUDIO_SHARDS__START_GRACE_S": str(2 * LEASE_S),
            "GEOSTUDIO_SHARDS__RETRY_DELAY_S": "0",
            "GEOSTUDIO_SHARDS__MAX_CRASHES": str(KILLS),  # whichever task they hit
        }

    def submit(self, document: dict[str, object], bundle: Path) -> None:
        with Installation.open(self.settings) as installation:
            register_bundle(installation, bundle, owner="tests")
            admit(document, installation.catalog, self.settings, owner="tests")

    def start(self, request: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "geostudio_dagster_tests.dagster_side.worker"]
        worker = subprocess.Popen(
            [*command, request, str(self.folder / "dagster")],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "worker.log").open("a"),
            text=True,
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker

    def files(self) -> dict[str, str]:
        root = self.settings.storage_root
        return {
            str(path.relative_to(root)): sha256_of(path)
            for path in sorted(root.rglob("*"))
            # Logs name runs and times, which differ.
            if path.is_file() and path.suffix != ".log"
        }

    def leftovers(self) -> list[Path]:
        scratch = self.settings.data_folder / "scratch"
        return [path for path in scratch.rglob("*") if path.is_file()]


@pytest.mark.live
@pytest.mark.timeout(1800)
def test_ten_kills_change_no_byte(
    tmp_path: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = tmp_path / "scenes"
    urls = [
        str(write_scene(scenes, f"s{n}_2024-07-0{n + 1}.tif", size=600, seed=n)) for n in range(2)
    ]
    request = str(uuid4())
    document = {
        "id": request,
        "model": "demo-land-cover",
        "spatial_domain": {"urls": urls},
        "shard_size": 4,
        "task_size": 512,
    }

    calm = Place(tmp_path / "calm", scenes)
    calm.submit(document, bundle_folder)
    worker = calm.start(request)
    began = time.monotonic()
    assert worker.wait(PATIENCE_S) == 0
    duration = time.monotonic() - began

    # A round ends early where its work is over before it could be disturbed as often.
    killed, chance = 0, random.Random(20241120)
    for round_ in range(ROUNDS):
        troubled = Place(tmp_path / f"troubled-{round_}", scenes)
        troubled.submit(document, bundle_folder)
        longest = 2 * LEASE_S + duration / 4
        killed += disturbed(troubled, request, KILLS - killed, longest, chance)
        assert_like(calm, troubled, request)
        if killed == KILLS:
            return
    pytest.fail(f"the work of {ROUNDS} rounds was over after {killed} kills")


def disturbed(place: Place, request: str, kills: int, longest: float, chance: random.Random) -> int:
    """Kill the request's work at random moments, then let it end; how many kills hit it."""
    killed = 0
    for _ in range(kills):
        worker = place.start(request)
        # What a dead run holds is free after two leases; from then on there is work to hit.
        try:
            worker.wait(chance.uniform(0.0, longest))
            break
        except subprocess.TimeoutExpired:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            killed += 1
    worker = place.start(request)
    try:
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()
    return killed


def assert_like(calm: Place, troubled: Place, request: str) -> None:
    assert troubled.files() == calm.files()
    assert troubled.leftovers() == []
    with Installation.open(troubled.settings) as installation:
        record = installation.catalog.request(request)
        summary = installation.catalog.summary(request)
        assert record.status == "COMPLETED"
        assert summary.tasks_by_status["FINISHED"] == record.n_tasks
        assert summary.shards_by_status["SETTLED"] == record.n_tasks // 4
        for task in installation.catalog.tasks(request, limit=100):
            for artifact in installation.catalog.artifacts(task.id):
                path = installation.path_of(artifact)
                assert artifact.sha256 is None or sha256_of(path) == artifact.sha256
