"""Logs of steps over REST: while they run, afterwards, and never a 500."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from geostudio_dagster.catalog import TaskRecord, Viewer
from geostudio_dagster.catalog.states import CONNECTOR, POSTPROCESS, PREDICTION, PUSH
from geostudio_dagster.errors import TaskError
from geostudio_dagster.pipeline import steplog
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.pipeline.stage import StepOutput, WorkContext, run_stage
from geostudio_dagster.planning.admission import admit
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.gateway.v2.serving import ANN, Api

WARNING = "Logs are incomplete - task is still running"


@pytest.fixture
def task(inside: Api, make_scene: MakeScene) -> str:
    """The id of a planned task of Ann's."""
    place = inside.installation
    domain = {"urls": [str(make_scene("s.tif", size=64))]}
    document = {"model": inside.model.name, "spatial_domain": domain}
    request = admit(document, place.catalog, place.settings, owner=ANN)
    plan_request(place, request.id)
    return f"{request.id}-task_0"


def work(inside: Api, task: str, step: str, doing: Any = None) -> None:
    """One step of the task, as a run does it; it says one to ten."""

    def say(record: TaskRecord, context: WorkContext) -> StepOutput:
        for number in range(1, 11):
            steplog.write(f"line {number}")
        if doing is not None:
            doing()
        return StepOutput()

    shard = f"{task.rpartition('-task_')[0]}/00000"
    run_stage(inside.installation, shard, "run", step, say)


def get(client: httpx.Client, task: str, step: str = CONNECTOR, **query: Any) -> httpx.Response:
    return client.get(f"/v2/tasks/{task}/logs/{step}", params=query)


def path(document: dict[str, Any]) -> str:
    parts = urlsplit(document["step_log_url"])
    return f"{parts.path}?{parts.query}"


def test_a_finished_steps_log_is_behind_a_link_that_needs_no_key(
    inside: Api, ann: httpx.Client, task: str
) -> None:
    work(inside, task, CONNECTOR)
    document = get(ann, task).json()
    assert set(document) == {"task_id", "step_id", "step_log_url", "status", "warning"}
    assert (document["task_id"], document["step_id"]) == (task, CONNECTOR)
    assert (document["status"], document["warning"]) == ("FINISHED", None)
    nobody = inside.client(None)
    text = nobody.get(path(document))
    assert text.status_code == 200
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.headers["x-content-type-options"] == "nosniff"
    lines = text.text.splitlines()
    assert lines[0].startswith("===== url-connector, attempt 1, run run, ")
    assert lines[1:11] == [f"line {n}" for n in range(1, 11)]
    assert nobody.get(path(document).split("?")[0]).status_code == 401
    other = path(document).replace(CONNECTOR, PREDICTION)
    assert nobody.get(other).status_code == 403


def test_tail_lines_and_ranges(inside: Api, ann: httpx.Client, task: str) -> None:
    """B-32: upstream ignores tail_lines."""
    work(inside, task, CONNECTOR)
    url = path(get(ann, task, tail_lines=3).json())
    whole = ann.get(path(get(ann, task).json())).content
    tail = ann.get(url)
    assert tail.content == b"".join(whole.splitlines(keepends=True)[-3:])
    assert tail.text.startswith("line 9\nline 10\n")

    def part(wanted: str) -> tuple[int, bytes, str | None]:
        answer = ann.get(path(get(ann, task).json()), headers={"Range": wanted})
        return answer.status_code, answer.content, answer.headers.get("content-range")

    size = len(whole)
    assert part("bytes=10-19") == (206, whole[10:20], f"bytes 10-19/{size}")
    assert part("bytes=10-") == (206, whole[10:], f"bytes 10-{size - 1}/{size}")
    assert part("bytes=-7") == (206, whole[-7:], f"bytes {size - 7}-{size - 1}/{size}")
    assert part(f"bytes={size}-") == (416, b"", f"bytes */{size}")
    assert part("bytes=0-99999999999999999999999999") == (206, whole, f"bytes 0-{size - 1}/{size}")
    assert part("bytes=-0")[0] == 416
    for odd in ("bytes=9-3", "lines=1-2", "bytes=0-1,4-5", "bytes=-", "bytes=a-b"):
        assert part(odd)[0] in (200, 416), odd
    head = ann.head(path(get(ann, task).json()))
    assert (head.status_code, head.headers["content-length"]) == (200, str(size))


