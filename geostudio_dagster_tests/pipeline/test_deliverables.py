"""A task that cannot be packaged costs itself only; what may pass is tried again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dagster import DagsterInstance

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import deliverables
from geostudio_dagster.planning.admission import admit
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver


@pytest.fixture
def driver(installation: Installation) -> Iterator[Driver]:
    with DagsterInstance.ephemeral() as instance:
        yield Driver(installation, instance)


@pytest.fixture
def request_id(installation: Installation, model: ModelRecord, make_scene: MakeScene) -> str:
    urls = [str(make_scene(f"s{n}.tif", size=64, seed=n)) for n in range(2)]
    document = {"model": model.name, "spatial_domain": {"urls": urls}}
    return admit(document, installation.catalog, installation.settings, owner="tests").id


@pytest.mark.parametrize("error", [ValueError("inf is not JSON"), OSError("the disk is gone")])
def test_a_task_that_cannot_be_packaged_fails_alone_and_is_retried_whole(
    installation: Installation,
    request_id: str,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    original = deliverables.task_item

    def item(request: Any, task: Any, *args: Any, **options: Any) -> Any:
        if task.number == 0:
            raise error
        return original(request, task, *args, **options)

    monkeypatch.setattr(deliverables, "task_item", item)
    assert driver.until_over(request_id) == "COMPLETED_WITH_ERRORS"
    bad, good = installation.catalog.tasks(request_id)
    assert (bad.status, good.status) == ("FAILED", "FINISHED")
    assert str(error) in (bad.error or "")
    (layer, *_) = installation.catalog.layers(request_id)
    assert [granule["task_id"] for granule in layer.granules] == [good.id]

    monkeypatch.setattr(deliverables, "task_item", original)
    assert installation.catalog.retry(request_id) == 1
    assert driver.until_over(request_id) == "COMPLETED"
    assert installation.catalog.artifact(bad.id, "archive").size


def test_a_passing_fault_of_the_disk_costs_one_more_attempt(
    installation: Installation,
    request_id: str,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, faults = deliverables.write_archive, [OSError("busy")]

    def write(*args: Any) -> None:
        if faults:
            raise faults.pop()
        original(*args)

    monkeypatch.setattr(deliverables, "write_archive", write)
    assert driver.until_over(request_id) == "COMPLETED"
    assert installation.catalog.shards(request_id)[0].attempt == 1
