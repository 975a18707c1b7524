"""What is refused: in GEOStudio's words, with the field or the limit named, and nothing written."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest
from fastapi.testclient import TestClient

from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway.v2.inference_schemas import NO_PLACE
from geostudio_dagster.settings import LimitSettings, Settings
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.gateway.v2.requesting import URL, wish
from geostudio_dagster_tests.gateway.v2.serving import Api


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"model_id": str(uuid4())}, 404, "Model not found. Ensure it exists before retrying."),
        (
            {"model_id": None, "model_display_name": "nothing"},
            404,
            "Model not found. Ensure it exists before retrying.",
        ),
        (
            {"generic_processor_id": str(uuid4())},
            404,
            "Generic Processor component not found",
        ),
    ],
)
def test_what_is_not_there_is_said_in_geostudio_s_words(
    inside: Api, ann: httpx.Client, changes: dict[str, object], code: int, detail: str
) -> None:
    answer = ann.post("/v2/inference", json=wish(inside) | changes)
    assert (answer.status_code, answer.json()["detail"]) == (code, detail)
    assert answer.headers["content-type"] == "application/problem+json"
    assert ann.get("/v2/inference").json()["total_records"] == 0


BAD_INPUT = [
    ({"spatial_domain": {"urls": []}}, "spatial_domain", NO_PLACE),
    ({"spatial_domain": {}}, "spatial_domain", NO_PLACE),
    ({"spatial_domain": None}, "spatial_domain", ""),
    ({"spatial_domain": {"urls": [URL, URL]}}, "spatial_domain.urls", "twice"),
    ({"spatial_domain": {"urls": [{"S2L2A": URL, "S1GRD": URL}]}}, "spatial_domain.urls.0", "one"),
    ({"spatial_domain": {"urls": ["file:///etc/passwd"]}}, "spatial_domain.urls.0", ""),
    ({"spatial_domain": {"urls": ["https://a.org/b.ZIP?x=1"]}}, "spatial_domain.urls.0", ".zip"),
    ({"spatial_domain": {"urls": [URL, {"": URL + "/c.nc"}]}}, "spatial_domain.urls.1", ".nc"),
    ({"spatial_domain": {"urls": ["x" * 5000]}}, "spatial_domain.urls.0", ""),
    ({"spatial_domain": {"urls": "https://a/b.tif"}}, "spatial_domain.urls", "list"),
    ({"spatial_domain": {"bbox": [[200, 95, 201, 96]]}}, "spatial_domain.bbox", "globe"),
    ({"spatial_domain": {"bbox": [[0, 1, 1, 0]]}}, "spatial_domain.bbox", "below"),
    ({"spatial_domain": {"bbox": [[200, 95, 1]]}}, "spatial_domain.bbox.0", ""),
    ({"spatial_domain": {"bbox": [["a", 0, 1, 1]]}}, "spatial_domain.bbox.0.0", "number"),
    ({"spatial_domain": {"bbox": [[0, 0, 1, 1]]}}, "spatial_domain.bbox", "no data source"),
    ({"spatial_domain": {"polygons": [{"type": "Point"}]}}, "spatial_domain.polygons.0", ""),
    ({"spatial_domain": {"tiles": ["33UWP"]}}, "spatial_domain.tiles", "no data source"),
    ({"temporal_domain": ["garbage"]}, "temporal_domain", "not a date"),
    ({"temporal_domain": ["2024-02-01_2024-01-01"]}, "temporal_domain.0", "ends before"),
    ({"temporal_domain": ["2024-13-01_2024-14-01"]}, "temporal_domain.0", "not a date"),
    ({"temporal_domain": ["2024-01-01", "2024-01-02"]}, "temporal_domain", "do not fit"),
    ({"maxcc": 101}, "maxcc", ""),
    ({"maxcc": "many"}, "maxcc", "integer"),
    ({"location": "x" * 300}, "location", ""),
    ({"description": "x" * 10_000_000}, "description", "4000"),
    ({"model_id": "no-uuid"}, "model_id", ""),
    ({"model_id": None}, "model_id", "missing"),
    ({"priority": 1000}, "priority", ""),
    ({"demo": {"text": "x" * 70_000}}, "demo", "characters"),
    ({"pipeline_steps": [{"process_id": "it's"}]}, "pipeline_steps.0.process_id", "no step"),
    (
        {
            "pipeline_steps": [
                {"process_id": "postprocess-generic"},
                {"process_id": "run-inference"},
            ]
        },
        "pipeline_steps.1.process_id",
        "cannot come after",
    ),
    (
        {"pipeline_steps": [{"process_id": "generic-python-processor"}]},
        "pipeline_steps.0.process_id",
        "no processor",
    ),
    ({"pipeline_steps": [{}]}, "pipeline_steps.0.process_id", "required"),
    ({"generic_processor": {"name": "mask"}}, "generic_processor", "which"),
    ({"geoserver_push": [{"workspace": "geofm"}]}, "geoserver_push.0.layer_name", "required"),
]


@pytest.mark.parametrize(("changes", "field", "words"), BAD_INPUT)
def test_bad_input_names_the_field_and_leaves_no_row(
    inside: Api, ann: httpx.Client, changes: dict[str, object], field: str, words: str
) -> None:
    for path in ("/v2/inference", "/v2/inference/dry-run"):
        answer = ann.post(path, json=wish(inside) | changes)
        if path.endswith("dry-run") and "no data source" in words:
            assert words in answer.json()["problems"][0]
            continue
        assert answer.status_code == 422, answer.text
        first = answer.json()["detail"][0]
        where = ".".join(map(str, first["loc"]))
        assert where.startswith(f"body.{field}"), first
        assert words in first["msg"], first
        top = field.partition(".")[0]
        assert answer.json()["errors"][0]["pointer"].startswith(f"#/{top}")
    assert inside.installation.catalog.requests() == []


@pytest.mark.parametrize(
    "text",
    ['{"spatial_domain": {"bbox": [[NaN, 0, 1, 1]]}}', '{"a": ' * 500, "[]", '"x"', "", "{"],
)
def test_what_is_no_request_at_all_is_refused(ann: httpx.Client, text: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = ann.post("/v2/inference", content=text, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["status"] == 422


def test_a_tune_is_named_never_opened_as_a_path(inside: Api, ann: httpx.Client) -> None:
    inside.installation.catalog.ensure_sandbox()
    sandbox = wish(inside) | {"model_id": None, "model_display_name": "geofm-sandbox-models"}
    for tune in ("../../etc/passwd", "geotune-abc", "sandbox"):
        answer = ann.post("/v2/inference", json=sandbox | {"fine_tuning_id": tune})
        assert (answer.status_code, answer.json()["detail"]) == (404, "Tune not found")
    answer = ann.post("/v2/inference", json=sandbox)
    said = {"msg": "`fine_tuning_id` required to try out experimental model."}
    assert (answer.status_code, answer.json()["detail"]) == (422, said)


def test_one_user_may_not_have_more_requests_under_way_than_allowed(
    settings: Settings, inside: Api
) -> None:
    limits = LimitSettings(max_live_per_user=1, max_mpx=0.01)
    app = create_app(settings.model_copy(update={"limits": limits}))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.headers["X-API-Key"] = inside.key()
        assert client.post("/v2/inference", json=wish(inside)).status_code == 201
        answer = client.post("/v2/inference", json=wish(inside))
        assert answer.status_code == 429
        assert "You have 1 requests under way, and 1 are allowed" in answer.text
        told = client.post("/v2/inference/dry-run", json=wish(inside)).json()
        (broken,) = [limit for limit in told["limits"] if limit["exceeded"]]
        assert (broken["name"], broken["asked"], broken["allowed"]) == ("live_requests", 2, 1)


def test_a_post_above_a_limit_names_figure_and_limit(
    settings: Settings, inside: Api, make_scene: MakeScene
) -> None:
    limits = LimitSettings(max_mpx=0.01, max_area_km2=100)
    app = create_app(settings.model_copy(update={"limits": limits}))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.headers["X-API-Key"] = inside.key()
        answer = client.post("/v2/inference", json=wish(inside, make_scene("a.tif")))
        (error,) = answer.json()["detail"]
        assert (answer.status_code, error["loc"]) == (422, ["body", "spatial_domain", "urls"])
        assert "0.09 Mpx, and 0.01 Mpx are allowed" in error["msg"]
        document = wish(inside)
        document["spatial_domain"] = {"bbox": [[33.9, -4.7, 41.9, 5.5]]}
        (error,) = client.post("/v2/inference", json=document).json()["detail"]
        assert error["msg"].startswith(
            "Inference area (1003106.03 km²) exceeds the maximum allowed area of 100.00 km²"
        )
    assert inside.installation.catalog.requests() == []
