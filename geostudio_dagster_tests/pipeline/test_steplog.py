"""What a task's user reads of its steps: while they run, after retries, and without secrets."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from geostudio_dagster.catalog import ModelRecord, TaskRecord
from geostudio_dagster.catalog.states import CONNECTOR, PREDICTION
from geostudio_dagster.errors import TaskError
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import steplog
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.pipeline.predicting import predict_task
from geostudio_dagster.pipeline.scenes import bring_scene
from geostudio_dagster.pipeline.stage import StepOutput, WorkContext, run_stage
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.storage import LocalStorage
from geostudio_dagster_tests.conftest import MakeScene

log = logging.getLogger("geostudio_dagster.tests")


@pytest.fixture
def shard(installation: Installation, model: ModelRecord, make_scene: MakeScene) -> str:
    """A planned shard of two tasks."""
    urls = [str(make_scene(f"s{n}.tif", size=64, seed=n)) for n in (1, 2)]
    document = {"model": model.name, "spatial_domain": {"urls": urls}}
    request = admit(document, installation.catalog, installation.settings, owner="tests")
    plan_request(installation, request.id)
    return installation.catalog.shards(request.id)[0].key


def text_of(installation: Installation, task_id: str, process_id: str) -> str:
    request_id = task_id.rpartition("-task_")[0]
    key = steplog.step_log_key(request_id, task_id, process_id)
    return installation.storage.read_bytes(key).decode()


def test_each_task_has_its_own_log_while_its_step_runs(
    installation: Installation, shard: str
) -> None:
    both = threading.Barrier(2, timeout=120)

    def work(task: TaskRecord, _: WorkContext) -> StepOutput:
        log.info("looking at %s", task.id)
        both.wait()
        here = text_of(installation, task.id, CONNECTOR)
        assert here.startswith("===== url-connector, attempt 1, run one, ")
        assert here.rstrip().endswith(f"looking at {task.id}")
        return StepOutput()

    report = run_stage(installation, shard, "one", CONNECTOR, work, workers=2)
    assert report.count("finished") == 2, report
    for task in installation.catalog.shard_tasks(shard):
        lines = text_of(installation, task.id, CONNECTOR).splitlines()
        assert [line.split("Z ", 1)[-1] for line in lines[1:]] == [
            f"looking at {task.id}",
            "finished: nothing to keep",
        ]


def test_another_attempt_is_appended_and_tells_why_there_is_one(
    installation: Installation, shard: str
) -> None:
    fail = [True]

    def work(_: TaskRecord, __: WorkContext) -> StepOutput:
        if fail[0]:
            raise TaskError("unreachable", "The server sleeps.", retryable=True)
        return StepOutput()

    run_stage(installation, shard, "one", CONNECTOR, work)
    fail[0] = False
    run_stage(installation, shard, "two", CONNECTOR, work)
    task = installation.catalog.shard_tasks(shard)[0]
    first, failed, second, done = text_of(installation, task.id, CONNECTOR).splitlines()
    assert "attempt 1, run one" in first
    assert failed.endswith("failed, to be tried again: The server sleeps.")
    assert "attempt 2, run two" in second
    assert done.endswith("finished: nothing to keep")


def test_the_real_steps_say_what_they_do(installation: Installation, shard: str) -> None:
    run_stage(installation, shard, "one", CONNECTOR, bring_scene)
    run_stage(installation, shard, "one", PREDICTION, predict_task)
    task = installation.catalog.shard_tasks(shard)[0]
    scene = text_of(installation, task.id, CONNECTOR)
    assert "64 x 64 pixels, uint16, bands B02, B03, B04, B08, EPSG:32633" in scene
    prediction = text_of(installation, task.id, PREDICTION)
    assert "model demo-land-cover by torch on cpu" in prediction
    assert "predicted 100 %" in prediction
    assert "finished: prediction (" in prediction
    planning = steplog.step_log_key(
        task.request_id, f"{task.request_id}-task_planning", "inference-planner"
    )
    assert b"planned: 2 tasks in 1 shards" in installation.storage.read_bytes(planning)


SECRETS = (
    "GET https://me:hunter22@bucket.example/a.tif?X-Amz-Signature=0123456789abcdef (200).",
    "header X-API-Key: pak-abcdefghijklmnopqrstuvwxyz012345",
    "Authorization: Bearer eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl",
    "postgresql+psycopg2://user:hunter22@db/catalog is busy",
    'config {"password": "hunter22", "api_key": "hunter22hunter"}',
    "--token=hunter22 --size=4",
)


@pytest.mark.parametrize("said", SECRETS)
def test_secrets_do_not_reach_the_log(tmp_path: Path, said: str) -> None:
    storage = LocalStorage(tmp_path / "storage")
    with steplog.recording(storage, "r/t/t-s-stdout.log", "s, attempt 1"):
        log.info("%s", said)
        steplog.write(said)
    kept = storage.read_bytes("r/t/t-s-stdout.log").decode()
    assert "***" in kept or "example/a.tif (200)." in kept or "//db/catalog is busy" in kept
    for secret in ("hunter22", "0123456789abcdef", "mnopqrstuv", "eyJzdWIi"):
        assert secret not in kept


def test_what_a_process_printed_cannot_fake_lines_or_drive_a_terminal(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    with steplog.recording(storage, "r/t/t-s-stdout.log", "s, attempt 1"):
        steplog.write("a\x1b[31mred\x1b[0m\x07\nb\x00")
        log.warning("one\ntwo")
    lines = storage.read_bytes("r/t/t-s-stdout.log").decode().splitlines()
    assert lines[1:3] == ["ared?", "b?"]
    assert lines[3].endswith("Z WARNING: one")
    assert lines[4] == "    two"


def test_a_log_is_bounded_and_keeps_its_last_word(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    key = "r/t/t-s-stdout.log"
    for attempt in range(6):
        with steplog.recording(storage, key, f"s, attempt {attempt}"):
            for _ in range(400):
                steplog.write("x" * 2000)
            steplog.write("y" * 100_000)
            log.warning("the end of %d", attempt)
    data = storage.read_bytes(key)
    assert len(data) < steplog.MAX_BYTES + 20_000
    text = data.decode()
    assert text.startswith("[... the beginning of this log was dropped]\n")
    assert "this attempt's log is full" in text
    assert text.rstrip().endswith("the end of 5")
    assert max(map(len, text.splitlines())) < 5000


def test_logs_of_concurrent_tasks_do_not_mix(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")

    def work(number: int) -> None:
        with steplog.recording(storage, f"r/t{number}/log.log", "s"):
            for _ in range(50):
                log.info("task %d", number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    for number in range(16):
        lines = storage.read_bytes(f"r/t{number}/log.log").decode().splitlines()[1:]
        assert len(lines) == 50
        assert {line.split("Z ", 1)[1] for line in lines} == {f"task {number}"}


def test_a_log_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    storage.root.mkdir()
    (storage.root / "r").write_bytes(b"a file where a folder should be")
    with steplog.recording(storage, "r/t/log.log", "s"):
        log.info("unheard")


def test_outside_of_a_step_nothing_is_written_and_operators_still_see_warnings(
    tmp_path: Path,
) -> None:
    code = f"""
import logging
from pathlib import Path
from geostudio_dagster.pipeline import steplog
from geostudio_dagster.storage import LocalStorage
steplog.write("nowhere")
with steplog.recording(LocalStorage(Path({str(tmp_path)!r})), "r/log.log", "s"):
    logging.getLogger("geostudio_dagster.x").warning("inside")
logging.getLogger("geostudio_dagster.x").warning("outside")
logging.getLogger("geostudio_dagster.x").info("quiet")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["inside", "outside"]
    assert "outside" not in (tmp_path / "r" / "log.log").read_text()
