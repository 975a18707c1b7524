"""Requests over REST, as GEOStudio's clients write and read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from geostudio_dagster.gateway.v2.inference_schemas import (
    InferenceGetResponse,
    InferenceTasksListResponse,
)
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.gateway.v2.requesting import (
    URL,
    planned,
    post,
    published,
    wish,
    worked,
)
from geostudio_dagster_tests.gateway.v2.serving import Api

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
# GEOStudio's fields, in its order.
FIELDS = [
    *("spatial_domain", "temporal_domain", "fine_tuning_id", "generic_processor", "maxcc"),
    *("model_display_name", "description", "location", "geoserver_layers", "demo", "model_id"),
    *("inference_output", "generic_processor_id", "id", "active", "created_by", "created_at"),
    *("updated_at", "status", "tasks_count_total", "tasks_count_success", "tasks_count_failed"),
    *("tasks_count_stopped", "tasks_count_waiting"),
]


def test_a_new_request_comes_back_as_it_was_written(inside: Api, ann: httpx.Client) -> None:
    document = wish(
        inside,
        name="Vienna",
        description="Land cover",
        location="vienna",
        temporal_domain=["2024-06-30"],
        maxcc=30,
        demo={"demo": True, "section_name": "My Examples"},
        post_processing={"cloud_masking": {"band": "SCL", "encoding": "sentinel2_scl"}},
    )
    answer = ann.post("/v2/inference", json=document)
    assert answer.status_code == 201
    made = answer.json()
    assert list(made)[: len(FIELDS)] == FIELDS
    assert made["spatial_domain"] == {"bbox": [], "polygons": [], "tiles": [], "urls": [URL]}
    assert {key: made[key] for key in ("name", "description", "location", "maxcc", "demo")} == {
        "name": "Vienna",
        "description": "Land cover",
        "location": "vienna",
        "maxcc": 30,
        "demo": {"demo": True, "section_name": "My Examples"},
    }
    assert made["temporal_domain"] == ["2024-06-30"]
    assert made["created_by"] == "ann@example.org"
    assert made["active"] is True
    assert made["model_id"] == inside.model.id
    assert TIME.match(made["created_at"])
    assert TIME.match(made["updated_at"])
    # Planning is the one step that there is so far.
    assert [made[f"tasks_count_{kind}"] for kind in ("total", "waiting", "success")] == [1, 1, 0]
    assert made["status"] == "PENDING"
    read = ann.get(f"/v2/inference/{made['id']}").json()
    assert {k: v for k, v in read.items() if k != "map_url"} == {
        k: v for k, v in made.items() if k != "map_url"
    }
    InferenceGetResponse.model_validate(read)


def test_both_ways_of_naming_a_model(inside: Api, ann: httpx.Client) -> None:
    by_name = wish(inside, model_display_name=inside.model.name)
    del by_name["model_id"]
    made = ann.post("/v2/inference", json=by_name)
    assert made.status_code == 201
    assert made.json()["model_display_name"] == inside.model.name
    assert made.json()["model_id"] == inside.model.id


@pytest.mark.parametrize("path", ["/v2/inference/", "/studio-gateway/v2/inference/"])
def test_the_plugin_s_address_with_a_slash_keeps_the_body(
    inside: Api, ann: httpx.Client, path: str
) -> None:
    assert ann.post(path, json=wish(inside)).status_code == 201
    assert ann.get(path, params={"limit": 100, "skip": 0}).json()["total_records"] == 1


def test_a_request_without_dates_is_accepted(inside: Api, ann: httpx.Client) -> None:
    document = wish(inside)
    del document["temporal_domain"]
    assert ann.post("/v2/inference", json=document).json()["temporal_domain"] == []


def test_a_period_has_no_effect_on_scenes_by_address_and_is_given_back(
    inside: Api, ann: httpx.Client
) -> None:
    period = ["2024-06-01_2024-06-30"]
    made = ann.post("/v2/inference", json=wish(inside, temporal_domain=period)).json()
    assert made["temporal_domain"] == period
    assert "a period has no effect" in made["warnings"][0]
    assert inside.installation.catalog.request(made["id"]).spec["temporal_domain"] == []


def test_a_scene_of_one_named_modality_is_its_address(inside: Api, ann: httpx.Client) -> None:
    document = wish(inside)
    document["spatial_domain"]["urls"] = [{"S2L2A": URL}]
    assert ann.post("/v2/inference", json=document).json()["spatial_domain"]["urls"] == [URL]


def test_one_tenant_sees_nothing_of_another(
    inside: Api, ann: httpx.Client, bob: httpx.Client
) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 1)
    paths = (
        f"/v2/inference/{request}",
        f"/v2/inference/{request}/tasks",
        f"/v2/inference/{request}/tasks.geojson",
        f"/v2/inference/{request}/layers",
        f"/v2/inference/{request}/events",
        f"/v2/tasks/{request}-task_0",
        f"/v2/tasks/{request}-task_planning",
        f"/v2/tasks/{request}-task_0/output",
    )
    for path in paths:
        assert bob.get(path).status_code == 404, path
    for path in (f"inference/{request}/cancel", f"inference/{request}/retry"):
        assert bob.post(f"/v2/{path}").status_code == 404
    assert bob.post(f"/v2/tasks/{request}-task_0/retry").status_code == 404
    assert bob.delete(f"/v2/inference/{request}").status_code == 404
    assert bob.get("/v2/inference").json() == {"total_records": 0, "page_count": 0, "results": []}
    assert ann.get(f"/v2/inference/{request}").json()["status"] == "SUBMITTED"


def test_all_tasks_of_a_request_are_listed(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 731, shards=3)
    everything = ann.get(f"/v2/inference/{request}/tasks").json()
    ids = [task["task_id"] for task in everything["tasks"]]
    assert ids == [*(f"{request}-task_{n}" for n in range(731)), f"{request}-task_planning"]
    assert everything["total_records"] == 732
    InferenceTasksListResponse.model_validate(everything)
    first = everything["tasks"][0]
    assert [step["process_id"] for step in first["pipeline_steps"]] == [
        "url-connector",
        "terratorch-inference",
        "postprocess-generic",
        "push-to-geoserver",
    ]
    page = ann.get(f"/v2/inference/{request}/tasks", params={"limit": 5, "skip": 728}).json()
    assert [task["task_id"] for task in page["tasks"]] == ids[728:]
    ready = ann.get(f"/v2/inference/{request}/tasks", params={"status": "READY", "limit": 2})
    assert len(ready.json()["tasks"]) == 2
    assert ann.get(f"/v2/inference/{request}/tasks", params={"limit": 0}).status_code == 422
    outlines = ann.get(f"/v2/inference/{request}/tasks.geojson")
    assert outlines.headers["content-type"] == "application/geo+json"
    features = outlines.json()["features"]
    assert len(features) == 731
    assert features[7]["properties"]["status"] == "READY"
    assert features[7]["geometry"]["coordinates"][0][0] == [7, 0]


def test_long_lists_of_tasks_come_in_pieces_and_short_ones_whole(
    inside: Api, ann: httpx.Client
) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 450)
    for path, name in (("tasks", "tasks"), ("tasks.geojson", "features")):
        address = f"/v2/inference/{request}/{path}"
        with ann.stream("GET", address) as answer:
            assert "content-length" not in answer.headers
            items = json.loads(answer.read())[name]
        ids = [item.get("task_id") or item["id"] for item in items]
        assert ids[:450] == [f"{request}-task_{number}" for number in range(450)]
    short = ann.get(f"/v2/inference/{request}/tasks", params={"limit": 3, "skip": 448})
    assert int(short.headers["content-length"]) == len(short.content)
    assert [item["task_id"].rpartition("_")[2] for item in short.json()["tasks"]] == [
        "448",
        "449",
        "planning",
    ]


def test_counts_are_of_steps_and_the_status_never_says_completed_early(
    inside: Api, ann: httpx.Client
) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 30)
    seen = [ann.get(f"/v2/inference/{request}").json()["status"]]
    worked(inside, request, failing=[3, 4, 5])
    seen.append(ann.get(f"/v2/inference/{request}").json()["status"])
    published(inside, request)
    over = ann.get(f"/v2/inference/{request}").json()
    assert seen == ["SUBMITTED", "PUBLISHING_RESULTS"]
    assert over["status"] == "COMPLETED_WITH_ERRORS"
    assert over["tasks_count_total"] == 30 * 4 + 1
    assert over["tasks_count_success"] == 27 * 4 + 1
    assert over["tasks_count_failed"] == 3
    assert over["tasks_count_waiting"] == 3 * 3
    assert over["tasks_by_status"] == {"FINISHED": 27, "FAILED": 3}
    failed = ann.get(f"/v2/inference/{request}/tasks", params={"status": "FAILED"}).json()["tasks"]
    assert [task["error"] for task in failed] == ["The scene is not there."] * 3
    step = failed[0]["pipeline_steps"][0]
    assert (step["status"], step["error_code"]) == ("FAILED", "not_found")
    assert TIME.match(step["start_time"])
    assert TIME.match(step["end_time"])


def test_layers_with_their_styles(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 1)
    worked(inside, request)
    published(inside, request)
    layers = ann.get(f"/v2/inference/{request}").json()["geoserver_layers"]
    (layer,) = layers["predicted_layers"]
    assert layer["uri"] == f"geofm:{request}-pred"
    assert layer["display_name"] == "Prediction <of> & all"
    assert (layer["z_index"], layer["visible_by_default"]) == (0, "True")
    assert 'color="#fa4d56"' in layer["sld_body"].lower()
    assert "Prediction &lt;of&gt; &amp; all" in layer["sld_body"]
    assert layers["bbox_pred"] == [[16.3, 48.2, 16.4, 48.3]]
    (own,) = ann.get(f"/v2/inference/{request}/layers").json()["layers"]
    assert own["name"] == "pred"
    assert f"/layers/{request}/pred/tiles/{{z}}/{{x}}/{{y}}.png?grant=" in own["tiles"][0]


def test_layers_that_are_published_again_are_shown_at_once(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 1)
    worked(inside, request)
    published(inside, request, "First")
    seen = []
    for title in ("Second", "Third"):
        one = ann.get(f"/v2/inference/{request}").json()
        (listed,) = ann.get("/v2/inference", params={"q": request}).json()["results"]
        assert listed == one
        seen.append(one["geoserver_layers"]["predicted_layers"][0]["display_name"])
        published(inside, request, title)
    (layer,) = ann.get(f"/v2/inference/{request}").json()["geoserver_layers"]["predicted_layers"]
    assert [*seen, layer["display_name"]] == ["First", "Second", "Third"]


def test_names_that_a_client_gave_its_layers_are_kept(inside: Api, ann: httpx.Client) -> None:
    push = {
        **{"workspace": "geofm", "layer_name": "pred", "file_suffix": "", "geoserver_style": ""},
        **{"display_name": "My flood", "filepath_key": "model_output_image_masked"},
        "visible_by_default": "False",
    }
    request = post(ann, wish(inside, geoserver_push=[push]))
    planned(inside, request, 1)
    worked(inside, request)
    published(inside, request)
    (layer,) = ann.get(f"/v2/inference/{request}").json()["geoserver_layers"]["predicted_layers"]
    assert (layer["display_name"], layer["visible_by_default"]) == ("My flood", "False")


def test_a_processor_needs_no_postprocessing_beside_it(inside: Api, ann: httpx.Client) -> None:
    script = "import shutil, sys\n\nif __name__ == '__main__':\n    shutil.copy(*sys.argv[1:3])\n"
    uploaded = ann.post(
        "/v2/generic-processor",
        data={"generic_processor_metadata": '{"name": "copy"}'},
        files={"generic_processor_file": ("copy.py", script.encode())},
    )
    assert uploaded.status_code == 201, uploaded.text
    processor = uploaded.json()["id"]
    steps = ["url-connector", "terratorch-inference", "generic-python-processor"]
    document = wish(
        inside,
        generic_processor_id=processor,
        generic_processor={"name": "copy", "processor_parameters": None},
        pipeline_steps=[{"process_id": name} for name in steps],
    )
    made = ann.post("/v2/inference", json=document)
    assert made.status_code == 201, made.text
    assert made.json()["generic_processor_id"] == processor
    assert "postprocess-generic" in made.json()["warnings"][0]
    (use,) = inside.installation.catalog.request_processors(made.json()["id"])
    assert use.processor.id == processor
    other = inside.client("eve@example.org").post("/v2/inference", json=document)
    assert other.status_code == 404


def test_a_dry_run_may_be_asked_for_by_a_parameter(inside: Api, ann: httpx.Client) -> None:
    answer = ann.post("/v2/inference", params={"dry_run": "true"}, json=wish(inside))
    assert answer.status_code == 201
    assert answer.json()["model_internal_name"]
    assert inside.installation.catalog.requests() == []


def test_deleted_is_gone_at_once_and_stopped(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    tasks = planned(inside, request, 1)
    answer = ann.delete(f"/v2/inference/{request}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in (
        f"/v2/inference/{request}",
        f"/v2/inference/{request}/tasks",
        f"/v2/tasks/{tasks[0]}",
    ):
        assert ann.get(path).status_code == 404
    assert ann.get(f"/v2/inference/{request}").json()["detail"] == "Inference not found"
    assert ann.delete(f"/v2/inference/{request}").status_code == 404
    assert ann.get("/v2/inference").json()["total_records"] == 0
    record = inside.installation.catalog.request(request)
    assert (record.status, record.deleted_at is not None) == ("STOPPED", True)


def test_cancel_stops_for_good(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    planned(inside, request, 2)
    said = "Cancel inference request accepted.Inference tasks will be terminated gracefully."
    answer = ann.post(f"/v2/inference/{request}/cancel")
    assert (answer.status_code, answer.json()) == (202, {"msg": said})
    # A task that waited never runs, and nothing makes the request anything else any more.
    catalog = inside.installation.catalog
    assert catalog.shards_to_dispatch(catalog.request(request).updated_at, 10) == []
    assert str(catalog.fail_request(request, "late failure").status) == "STOPPED"
    tasks = ann.get(f"/v2/inference/{request}/tasks").json()["tasks"]
    assert [task["status"] for task in tasks] == ["STOPPED", "STOPPED", "FINISHED"]
    again = ann.post(f"/v2/inference/{request}/cancel")
    said = "Inference in STOPPED end state cannot be stopped."
    assert (again.status_code, again.json()) == (202, {"msg": said})
    assert ann.post(f"/v2/inference/{uuid4()}/cancel").status_code == 404


def test_retry_runs_what_failed_and_nothing_else(inside: Api, ann: httpx.Client) -> None:
    request = post(ann, wish(inside))
    tasks = planned(inside, request, 3)
    worked(inside, request, failing=[0, 2])
    published(inside, request)
    assert ann.post(f"/v2/tasks/{tasks[1]}/retry").status_code == 409
    one = ann.post(f"/v2/tasks/{tasks[2]}/retry")
    assert (one.status_code, one.json()["tasks"]) == (202, 1)
    listed = ann.get(f"/v2/inference/{request}/tasks").json()
    statuses = [task["status"] for task in listed["tasks"]]
    assert statuses == ["FAILED", "FINISHED", "READY", "FINISHED"]
    assert listed["status"] == "RUNNING"
    worked(inside, request)
    published(inside, request)
    whole = ann.post(f"/v2/inference/{request}/retry")
    assert (whole.status_code, whole.json()["tasks"]) == (202, 1)
    worked(inside, request)
    published(inside, request)
    assert ann.get(f"/v2/inference/{request}").json()["status"] == "COMPLETED"
    assert ann.post(f"/v2/inference/{request}/retry").status_code == 409


def test_a_dry_run_tells_all_and_writes_nothing(
    inside: Api, ann: httpx.Client, make_scene: MakeScene
) -> None:
    scene: Path = make_scene("a_2024-05-01.tif")
    answer = ann.post("/v2/inference/dry-run", json=wish(inside, scene, maxcc=30))
    assert answer.status_code == 201
    told = answer.json()
    assert told["admissible"] is True
    assert told["user"] == "ann@example.org"
    assert told["maxcc"] == 30
    assert told["plan"]["tasks"] == told["plan"]["shards"] == 1
    assert told["plan"]["mpx"] == 0.09
    assert told["plan"]["input_bytes"] == 300 * 300 * 4 * 2
    assert told["area_km2"] == pytest.approx(9.0, rel=0.01)
    assert told["pipeline_steps"][0]["process_id"] == "url-connector"
    assert inside.installation.catalog.requests() == []


def test_a_dry_run_of_an_area_tells_its_size_and_that_it_cannot_be_worked(
    inside: Api, ann: httpx.Client
) -> None:
    document = wish(inside, temporal_domain=["2024-01-01_2024-02-01"])
    document["spatial_domain"] = {"bbox": [[179.0, -1.0, -179.0, 1.0]]}
    told = ann.post("/v2/inference/dry-run", json=document).json()
    assert told["admissible"] is False
    assert told["plan"] is None
    assert told["area_km2"] == pytest.approx(49_233.86, abs=0.01)  # two degrees, not 358
    assert "no data source for areas" in told["problems"][0]
