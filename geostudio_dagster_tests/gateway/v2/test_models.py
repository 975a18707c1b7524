"""Models over REST: as GEOStudio's clients know them, and right where GEOStudio is not."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx
import pytest

from geostudio_dagster_tests.gateway.v2.serving import BOB, Api

MODELS = "/v2/models"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
SPEC = [{"bands": [{"index": "0", "band_name": "B02", "scaling_factor": "0.0001"}]}]


def create(client: httpx.Client, name: str = "burn_Scars", **fields: Any) -> dict[str, Any]:
    answer = client.post(MODELS, json={"display_name": name, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def names(client: httpx.Client, **query: Any) -> list[str]:
    return [m["display_name"] for m in client.get(MODELS, params=query).json()["results"]]


def test_a_model_as_geostudio_writes_it(ann: httpx.Client) -> None:
    model = create(ann, description="Fire", model_input_data_spec=SPEC, model_url="http://a.org/v1")
    assert re.fullmatch(r"burn-scars-v1-[0-9a-f]{8}", model["internal_name"])
    assert TIME.fullmatch(model["created_at"])
    assert TIME.fullmatch(model["updated_at"])
    expected = {
        "display_name": "burn_Scars",
        "description": "Fire",
        "model_url": "http://a.org/v1",
        "model_input_data_spec": SPEC,
        "version": 1.0,
        "latest": True,
        "sharable": False,
        "status": "PENDING",
        "active": True,
        "created_by": "ann@example.org",
    }
    assert {key: model[key] for key in expected} == expected
    assert ann.get(f"{MODELS}/{model['id']}").json() == model


def test_the_same_name_is_the_next_version(ann: httpx.Client, bob: httpx.Client) -> None:
    first, second = create(ann), create(ann)
    assert (second["version"], second["latest"]) == (2.0, True)
    assert ann.get(f"{MODELS}/{first['id']}").json()["latest"] is False
    assert create(bob)["version"] == 1.0  # another's versions are not counted
    assert ann.delete(f"{MODELS}/{second['id']}").status_code == 204
    assert ann.get(f"{MODELS}/{first['id']}").json()["latest"] is True


def test_a_registered_bundle_shows_with_all_that_its_manifest_says(
    inside: Api, ann: httpx.Client
) -> None:
    model = ann.get(f"{MODELS}/{inside.model.id}").json()
    assert (model["display_name"], model["status"]) == (inside.model.name, "COMPLETED")
    assert (model["sharable"], model["created_by"]) == (True, "tests")
    manifest = inside.model.manifest
    (spec,) = model["model_input_data_spec"]
    assert [b["band_name"] for b in spec["bands"]] == [b["name"] for b in manifest["bands"]]
    assert {b["RGB_band"] for b in spec["bands"] if "RGB_band" in b} == {"R", "G", "B"}
    style = model["geoserver_push"][-1]["geoserver_style"]["segmentation"]
    assert [(s["quantity"], s["color"], s["label"]) for s in style] == [
        (str(c["value"]), c["colour"], c["name"]) for c in manifest["classes"]
    ]
    assert [s["process_id"] for s in model["pipeline_steps"]] == [
        "url-connector",
        "terratorch-inference",
        "postprocess-generic",
        "push-to-geoserver",
    ]
    assert model["bundle"]["model_id"] == inside.model.id
    assert model["bundle"]["patch"] == manifest["patch"]


def test_the_list_is_not_capped_at_25_and_has_a_true_total(ann: httpx.Client) -> None:
    for number in range(28):
        create(ann, f"model-{number:02}")
    page = ann.get(MODELS, params={"limit": 1000, "skip": 0}).json()
    assert page["total_records"] == page["page_count"] == len(page["results"]) == 30
    assert "geofm-sandbox-models" in [m["display_name"] for m in page["results"]]
    page = ann.get(MODELS, params={"limit": 3, "skip": 2, "sort": "display_name", "q": "MODEL-"})
    assert page.json()["total_records"] == 28
    assert [m["display_name"] for m in page.json()["results"]] == [
        "model-02",
        "model-03",
        "model-04",
    ]
    assert names(ann, internal_name="MODEL-07-v1") == ["model-07"]
    assert names(ann, display_name="model-01", unknown="x") == ["model-01"]
    assert names(ann, status="PENDING", latest="false") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=-1", "limit"), ("limit=1001", "limit"), ("skip=-1", "skip"), ("sort=owner", "sort")],
)
def test_pages_beyond_bounds_are_refused(ann: httpx.Client, query: str, field: str) -> None:
    answer = ann.get(f"{MODELS}?{query}")
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", field])


def test_a_change_can_set_false_and_empty_and_leaves_the_rest(ann: httpx.Client) -> None:
    model = create(ann, sharable=True, description="Fire", model_input_data_spec=SPEC)
    change = {"latest": False, "sharable": False, "description": "", "model_input_data_spec": []}
    answer = ann.patch(f"{MODELS}/{model['id']}", json=change)
    assert answer.status_code == 201
    changed = answer.json()
    assert {key: changed[key] for key in change} == change
    renamed = ann.patch(f"{MODELS}/{model['id']}", json={"display_name": "other"}).json()
    assert (renamed["display_name"], renamed["description"]) == ("other", "")
    assert renamed["internal_name"] == model["internal_name"]
    nothing = ann.patch(f"{MODELS}/{model['id']}", json={"display_name": "other", "latest": None})
    assert nothing.json()["latest"] is False


def test_a_deleted_model_is_gone(ann: httpx.Client) -> None:
    model = create(ann)
    answer = ann.delete(f"{MODELS}/{model['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    for gone in (
        ann.get(f"{MODELS}/{model['id']}"),
        ann.patch(f"{MODELS}/{model['id']}", json={"latest": True}),
        ann.delete(f"{MODELS}/{model['id']}"),
        ann.post(f"{MODELS}/{model['id']}/deploy", json={}),
    ):
        assert (gone.status_code, gone.json()["detail"]) == (404, "Model not found")
    assert "burn_Scars" not in names(ann)


def test_one_tenant_sees_nothing_of_another(
    inside: Api, ann: httpx.Client, bob: httpx.Client, root: httpx.Client
) -> None:
    model = create(ann)
    assert bob.get(f"{MODELS}/{model['id']}").status_code == 404
    assert "burn_Scars" not in names(bob)
    assert root.get(f"{MODELS}/{model['id']}").status_code == 200
    group = ann.post("/v2/groups", json={"name": "fire"}).json()["id"]
    ann.post(f"/v2/groups/{group}/members", json={"user_email": BOB})
    shared = ann.post(
        f"/v2/groups/{group}/artifacts",
        json={"artifact_type": "model", "artifact_id": model["id"]},
    )
    assert shared.status_code == 201, shared.text
    assert bob.get(f"{MODELS}/{model['id']}").status_code == 200
    refused = bob.patch(f"{MODELS}/{model['id']}", json={"latest": False})
    assert (refused.status_code, refused.json()["detail"]) == (
        404,
        "Missing permissions to edit this record.",
    )
    refused = bob.delete(f"{MODELS}/{inside.model.id}")  # for everybody, but not everybody's
    assert refused.json()["detail"] == "Missing permissions to delete this record."


@pytest.mark.parametrize(
    ("body", "location", "message"),
    [
        ({}, ["body", "display_name"], "Field required"),
        (
            {"display_name": "two words"},
            ["body", "display_name"],
            ("Value error, model display_name can only contain letters, underscores, and hyphens"),
        ),
        (
            {"display_name": "a" * 101},
            ["body", "display_name"],
            "String should have at most 100 characters",
        ),
        (
            {"display_name": "a", "model_input_data_spec": [{"bands": [{"index": 0}]}]},
            ["body", "model_input_data_spec", 0, "bands", 0, "band_name"],
            "is missing; name the band",
        ),
        (
            {"display_name": "a", "version": 0},
            ["body", "version"],
            "Input should be greater than or equal to 1",
        ),
    ],
)
def test_bad_models_name_the_field_and_leave_no_row(
    ann: httpx.Client, body: dict[str, Any], location: list[Any], message: str
) -> None:
    before = ann.get(MODELS).json()["total_records"]
    answer = ann.post(MODELS, json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["loc"], error["msg"]) == (location, message)
    assert ann.get(MODELS).json()["total_records"] == before


def test_ids_that_are_none(ann: httpx.Client) -> None:
    assert ann.get(f"{MODELS}/nonsense").status_code == 422
    assert ann.get(f"{MODELS}/{uuid4()}").json()["detail"] == "Model not found"


def test_deploy_waits_for_a_run(inside: Api, ann: httpx.Client) -> None:
    model = create(ann)
    files = {
        "model_configs_url": "https://example.org/config.yaml",
        "model_checkpoint_url": "https://example.org/best.ckpt",
    }
    answer = ann.post(f"{MODELS}/{model['id']}/deploy", json=files)
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "id": model["id"],
            "internal_name": model["internal_name"],
            "display_name": "burn_Scars",
            "status": "DEPLOY_REQUESTED",
        },
    )
    (wish,) = inside.installation.catalog.onboardings(10)
    assert (wish.id, wish.config_url) == (model["id"], files["model_configs_url"])
    inside.installation.catalog.claim_onboarding("model", model["id"], "run")
    answer = ann.post(f"{MODELS}/{model['id']}/deploy", json=files)
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        {"message": "Model in state: DEPLOY_IN_PROGRESS cannot be redeployed. Create a new Model."},
    )
    inside.installation.catalog.fail_onboarding("model", model["id"], "No such file.")
    failed = ann.get(f"{MODELS}/{model['id']}").json()
    assert (failed["status"], failed["error"]) == ("DEPLOY_FAILED", "No such file.")
    assert ann.post(f"{MODELS}/{model['id']}/deploy", json=files).status_code == 200


@pytest.mark.parametrize(
    ("files", "location"),
    [
        ({"model_configs_url": "https://example.org/c.yaml"}, None),
        ({}, None),
        (
            {"model_configs_url": "file:///etc/passwd", "model_checkpoint_url": "https://a.org/b"},
            "model_configs_url",
        ),
        (
            {
                "model_configs_url": "https://a.org/b",
                "model_checkpoint_url": "http://169.254.169.254/latest",
            },
            "model_checkpoint_url",
        ),
        ({"fine_tuned_model_id": "geotune-none"}, "fine_tuned_model_id"),
    ],
)
def test_deploy_refuses_what_cannot_be_fetched(
    ann: httpx.Client, files: dict[str, str], location: str | None
) -> None:
    model = create(ann)
    answer = ann.post(f"{MODELS}/{model['id']}/deploy", json=files)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    if location is None:
        assert error["msg"].startswith("Both model_checkpoint_url and model_configs_url should be")
    else:
        assert error["loc"] == ["body", location]
    assert ann.get(f"{MODELS}/{model['id']}").json()["status"] == "PENDING"


def test_a_model_without_a_bundle_cannot_run(ann: httpx.Client) -> None:
    model = create(ann)
    wish = {
        "model_id": model["id"],
        "spatial_domain": {"urls": ["https://example.org/scene_2024-01-01.tif"]},
    }
    answer = ann.post("/v2/inference", json=wish)
    assert answer.status_code == 422
    assert answer.json()["detail"]["msg"].startswith("Cannot run inference > model missing")
