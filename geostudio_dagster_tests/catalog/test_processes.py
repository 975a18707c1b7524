"""Several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.catalog.states import CONNECTOR, PUSH
from geostudio_dagster_tests.catalog.driving import LATER, STAGES, Driver

Worker = subprocess.Popen[str]


@contextmanager
def workers(*commands: list[str]) -> Iterator[list[Worker]]:
    """Start a process each and let all of them go at the same moment."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "geostudio_dagster_tests.catalog.worker", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def lines_of(process: Worker) -> list[str]:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return output.splitlines()


def test_two_runs_share_the_work_without_overlap(drive: Driver, url: str) -> None:
    r = drive.planned(12, 6)
    keys = [drive.key(r, n) for n in range(6)]
    with workers(*(["work", url, run, "600", *keys] for run in ("a", "b"))) as both:
        lines = [line for process in both for line in lines_of(process)]
    expected = {f"finished {r}-task_{n} {stage}" for n in range(12) for stage in STAGES}
    assert set(lines) <= expected
    assert max(Counter(lines).values()) == 1
    # A stage that one run had begun while the other looked for the next one may be left.
    for key in keys:
        for stage in STAGES:
            drive.work(key, stage, "rest")
        drive.catalog.settle_shard(key, "rest", LATER, 5)
    assert drive.statuses(r) == ["FFFr"] * 12
    assert drive.catalog.request(r).status == "PUBLISHING_RESULTS"


def test_runs_that_rob_each_other_finish_every_step_once(drive: Driver, url: str) -> None:
    r = drive.planned(6, 1)
    key = drive.key(r)
    # A lease of no length is free again at once.
    with workers(*(["work", url, run, "0", key] for run in ("a", "b"))) as both:
        lines = [line for process in both for line in lines_of(process)]
    finished = [line for line in lines if line.startswith("finished")]
    assert max(Counter(finished).values()) == 1
    done = {
        f"finished {task.id} {step.process_id}"
        for task in drive.catalog.tasks(r)
        for step in task.steps
        if step.status == "FINISHED"
    }
    assert done == set(finished)
    for task in drive.catalog.tasks(r):
        for step in task.steps:
            if step.status == "FINISHED":
                # The file is that of the run whose end was accepted.
                assert drive.catalog.artifact(task.id, step.process_id).key == step.run_id


def test_a_cancellation_meets_runs_that_finish(drive: Driver, url: str) -> None:
    r = drive.planned(12, 2)
    keys = [drive.key(r, n) for n in range(2)]
    with workers(["work", url, "a", "600", keys[0]], ["work", url, "b", "600", keys[1]]) as both:
        assert both[0].stdout is not None
        both[0].stdout.readline()
        drive.catalog.cancel(r)
        for process in both:
            lines_of(process)
    request = drive.catalog.request(r)
    assert request.status == "STOPPED"
    for task in drive.catalog.tasks(r):
        assert task.status == "STOPPED"
        assert {step.status for step in task.steps} <= {"FINISHED", "STOPPED"}
        assert task.step(PUSH).status == "STOPPED"
        written = {file.name for file in drive.catalog.artifacts(task.id)}
        assert written == {step.process_id for step in task.steps if step.status == "FINISHED"}


def test_a_run_that_is_killed_leaves_the_truth(drive: Driver, url: str) -> None:
    r = drive.planned(3, 1)
    key = drive.key(r)
    with workers(["hold", url, "a", key]) as (process,):
        assert process.stdout is not None
        assert process.stdout.readline() == f"holding {r}-task_0\n"
        process.kill()
        process.wait()
    assert drive.statuses(r) == ["RWWW"] * 3
    assert drive.take(r, run="b") == []
    drive.catalog.shard_run_ended(key, "a", LATER, 0)
    assert drive.take(r, run="b") == [f"{r}-task_{n}" for n in (1, 2, 0)]
    assert [drive.task(r, n).step(CONNECTOR).crashes for n in range(3)] == [1, 0, 0]


def test_the_same_models_registered_at_once(catalog: Catalog, url: str) -> None:
    with workers(["register", url], ["register", url]) as both:
        seen = [lines_of(process) for process in both]
    assert set(seen[0]) == set(seen[1])
    assert sorted(model.version for model in catalog.models()) == list(range(1, 9))


def test_a_catalog_survives_a_fork(drive: Driver) -> None:
    r = drive.planned(4, 1)
    assert len(drive.catalog.tasks(r)) == 4
    child = os.fork()
    if child == 0:
        code = 1
        try:
            drive.work(drive.key(r), CONNECTOR, "child")
            code = 0
        finally:
            os._exit(code)
    for _ in range(20):  # meanwhile the parent goes on with its own connections
        assert len(drive.catalog.tasks(r)) == 4
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert drive.statuses(r) == ["FrWW"] * 4
