"""A plan and what describes it are written together; one that cannot be made says why at once."""

from __future__ import annotations

from typing import Any

import pytest

from geostudio_dagster.catalog import Catalog, ModelRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.planning import plan
from geostudio_dagster.planning.admission import admit
from geostudio_dagster_tests.conftest import MakeScene


@pytest.fixture
def request_id(installation: Installation, model: ModelRecord, make_scene: MakeScene) -> str:
    urls = [str(make_scene("s.tif", size=1100))]
    document = {"model": model.name, "spatial_domain": {"urls": urls}, "task_size": 512}
    return admit(document, installation.catalog, installation.settings, owner="tests").id


def test_plan_and_footprints_are_written_in_one_step(
    installation: Installation, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "put_artifacts", died)  # is not called: there is no second step
        plan_request(installation, request_id)
    assert installation.catalog.artifact(request_id, "tasks_geojson").size


def test_a_request_that_cannot_be_planned_fails_with_its_reason(
    installation: Installation, request_id: str
) -> None:
    settings = installation.settings.model_copy(update={"max_tasks": 2})
    small = Installation(settings, installation.catalog, installation.storage)
    with pytest.raises(InvalidRequest):
        plan_request(small, request_id)
    request = installation.catalog.request(request_id)
    assert request.status == "FAILED"
    assert "more than 2 tasks" in (request.error or "")
    assert installation.catalog.tasks(request_id) == []


def test_a_scene_that_breaks_its_reader_is_one_task_among_others(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = [str(make_scene(f"s{n}.tif", size=64)) for n in range(2)]
    document = {"model": model.name, "spatial_domain": {"urls": urls}}
    request = admit(document, installation.catalog, installation.settings, owner="tests")
    original = plan.look

    def look(url: str, *args: Any) -> Any:
        if url == urls[0]:
            raise RuntimeError("a defect")
        return original(url, *args)

    monkeypatch.setattr(plan, "look", look)
    plan_request(installation, request.id)
    sizes = [task.scene_size for task in installation.catalog.tasks(request.id)]
    assert sizes == [None, (64, 64)]
