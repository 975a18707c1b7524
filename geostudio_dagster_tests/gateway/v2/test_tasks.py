"""Tasks over REST: how each stands, and its output by HTTP Range."""

from __future__ import annotations

import io
import zipfile

import httpx
import pytest

from geostudio_dagster_tests.gateway.v2.requesting import (
    archived,
    planned,
    post,
    published,
    wish,
    worked,
)
from geostudio_dagster_tests.gateway.v2.serving import Api


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scene_pred.tif", b"pixels" * 1000)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["output", "output-url"])
def test_output_is_a_link_that_works_without_a_key_and_in_parts(
    inside: Api, ann: httpx.Client, name: str
) -> None:
    request = post(ann, wish(inside))
    (task,) = planned(inside, request, 1)
    early = ann.get(f"/v2/tasks/{task}/{name}")
    said = {"msg": "Task is not completed. Output URL is not available."}
    assert (early.status_code, early.json()["detail"]) == (409, said)
    worked(inside, request)
    content = _zip()
    archived(inside, request, task, content)
    published(inside, request)
    answer = ann.get(f"/v2/tasks/{task}/{name}").json()
    assert answer["task_id"] == task
    assert answer["url"] == answer["output_url"]
    nobody = inside.client(None)
    assert nobody.head(answer["url"]).headers["content-length"] == str(len(content))
    end = nobody.get(answer["url"], headers={"Range": "bytes=-22"})
    assert (end.status_code, end.content) == (206, content[-22:])
    assert nobody.get(answer["url"]).content == content
    assert nobody.get(answer["url"].partition("?")[0]).status_code == 401


def test_a_task_and_the_planning_as_one(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    planning = ann.get(f"/v2/tasks/{request}-task_planning").json()
    assert planning["pipeline_steps"] == [
        {"status": "READY", "process_id": "inference-planner", "step_number": 0}
    ]
    (task,) = planned(inside, request, 1)
    detail = ann.get(f"/v2/tasks/{task}").json()
    assert detail["status"] == "READY"
    assert detail["pixels"] == 10_000
    assert detail["scene_size"] == [100, 100]
    assert [step["step_number"] for step in detail["pipeline_steps"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("task", ["nothing", "x-task_0", "a" * 100, "%2e%2e", "x-task_planning"])
def test_unknown_tasks(ann: httpx.Client, task: str) -> None:
    for path in ("", "/output", "/output-url"):
        answer = ann.get(f"/v2/tasks/{task}{path}")
        assert (answer.status_code, answer.json()["detail"]) == (404, {"msg": "Task not found"})
    assert ann.post(f"/v2/tasks/{task}/retry").status_code == 404
    assert ann.get(f"/v2/tasks/{task}{'a' * 100}").status_code == 422
