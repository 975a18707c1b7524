"""What one run of a stage may do to another, and what the catalog's faults do to tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from geostudio_dagster.catalog import Catalog, ModelRecord, TaskRecord
from geostudio_dagster.catalog.states import CONNECTOR
from geostudio_dagster.errors import Cancelled
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.pipeline.stage import ProducedFile, StepOutput, WorkContext, run_stage
from geostudio_dagster.planning.admission import admit
from geostudio_dagster_tests.conftest import MakeScene


@pytest.fixture
def shard(installation: Installation, model: ModelRecord, make_scene: MakeScene) -> str:
    """A planned shard of one task."""
    document = {
        "model": model.name,
        "spatial_domain": {"urls": [str(make_scene("s.tif", size=64))]},
    }
    request = admit(document, installation.catalog, installation.settings, owner="tests")
    plan_request(installation, request.id)
    return installation.catalog.shards(request.id)[0].key


def write(content: bytes, then: Callable[[], object] = lambda: None) -> Any:
    def work(_: TaskRecord, context: WorkContext) -> StepOutput:
        path = context.scratch / "out.bin"
        path.write_bytes(content)
        then()
        return StepOutput(files=[ProducedFile("out", path, path.name, "text/plain")])

    return work


def test_a_run_that_lost_its_task_cannot_touch_the_file_of_the_one_that_has_it(
    installation: Installation, shard: str
) -> None:
    catalog = installation.catalog

    def slow(_: TaskRecord, context: WorkContext) -> StepOutput:
        path = context.scratch / "out.bin"
        path.write_bytes(b"half")
        catalog.release("slow", crashed=False)  # as the reconciler does when it gives no sign

        def wake_up() -> None:
            with suppress(OSError):
                path.write_bytes(b"of the run that was given up")

        report = run_stage(installation, shard, "new", CONNECTOR, write(b"of the new", wake_up))
        assert report.count("finished") == 1
        return StepOutput(files=[ProducedFile("out", path, path.name, "text/plain")])

    report = run_stage(installation, shard, "slow", CONNECTOR, slow)
    assert report.count("lost") == 1
    (task,) = catalog.shard_tasks(shard)
    artifact = catalog.artifact(task.id, "out")
    assert installation.path_of(artifact).read_bytes() == b"of the new"
    assert list(_files(installation.settings.data_folder / "scratch")) == []


def test_a_task_that_ran_out_of_memory_is_tried_again(
    installation: Installation, shard: str
) -> None:
    def large(_: TaskRecord, __: WorkContext) -> StepOutput:
        raise MemoryError("Unable to allocate 9.00 EiB")

    report = run_stage(installation, shard, "first", CONNECTOR, large)
    assert report.count("retry") == 1
    (outcome,) = report.outcomes
    assert outcome.error is not None and "ran out of memory on this task" in outcome.error
    report = run_stage(installation, shard, "second", CONNECTOR, write(b"whole"))
    assert report.count("finished") == 1


def test_a_fault_of_the_catalog_is_not_the_tasks(
    installation: Installation, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: Any, **__: Any) -> None:
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "finish_step", locked)
        with pytest.raises(OperationalError):
            run_stage(installation, shard, "first", CONNECTOR, write(b"a"))
    (task,) = installation.catalog.shard_tasks(shard)
    assert task.status == "RUNNING"  # held, until its lease ends
    assert installation.catalog.release("first") == 1
    assert run_stage(installation, shard, "next", CONNECTOR, write(b"a")).count("finished") == 1


@pytest.fixture
def shard_of_four(installation: Installation, model: ModelRecord, make_scene: MakeScene) -> str:
    """A planned shard of four tasks."""
    urls = [str(make_scene(f"s{n}.tif", size=64)) for n in range(4)]
    document = {"model": model.name, "spatial_domain": {"urls": urls}}
    request = admit(document, installation.catalog, installation.settings, owner="tests")
    plan_request(installation, request.id)
    return installation.catalog.shards(request.id)[0].key


def test_what_a_process_died_with_is_tried_alone_after_the_rest(
    installation: Installation, shard_of_four: str
) -> None:
    catalog = installation.catalog
    first, second, *_ = catalog.claim(shard_of_four, CONNECTOR, "killed", 60.0)
    for task in (first, second):
        assert catalog.start_step(task.id, CONNECTOR, "killed")
    catalog.release("killed")  # it died with two of the four in hand
    together = threading.Barrier(2)
    order: list[str] = []

    def work(task: TaskRecord, _: WorkContext) -> StepOutput:
        if task.id not in {first.id, second.id}:
            together.wait(20)  # breaks unless another task is worked at the same time
        order.append(task.id)
        return StepOutput()

    report = run_stage(installation, shard_of_four, "next", CONNECTOR, work, workers=2)
    assert report.count("finished") == 4
    assert order[2:] == [first.id, second.id]


def test_what_ends_the_stage_ends_all_that_is_under_way_and_leaves_no_scratch(
    installation: Installation, shard_of_four: str
) -> None:
    together = threading.Barrier(2)
    ended: list[int] = []

    def work(task: TaskRecord, context: WorkContext) -> StepOutput:
        (context.scratch / "half").write_bytes(b"half")
        if task.number < 2:
            together.wait(20)
        if task.number == 0:
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        pause = threading.Event()
        while not context.cancelled():
            pause.wait(0.01)
        ended.append(task.number)
        raise Cancelled("stopped")

    with pytest.raises(OperationalError):
        run_stage(installation, shard_of_four, "first", CONNECTOR, work, workers=2)
    assert 1 in ended  # and maybe the one that was next
    assert _files(installation.settings.data_folder / "scratch") == []
    # Whatever it held, the next run gets.
    installation.catalog.release("first", crashed=False)
    report = run_stage(installation, shard_of_four, "next", CONNECTOR, write(b"whole"), workers=2)
    assert report.count("finished") == 4


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
