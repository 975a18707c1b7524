"""GEOStudio's known defects: the table of tests is whole, and tests that belong nowhere else."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import httpx
import pytest
from dagster import DagsterInstance

from geostudio_dagster.catalog import RequestStatus
from geostudio_dagster.planning.masks import Masking
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver
from geostudio_dagster_tests.gateway.v2.requesting import planned, post, wish
from geostudio_dagster_tests.gateway.v2.serving import Api

TESTS = Path(__file__).parents[2]
TABLE = TESTS.parent / "deploy" / "docs" / "known-defects.md"
LAST = {"G": 17, "S": 14, "B": 40}
GUARD_FIRST = 'if __name__ == "__main__":\n    import sys\n    print(len(sys.argv))\n'
STATUSES = {
    "PENDING",
    "SUBMITTED",
    "RUNNING",
    "PARTIALLY_COMPLETED",
    "PUBLISHING_RESULTS",
    "COMPLETED",
    "COMPLETED_WITH_ERRORS",
    "FAILED",
    "STOPPED",
}


@cache
def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_defect_has_tests_that_are_there_or_a_reason() -> None:
    text = TABLE.read_text("utf-8")
    rows = re.findall(r"^\| ([GSB]-\d+) \| (.+) \|$", text, re.M)
    every = [f"{kind}-{n}" for kind, last in LAST.items() for n in range(1, last + 1)]
    assert sorted(key for key, _ in rows) == sorted(every)
    tested, _, untested = text.partition("## Without a test")
    for key, cells in rows:
        found = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cells)
        assert bool(found) == (f"| {key} |" in tested) != (f"| {key} |" in untested), key
        for file, name in found:
            assert name in names_in(TESTS / file), f"{key}: there is no {file}::{name}"


def test_ids_of_tasks_keep_to_the_grammar(
    inside: Api, ann: httpx.Client, make_scene: MakeScene
) -> None:
    small, large = make_scene("a_2024-05-01.tif", size=64), make_scene("b_2024-05-02.tif", size=600)
    request = post(ann, wish(inside, small, large, task_size=512))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request) == "COMPLETED"
    tasks = ann.get(f"/v2/inference/{request}/tasks").json()["tasks"]
    ids = [task["task_id"].removeprefix(f"{request}-task_") for task in tasks]
    assert ids == ["0", "1_0", "1_1", "1_2", "1_3", "planning"]


def test_statuses_are_those_that_clients_know() -> None:
    assert {str(status) for status in RequestStatus} <= STATUSES


def test_no_shell_reads_the_name_of_a_scene(
    inside: Api,
    ann: httpx.Client,
    make_scene: MakeScene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x$(touch${IFS}PWNED);`touch${IFS}PWNED`&'_2024-01-01.tif"
    request = post(ann, wish(inside, make_scene(name, size=64)))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request) == "COMPLETED"
    assert list(tmp_path.rglob("PWNED")) == []


def test_texts_of_a_request_are_texts(inside: Api, ann: httpx.Client) -> None:
    text = "it's :name %s %(a)s \\'; DROP TABLE requests; -- <b>&\"{}"
    told = {"name": text, "description": text, "location": text}
    request = post(ann, wish(inside, **told, demo={text: text}))
    read = ann.get(f"/v2/inference/{request}").json()
    assert {key: read[key] for key in told} == told
    assert read["demo"] == {text: text}
    for query in ({"location": text}, {"q": text}):
        assert ann.get("/v2/inference", params=query).json()["total_records"] == 1


def test_all_tasks_of_a_cancelled_request_stop(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 60, shards=4)
    assert ann.post(f"/v2/inference/{request}/cancel").status_code == 202
    document = ann.get(f"/v2/inference/{request}/tasks").json()
    assert document["status"] == "STOPPED"
    assert [task["status"] for task in document["tasks"]] == [*["STOPPED"] * 60, "FINISHED"]


def test_a_processor_without_parameters_and_with_its_guard_first_is_taken(
    ann: httpx.Client,
) -> None:
    metadata = '{"name": "first", "description": null, "processor_parameters": null}'
    answer = ann.post(
        "/v2/generic-processor",
        data={"generic_processor_metadata": metadata},
        files={"generic_processor_file": ("first.py", GUARD_FIRST.encode(), "text/x-python")},
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "FINISHED"
    assert not answer.json()["processor_parameters"]


@pytest.mark.parametrize("style", ["", {}])
def test_an_empty_style_and_a_masked_layer_without_masks_are_layers(
    inside: Api, ann: httpx.Client, make_scene: MakeScene, style: object
) -> None:
    push = {
        "workspace": "geofm",
        "layer_name": "pred",
        "display_name": "Flood",
        "filepath_key": "model_output_image_masked",
        "file_suffix": "",
        "geoserver_style": style,
        "visible_by_default": "False",
    }
    scene = make_scene("s_2024-05-01.tif", size=64)
    request = post(ann, wish(inside, scene, geoserver_push=[push], post_processing=None))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request) == "COMPLETED"
    layers = ann.get(f"/v2/inference/{request}").json()["geoserver_layers"]["predicted_layers"]
    assert [layer["display_name"] for layer in layers][1] == "Flood"
    assert layers[1]["visible_by_default"] == "False"
    assert all("<StyledLayerDescriptor" in layer["sld_body"] for layer in layers)


def test_priorities_are_numbers(inside: Api, ann: httpx.Client) -> None:
    urgent = {n: post(ann, wish(inside, priority=n)) for n in (4, 10, -3, 9)}
    for request in urgent.values():
        planned(inside, request, 1)
    catalog = inside.installation.catalog
    now = max(catalog.request(request).updated_at for request in urgent.values())
    due = [shard.request_id for shard in catalog.shards_to_dispatch(now, 10)]
    assert due == [urgent[n] for n in (10, 9, 4, -3)]


def test_times_of_steps_are_utc(inside: Api, ann: httpx.Client, make_scene: MakeScene) -> None:
    request = post(ann, wish(inside, make_scene("t_2024-05-01.tif", size=64)))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request) == "COMPLETED"
    (task, planning) = ann.get(f"/v2/inference/{request}/tasks").json()["tasks"]
    times = [step[key] for step in task["pipeline_steps"] for key in ("start_time", "end_time")]
    times.append(planning["pipeline_steps"][0]["start_time"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time) for time in times)


def test_an_exit_code_of_a_script_is_nothing_but_a_failure(
    inside: Api, ann: httpx.Client, make_scene: MakeScene
) -> None:
    script = 'import sys\nif __name__ == "__main__":\n    sys.exit(177)\n'
    made = ann.post(
        "/v2/generic-processor",
        data={"generic_processor_metadata": '{"name": "ends"}'},
        files={"generic_processor_file": ("ends.py", script.encode(), "text/x-python")},
    ).json()
    scene = make_scene("e_2024-05-01.tif", size=64)
    request = post(ann, wish(inside, scene, generic_processor_id=made["id"]))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request) == "FAILED"
    (task, _) = ann.get(f"/v2/inference/{request}/tasks").json()["tasks"]
    assert task["status"] == "FAILED"
    assert "177" in task["error"]


def test_masks_are_values_that_a_request_can_be_read_with_again() -> None:
    masking = Masking(band="SCL", encoding="sentinel2_scl", kinds=("cloud",))
    assert Masking.model_validate(masking.model_dump(mode="json")) == masking