def test_a_running_steps_log_grows_and_says_that_it_is_incomplete(
    inside: Api, ann: httpx.Client, task: str
) -> None:
    seen: list[dict[str, Any]] = []

    def look() -> None:
        seen.append(get(ann, task).json())
        assert ann.get(path(seen[0])).text.endswith("line 10\n")
        refused = get(ann, task, allow_incomplete=False)
        assert refused.status_code == 409
        assert refused.json()["detail"]["status"] == "RUNNING"

    work(inside, task, CONNECTOR, look)
    assert (seen[0]["status"], seen[0]["warning"]) == ("RUNNING", WARNING)
    assert "finished: " in ann.get(path(seen[0])).text
    assert get(ann, task, allow_incomplete=False).status_code == 200


def test_a_step_that_will_be_tried_again_has_its_log_meanwhile(
    inside: Api, ann: httpx.Client, task: str
) -> None:
    def fail() -> None:
        raise TaskError("unreachable", "Nobody answers.", retryable=True)

    work(inside, task, CONNECTOR, fail)
    document = get(ann, task).json()
    assert (document["status"], document["warning"]) == ("READY", WARNING)
    assert "to be tried again: Nobody answers." in ann.get(path(document)).text


def test_what_has_no_log_is_told_as_documented(inside: Api, ann: httpx.Client, task: str) -> None:
    """B-32: upstream turns its own 404 into a 500."""
    for step, status in ((CONNECTOR, "READY"), (PREDICTION, "WAITING")):
        answer = get(ann, task, step)
        assert answer.status_code == 409
        assert answer.json()["detail"] == {
            "msg": f"Step {step} has status '{status}'. Logs may not be available yet.",
            "status": status,
        }
    unknown = get(ann, task, "no-such-step")
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == {"msg": "Step no-such-step not found in task"}
    missing = get(ann, f"{task}9")
    assert (missing.status_code, missing.json()["detail"]) == (404, "Task not found")
    assert get(ann, task, tail_lines=0).status_code == 422
    assert get(ann, task, tail_lines="x").status_code == 422
    assert get(ann, "..%2f..%2fcatalog.db").status_code == 404
    work(inside, task, CONNECTOR)
    key = steplog.step_log_key(task.rpartition("-task_")[0], task, CONNECTOR)
    url = path(get(ann, task).json())
    inside.installation.storage.delete(key)
    for gone in (get(ann, task), ann.get(url)):
        assert gone.status_code == 404
        assert gone.json()["detail"] == {"msg": "There are no logs of step url-connector."}


def test_nobody_elses_logs_are_seen(
    inside: Api, bob: httpx.Client, ann: httpx.Client, task: str
) -> None:
    work(inside, task, CONNECTOR)
    url = path(get(ann, task).json()).split("?")[0]
    assert get(bob, task).status_code == 404
    assert bob.get(url).status_code == 404
    link = path(get(ann, task).json())
    request = task.rpartition("-task_")[0]
    inside.installation.catalog.delete_request(request, Viewer(ANN))
    assert get(ann, task).status_code == 404
    assert inside.client(None).get(link).status_code == 404


def test_the_text_itself_by_accept(inside: Api, ann: httpx.Client, task: str) -> None:
    work(inside, task, CONNECTOR)
    url = f"/v2/tasks/{task}/logs/{CONNECTOR}?tail_lines=2"
    answer = ann.get(url, headers={"Accept": "text/plain"})
    assert answer.text.startswith("line 10\n")


def test_planning_and_publishing_have_logs_too(inside: Api, ann: httpx.Client, task: str) -> None:
    request = task.rpartition("-task_")[0]
    document = get(ann, f"{request}-task_planning", "inference-planner").json()
    assert document["status"] == "FINISHED"
    assert "planned: 1 tasks in 1 shards" in ann.get(path(document)).text
    assert get(ann, f"{request}-task_planning", CONNECTOR).status_code == 404
    storage = inside.installation.storage
    with steplog.recording(storage, steplog.request_log_key(request, PUSH), "push"):
        steplog.write("on the map")
    for step in (CONNECTOR, PREDICTION, POSTPROCESS):
        work(inside, task, step)
    document = get(ann, task, PUSH).json()
    assert re.search("on the map", ann.get(path(document)).text)
