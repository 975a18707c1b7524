"""Tunes over REST; that they become models is tested where their runs are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from geostudio_dagster.gateway.v2.without_effect import CLOUDS, SOURCES
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.models.tunes import CHECKPOINT, CONFIG
from geostudio_dagster_tests.gateway.v2.serving import ANN, BOB, Api
from geostudio_dagster_tests.models.test_tunes import PUSH, config, manifest
from geostudio_dagster_tests.models.test_tunes import SPEC as INPUTS

TUNES, UPLOAD = "/v2/tunes", "/v2/upload-completed-tunes"
FILES = {
    "tune_config_url": "https://example.org/config_deploy.yaml",
    "tune_checkpoint_url": "https://example.org/best.ckpt",
}
SPEC = [{"bands": [{"index": "0", "band_name": "B02", "scaling_factor": "0.0001"}]}]
SCENE = {"urls": ["https://example.org/scene_2024-01-01.tif"]}


def upload(client: httpx.Client, **fields: Any) -> str:
    body = {"name": "burn-scars", "description": "Fire", **FILES, **fields}
    answer = client.post(UPLOAD, json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["message"] == "Upload started"
    return str(answer.json()["tune_id"])


def finish(api: Api, tune_id: str, bundle_folder: Path) -> str:
    """The tune is made into a bundle (the demo model's), as its run would do; the model's id."""
    model = register_bundle(api.installation, bundle_folder, ANN, listed=False)
    api.installation.catalog.claim_onboarding("tune", tune_id, "run")
    api.installation.catalog.finish_onboarding("tune", tune_id, "run", model.id)
    return model.id


def test_an_uploaded_tune_as_geostudio_shows_it(inside: Api, ann: httpx.Client) -> None:
    tune_id = upload(ann, model_input_data_spec=SPEC, post_processing={"cloud_masking": "True"})
    assert re.fullmatch(r"geotune-[0-9a-z]{22}", tune_id)
    tune = ann.get(f"{TUNES}/{tune_id}").json()
    expected = {
        "id": tune_id,
        "name": "burn-scars",
        "description": "Fire",
        "status": "Pending",
        "active": True,
        "created_by": ANN,
        "dataset_id": "",
        "task": None,
        "shared": False,
        "error": None,
        "logs_presigned_url": None,
        "train_options": {
            "model_input_data_spec": SPEC,
            "post_processing": {"cloud_masking": "True"},
        },
    }
    assert {key: tune[key] for key in expected} == expected
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", tune["created_at"])
    (wish,) = inside.installation.catalog.onboardings(10)  # a run is to take it up
    assert (wish.kind, wish.id, wish.owner) == ("tune", tune_id, ANN)
    metrics = ann.get(f"{TUNES}/{tune_id}/metrics").json()
    assert (metrics["id"], metrics["status"], metrics["runs"]) == (tune_id, "Pending", [])
    assert ann.get(f"{TUNES}/{tune_id}/download").status_code == 409


def test_status_words_and_the_reason_of_a_failure(inside: Api, ann: httpx.Client) -> None:
    tune_id = upload(ann)
    catalog = inside.installation.catalog
    catalog.claim_onboarding("tune", tune_id, "run")
    assert ann.get(f"{TUNES}/{tune_id}").json()["status"] == "In_progress"
    catalog.fail_onboarding("tune", tune_id, "The checkpoint is none.", "run")
    tune = ann.get(f"{TUNES}/{tune_id}").json()
    assert (tune["status"], tune["error"]) == ("Failed", "The checkpoint is none.")


def test_a_finished_tune_is_downloaded_and_tried_out(
    inside: Api, ann: httpx.Client, bundle_folder: Path
) -> None:
    style = {"segmentation": [{"color": "#ff0000", "label": "Fire", "quantity": "1"}]}
    tune_id = upload(
        ann,
        data_connector_config=[{"connector": "sentinel_aws"}],
        geoserver_push=[{"layer_name": "pred", "geoserver_style": style}],
    )
    wish = {"location": "Vienna", "spatial_domain": SCENE, "temporal_domain": ["2024-01-01"]}
    early = ann.post(f"{TUNES}/{tune_id}/try-out", json=wish)
    assert (early.status_code, early.json()["detail"]) == (
        422,
        {"msg": "Tune in state: Pending cannot be used for inference."},
    )
    model_id = finish(inside, tune_id, bundle_folder)
    tune = ann.get(f"{TUNES}/{tune_id}").json()
    assert (tune["status"], tune["task"]["id"]) == ("Finished", "segmentation")

    links = ann.get(f"{TUNES}/{tune_id}/download").json()
    bare = inside.client(None)
    weights = load_bundle(bundle_folder).weights_path.read_bytes()
    assert bare.get(links["checkpoint_url"]).content == weights
    part = bare.get(links["checkpoint_url"], headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, weights[2:6])
    assert bare.get(links["checkpoint_url"].split("?")[0]).status_code == 401
    assert bare.get(links["checkpoint_url"].replace(tune_id, upload(ann))).status_code == 403

    answer = ann.post(f"{TUNES}/{tune_id}/try-out", json=wish)
    assert answer.status_code == 200, answer.text
    inference = answer.json()
    assert (inference["fine_tuning_id"], inference["model_display_name"]) == (
        tune_id,
        "geofm-sandbox-models",
    )
    assert (inference["description"], inference["location"]) == ("try-out", "Vienna")
    assert "warnings" not in inference, "nobody sent what the tune brought"
    assert inside.installation.catalog.request(inference["id"]).model_id == model_id
    listed = ann.get("/v2/inference", params={"tune_id": tune_id}).json()
    assert [item["id"] for item in listed["results"]] == [inference["id"]]
    own = {"data_connector_config": [{"connector": "sentinel_aws"}], "maxcc": 7}
    answer = ann.post(f"{TUNES}/{tune_id}/try-out", json=wish | own)
    assert answer.json()["warnings"] == [SOURCES, CLOUDS]


def test_the_sandbox_model_runs_a_tune(
    inside: Api, ann: httpx.Client, bob: httpx.Client, bundle_folder: Path
) -> None:
    tune_id = upload(ann)
    finish(inside, tune_id, bundle_folder)
    wish = {"model_display_name": "geofm-sandbox-models", "spatial_domain": SCENE}
    missing = ann.post("/v2/inference", json=wish)
    assert (missing.status_code, missing.json()["detail"]) == (
        422,
        {"msg": "`fine_tuning_id` required to try out experimental model."},
    )
    wish["fine_tuning_id"] = tune_id
    assert ann.post("/v2/inference", json=wish).status_code == 201
    foreign = bob.post("/v2/inference", json=wish)
    assert (foreign.status_code, foreign.json()["detail"]) == (404, "Tune not found")
    wish["fine_tuning_id"] = "../../etc"
    assert ann.post("/v2/inference", json=wish).status_code == 404


def test_a_deleted_tune_is_gone(ann: httpx.Client) -> None:
    tune_id = upload(ann)
    answer = ann.delete(f"{TUNES}/{tune_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    wish = {"location": "x", "spatial_domain": SCENE, "temporal_domain": []}
    for gone in (
        ann.get(f"{TUNES}/{tune_id}"),
        ann.patch(f"{TUNES}/{tune_id}", json={"name": "x"}),
        ann.delete(f"{TUNES}/{tune_id}"),
        ann.get(f"{TUNES}/{tune_id}/download"),
        ann.get(f"{TUNES}/{tune_id}/metrics"),
        ann.post(f"{TUNES}/{tune_id}/try-out", json=wish),
    ):
        assert (gone.status_code, gone.json()["detail"]) == (404, "Tune not found")
    assert ann.get(TUNES).json()["total_records"] == 0


def test_changes_are_partial_and_can_be_empty(ann: httpx.Client) -> None:
    tune_id = upload(ann, post_processing={"cloud_masking": "True"})
    changed = ann.patch(
        f"{TUNES}/{tune_id}", json={"description": "", "train_options": {"post_processing": {}}}
    )
    assert changed.status_code == 200
    document = changed.json()
    assert (document["name"], document["description"]) == ("burn-scars", "")
    assert document["train_options"] == {"post_processing": {}}
    as_the_sdk = {"name": "other", "description": None, "train_options": {}}
    document = ann.patch(f"{TUNES}/{tune_id}", json=as_the_sdk).json()
    assert (document["name"], document["train_options"]) == ("other", {"post_processing": {}})


def test_changes_that_no_bundle_can_be_made_of_are_refused(
    inside: Api, ann: httpx.Client, bundle_folder: Path
) -> None:
    tune_id = upload(ann, model_input_data_spec=SPEC)
    wrong = {"train_options": {"model_input_data_spec": [{"bands": [{"index": 0}]}]}}
    answer = ann.patch(f"{TUNES}/{tune_id}", json=wrong)
    assert (answer.status_code, answer.json()["detail"][:28]) == (
        409,
        "The tune is Pending; change ",
    )
    finish(inside, tune_id, bundle_folder)
    answer = ann.patch(f"{TUNES}/{tune_id}", json=wrong)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == [
        "body",
        "train_options",
        "model_input_data_spec",
        0,
        "bands",
        0,
        "band_name",
    ]
    tune = ann.get(f"{TUNES}/{tune_id}").json()
    assert (tune["status"], tune["train_options"]) == (
        "Finished",
        {"model_input_data_spec": SPEC},
    )


def test_what_a_tune_cannot_have_done_is_told_as_the_tunes(
    inside: Api, ann: httpx.Client, bundle_folder: Path
) -> None:
    tune_id = upload(ann, post_processing={"cloud_masking": "True"})
    finish(inside, tune_id, bundle_folder)
    wrong = {"train_options": {"post_processing": {"ocean_masking": "True"}}}
    answer = ann.patch(f"{TUNES}/{tune_id}", json=wrong)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (
        422,
        ["body", "train_options", "post_processing", "ocean_masking"],
    )
    body = {"location": "x", "spatial_domain": SCENE, "temporal_domain": []}
    answer = ann.post(f"{TUNES}/{tune_id}/try-out", json=body)
    (error,) = answer.json()["detail"]
    assert (answer.status_code, error["loc"]) == (422, ["body", "post_processing"])
    assert error["msg"].startswith(
        "is left out, and the tune's own cannot be done: cloud_masking needs a band of the scenes"
    )
    answer = ann.post(f"{TUNES}/{tune_id}/try-out", json={**body, "post_processing": {}})
    assert answer.status_code == 200


def test_new_styles_make_the_bundle_anew_from_its_own_files(
    inside: Api, ann: httpx.Client, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / CONFIG).write_text(yaml.safe_dump(config()))
    (folder / CHECKPOINT).write_bytes(b"weights")
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest().model_dump(mode="json")))
    tune_id = upload(ann, model_input_data_spec=INPUTS)
    model_id = finish(inside, tune_id, folder)

    few = {"train_options": {"model_input_data_spec": [{"bands": INPUTS[0]["bands"][:2]}]}}
    answer = ann.patch(f"{TUNES}/{tune_id}", json=few)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["loc"] == ["body", "train_options", "model_input_data_spec", 0, "bands"]
    assert error["msg"].startswith("has no band with index 2, which the model takes")

    answer = ann.patch(f"{TUNES}/{tune_id}", json={"train_options": {"geoserver_push": PUSH}})
    assert (answer.status_code, answer.json()["status"]) == (200, "Pending")
    (wish,) = inside.installation.catalog.onboardings(10)
    assert (wish.id, wish.model_id, wish.options["geoserver_push"]) == (tune_id, model_id, PUSH)
    # Until it is done, the tune goes on as it was.
    body = {"location": "x", "spatial_domain": SCENE, "temporal_domain": []}
    assert ann.post(f"{TUNES}/{tune_id}/try-out", json=body).status_code == 200


def test_one_tenant_sees_nothing_of_another(ann: httpx.Client, bob: httpx.Client) -> None:
    tune_id = upload(ann)
    assert bob.get(f"{TUNES}/{tune_id}").status_code == 404
    assert bob.get(TUNES).json()["total_records"] == 0
    group = ann.post("/v2/groups", json={"name": "fire"}).json()["id"]
    ann.post(f"/v2/groups/{group}/members", json={"user_email": BOB})
    artifact = {"artifact_type": "tune", "artifact_id": tune_id}
    assert ann.post(f"/v2/groups/{group}/artifacts", json=artifact).status_code == 201
    assert bob.get(f"{TUNES}/{tune_id}").json()["shared"] is True
    assert bob.get(TUNES, params={"shared": "false"}).json()["total_records"] == 0
    refused = bob.patch(f"{TUNES}/{tune_id}", json={"name": "mine"})
    assert (refused.status_code, refused.json()["detail"]) == (
        404,
        "Missing permissions to edit this record.",
    )
    assert bob.delete(f"{TUNES}/{tune_id}").status_code == 404


def test_lists_are_searched_sorted_and_paged(ann: httpx.Client) -> None:
    for number in range(27):
        upload(ann, name=f"tune {number:02}")
    page = ann.get(TUNES, params={"limit": 2, "sort": "name", "q": "TUNE 1"}).json()
    assert (page["total_records"], page["page_count"]) == (10, 2)
    assert [tune["name"] for tune in page["results"]] == ["tune 10", "tune 11"]
    assert ann.get(TUNES, params={"limit": 1000}).json()["page_count"] == 27
    assert ann.get(TUNES, params={"status": "Finished"}).json()["results"] == []
    assert ann.get(f"{TUNES}?skip=-1").status_code == 422


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"name": ""}, ["name"]),
        ({"name": "x" * 201}, ["name"]),
        ({"description": None}, ["description"]),
        ({"tune_config_url": "file:///etc/passwd"}, ["tune_config_url"]),
        ({"tune_config_url": "/etc/passwd"}, ["tune_config_url"]),
        ({"tune_checkpoint_url": "http://169.254.169.254/latest"}, ["tune_checkpoint_url"]),
        ({"tune_checkpoint_url": "ftp://example.org/a"}, ["tune_checkpoint_url"]),
        ({"tune_checkpoint_url": "/vsicurl/http://10.0.0.1/a"}, ["tune_checkpoint_url"]),
        ({"model_input_data_spec": [{"bands": []}]}, ["model_input_data_spec", 0, "bands"]),
        (
            {"geoserver_push": [{"geoserver_style": {"segmentation": [{"quantity": "x"}]}}]},
            ["geoserver_push", 0, "geoserver_style", "segmentation", 0, "quantity"],
        ),
        ({"post_processing": {"a": "x" * 300_000}}, ["post_processing"]),
        ({"post_processing": {"ocean_masking": "True"}}, ["post_processing", "ocean_masking"]),
    ],
)
def test_bad_uploads_name_the_field_and_leave_no_row(
    ann: httpx.Client, change: dict[str, Any], location: list[Any]
) -> None:
    body = {"name": "a", "description": "b", **FILES, **change}
    answer = ann.post(UPLOAD, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *location]
    assert ann.get(TUNES).json()["total_records"] == 0


def test_files_uploaded_here_are_taken_by_their_download_links(
    inside: Api, ann: httpx.Client, bob: httpx.Client
) -> None:
    links = ann.get("/v2/file-share", params={"object_name": "config_deploy.yaml"}).json()
    early = ann.post(
        UPLOAD,
        json={"name": "a", "description": "", **FILES, "tune_config_url": links["download_url"]},
    )
    assert early.json()["detail"][0]["loc"] == ["body", "tune_config_url"]
    assert "nothing was uploaded as config_deploy.yaml yet" in early.text
    inside.client(None).put(links["upload_url"], content=b"model: {}")
    upload(ann, tune_config_url=links["download_url"])
    foreign = bob.post(
        UPLOAD,
        json={"name": "a", "description": "", **FILES, "tune_config_url": links["download_url"]},
    )
    assert foreign.status_code == 422


def test_the_bundle_of_anothers_tune_is_no_way_around(
    inside: Api, ann: httpx.Client, bob: httpx.Client, bundle_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    manifest = yaml.safe_load((copy / "bundle.yaml").read_text())
    (copy / "bundle.yaml").write_text(yaml.safe_dump(manifest | {"name": "another"}))
    tune_id = upload(ann)
    model_id = finish(inside, tune_id, copy)
    for reference in ({"model_id": model_id}, {"model_display_name": "another"}):
        answer = bob.post("/v2/inference", json={**reference, "spatial_domain": SCENE})
        assert answer.status_code == 404
    assert bob.get(f"/v2/models/{model_id}").status_code == 404
    assert "another" not in bob.get("/v2/models").text


def test_tunes_and_models_stand_in_one_list(ann: httpx.Client, bob: httpx.Client) -> None:
    tunes = [upload(ann) for _ in range(2)]
    made = ann.post("/v2/models", json={"display_name": "own-model"}).json()
    upload(bob)
    both = ann.get("/v2/tunes-and-models").json()
    assert both["total_records"] == both["page_count"] == len(both["results"])
    assert [item["id"] for item in both["results"][:3]] == [*reversed(tunes), made["id"]]
    model = both["results"][2]
    assert (model["name"], model["model_type"], model["active_"]) == ("own-model", "Model", True)
    pages = [
        ann.get("/v2/tunes-and-models", params={"limit": 1, "skip": n}).json()["results"][0]["id"]
        for n in range(both["total_records"])
    ]
    assert pages == [item["id"] for item in both["results"]]
    only = ann.get("/v2/tunes-and-models", params={"type": "Tune", "limit": 1}).json()
    assert (only["total_records"], only["page_count"]) == (2, 1)
    assert ann.get("/v2/tunes-and-models?type=Both").status_code == 422
