"""Masks are made or refused, and every field that changes nothing is told: never a wrong map."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import rasterio
from dagster import DagsterInstance

from geostudio_dagster.catalog import Viewer
from geostudio_dagster.gateway.v2 import without_effect as told
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of
from geostudio_dagster_tests.gateway.v2.requesting import URL, post, wish
from geostudio_dagster_tests.gateway.v2.serving import Api

BY_SCL = {"band": "SCL", "encoding": "sentinel2_scl"}
RADAR = [{"band_name": "vv"}, {"band_name": "vh"}]
OPTICAL = [{"band_name": "blue"}, {"band_name": "scl"}]
SPEC = [
    {
        "connector": "sentinel_aws",
        "collection": "sentinel-2-l2a",
        "bands": [{"index": "0", "band_name": "blue"}, {"index": "4", "band_name": "scl"}],
    }
]


@pytest.mark.parametrize("wished", ["True", "true", True, BY_SCL])
def test_a_mask_is_understood_in_all_the_ways_that_clients_write_it(
    inside: Api, ann: httpx.Client, wished: Any
) -> None:
    document = wish(inside, post_processing={"cloud_masking": wished}, model_input_data_spec=SPEC)
    request_id = post(ann, document)
    masking = inside.installation.catalog.request(request_id).spec["masking"]
    assert masking == {
        "band": "SCL",
        "index": 4,
        "encoding": "sentinel2_scl",
        "kinds": ["cloud"],
    }


@pytest.mark.parametrize(
    ("bands", "index"),
    [
        ([OPTICAL], 1),
        ([RADAR, OPTICAL], 3),
        ([{"0": "vv", "1": "vh", "2": "angle"}, OPTICAL], 4),  # as it once was written
        ([RADAR, [{"band_name": "SCL", "index": 5}]], 5),
        ([RADAR], None),
    ],
)
def test_the_place_of_the_band_counts_the_inputs_before_it(
    inside: Api, ann: httpx.Client, bands: list[Any], index: int | None
) -> None:
    spec = [{"modality_tag": f"m{number}", "bands": own} for number, own in enumerate(bands)]
    options = {"cloud_masking": BY_SCL}
    request_id = post(ann, wish(inside, post_processing=options, model_input_data_spec=spec))
    assert inside.installation.catalog.request(request_id).spec["masking"]["index"] == index


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cloud_masking": "False", "ocean_masking": "False", "snow_ice_masking": None},
        {"cloud_masking": False, "permanent_water_masking": "", "regularization": "none"},
        {"regularization_custom": [], "mask_from_url": {}},
        None,
    ],
)
def test_what_is_switched_off_is_no_wish(
    inside: Api, ann: httpx.Client, options: dict[str, Any] | None
) -> None:
    request_id = post(ann, wish(inside, post_processing=options))
    assert inside.installation.catalog.request(request_id).spec["masking"] is None


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"cloud_masking": "True"}, "cloud_masking", "none is named"),
        ({"snow_ice_masking": True}, "snow_ice_masking", "none is named"),
        ({"cloud_masking": {"band": "SCL", "encoding": "mine"}}, "cloud_masking", "none is named"),
        ({"cloud_masking": "perhaps"}, "cloud_masking", "neither true nor false"),
        ({"ocean_masking": "True"}, "ocean_masking", "map of coasts"),
        ({"permanent_water_masking": True}, "permanent_water_masking", "permanent water"),
        ({"regularization": "True"}, "regularization", "outlines"),
        ({"regularization_custom": [{"name": "x"}]}, "regularization_custom", "outlines"),
        ({"mask_from_url": {"url": URL}}, "mask_from_url", "polygons"),
    ],
)
def test_what_would_make_another_map_is_refused(
    inside: Api, ann: httpx.Client, options: dict[str, Any], field: str, words: str
) -> None:
    for path in ("/v2/inference", "/v2/inference/dry-run"):
        answer = ann.post(path, json=wish(inside, post_processing=options))
        (error,) = answer.json()["detail"]
        assert (answer.status_code, error["loc"]) == (422, ["body", "post_processing", field])
        assert words in error["msg"]
        assert "false" in error["msg"] or "give one" in error["msg"]
    assert inside.installation.catalog.requests() == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sharpening", "'sharpening'"),
        ("9" * 5000, f"'{'9' * 40}'"),
        ("cloud_masking.0", "'cloud_masking.0'"),
        ("", "''"),
    ],
)
@pytest.mark.parametrize("value", [True, "perhaps"])
def test_an_option_that_is_not_known_is_shown_in_the_sentence(
    ann: httpx.Client, inside: Api, name: str, shown: str, value: Any
) -> None:
    answer = ann.post("/v2/inference", json=wish(inside, post_processing={name: value}))
    (error,) = answer.json()["detail"]
    assert (answer.status_code, error["loc"]) == (422, ["body", "post_processing"])
    assert error["msg"].startswith(f"{shown} is not known here; set it to false")


def test_what_a_model_brings_is_told_as_the_models(inside: Api, ann: httpx.Client) -> None:
    catalog, card = inside.installation.catalog, inside.model.id
    viewer = Viewer("tests", admin=True)
    catalog.update_card(viewer, card, {}, {"postprocessing_options": {"ocean_masking": "True"}})
    answer = ann.post("/v2/inference", json=wish(inside))
    (error,) = answer.json()["detail"]
    assert (answer.status_code, error["loc"]) == (422, ["body", "post_processing"])
    assert error["msg"] == (
        "is left out, and the model's own cannot be done: ocean_masking needs a map of coasts, and "
        "there is none here; send one, such as {} for no masks, or have the model changed"
    )
    request_id = post(ann, wish(inside, post_processing={}))
    assert catalog.request(request_id).spec["masking"] is None


@pytest.mark.parametrize(
    ("options", "field"),
    [({"ocean_masking": True}, ["ocean_masking"]), ({"sharpening": "True"}, [])],
)
def test_no_model_is_described_with_what_cannot_be_done(
    ann: httpx.Client, options: dict[str, Any], field: list[str]
) -> None:
    body = {"display_name": "ocean", "postprocessing_options": options}
    answer = ann.post("/v2/models", json=body)
    place = ["body", "postprocessing_options", *field]
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, place)
    fine = {"cloud_masking": "True", "ocean_masking": "False"}
    made = ann.post("/v2/models", json={**body, "postprocessing_options": fine})
    assert (made.status_code, made.json()["postprocessing_options"]) == (201, fine)
    changed = ann.patch(f"/v2/models/{made.json()['id']}", json={"postprocessing_options": options})
    assert (changed.status_code, changed.json()["detail"][0]["loc"]) == (422, place)


def test_every_field_without_effect_is_told_when_posted_and_when_read(
    inside: Api, ann: httpx.Client
) -> None:
    push = {
        "workspace": "geofm",
        "layer_name": "pred",
        "display_name": "Flood",
        "filepath_key": "model_output_image",
        "file_suffix": "",
        "geoserver_style": "",
    }
    document = wish(
        inside,
        maxcc=20,
        model_input_data_spec=SPEC,
        data_connector_config=[{"connector": "sentinel_aws", "collection": "sentinel-2-l2a"}],
        geoserver_push=[push],
        geoserver_layers={"predicted_layers": []},
        inference_output={"output_url": "None"},
        fine_tuning_id="geotune-unknown",
        pipeline_steps=[{"process_id": "url-connector"}],
    )
    document["spatial_domain"]["skip_validation"] = True
    made = ann.post("/v2/inference", json=document).json()
    wanted = {told.BANDS, told.SOURCES, told.CLOUDS, told.VALIDATION, told.LAYERS, told.OUTPUT}
    wanted |= {told.STYLES, told.TUNE}
    assert wanted < set(made["warnings"])
    assert len(made["warnings"]) == len(wanted) + 1  # and the steps that are done all the same
    assert ann.get(f"/v2/inference/{made['id']}").json()["warnings"] == made["warnings"]
    assert ann.post("/v2/inference/dry-run", json=document).json()["warnings"] == made["warnings"]
    plain = ann.post("/v2/inference", json=wish(inside, maxcc=100)).json()
    assert "warnings" not in plain


def test_a_mask_goes_from_the_scene_to_the_map(
    inside: Api, ann: httpx.Client, make_scene: MakeScene
) -> None:
    scene = make_scene("c_2024-05-01.tif", size=256, bands=("B02", "B03", "B04", "B08", "SCL"))
    with rasterio.open(scene, "r+") as file:
        codes = np.full((256, 256), 4, np.uint16)
        codes[:, 128:] = 9
        codes[200:, :] = 11
        codes[:25, :25] = 0
        file.write(codes, 5)
    options = {"cloud_masking": BY_SCL, "snow_ice_masking": "True"}
    request_id = post(ann, wish(inside, scene, post_processing=options))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request_id) == "COMPLETED"
    task = f"{request_id}-task_0"
    with rasterio.open(path_of(inside.installation, task, "masked")) as file:
        found = file.read(1)
    with rasterio.open(path_of(inside.installation, task, "prediction")) as file:
        prediction = file.read(1)
    assert (found[:200, 128:] == 999).all()
    assert (found[200:] == 998).all()
    clear = np.s_[30:200, :128]
    assert (found[clear] == prediction[clear]).all()
    assert (found[:25, :25] == 65535).all()
    archive = zipfile.ZipFile(path_of(inside.installation, task, "archive"))
    assert f"{task}_pred_masked.tif" in archive.namelist()
    (layer,) = [
        item
        for item in ann.get(f"/v2/inference/{request_id}/layers").json()["layers"]
        if item["name"] == "pred"
    ]
    legend = {item["value"]: item for item in layer["style"]["classes"]}
    assert (legend[999]["name"], legend[999]["pixels"]) == ("Clouds", 200 * 128)
    assert legend[998]["pixels"] == 56 * 256
    assert 'quantity="999" label="Clouds"' in layer["sld_body"] or "Clouds" in layer["sld_body"]
    west, south, east, north = layer["bounds"]
    point = {"lon": west + 0.75 * (east - west), "lat": south + 0.7 * (north - south)}
    shown = ann.get(f"/layers/{request_id}/pred/point", params=point).json()
    assert (shown["value"], shown["label"], shown["colour"]) == ([999], "Clouds", "#cccccc")


def test_a_split_scene_is_masked_as_a_whole(
    inside: Api, ann: httpx.Client, make_scene: MakeScene
) -> None:
    scene = make_scene("w_2024-05-01.tif", size=600, bands=("B02", "B03", "B04", "B08", "SCL"))
    codes = np.full((600, 600), 4, np.uint16)
    codes[300:, 400:] = 8
    with rasterio.open(scene, "r+") as file:
        file.write(codes, 5)
    options = {"cloud_masking": BY_SCL}
    request_id = post(ann, wish(inside, scene, post_processing=options, task_size=512))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request_id) == "COMPLETED"
    with rasterio.open(path_of(inside.installation, request_id, "mosaic-0")) as file:
        found = file.read(1)
    assert ((found == 999) == (codes == 8)).all()


def test_a_scene_without_the_band_fails_with_its_reason(
    inside: Api, ann: httpx.Client, make_scene: MakeScene
) -> None:
    scene: Path = make_scene("n_2024-05-01.tif", size=64)
    request_id = post(ann, wish(inside, scene, post_processing={"cloud_masking": BY_SCL}))
    with DagsterInstance.ephemeral() as instance:
        assert Driver(inside.installation, instance).until_over(request_id) == "FAILED"
    (task, _) = ann.get(f"/v2/inference/{request_id}/tasks").json()["tasks"]
    assert "has no band SCL to mask by" in task["error"]


def test_a_tune_beside_a_model_that_is_not_made_of_it_is_refused(
    inside: Api, ann: httpx.Client
) -> None:
    tune = ann.post(
        "/v2/upload-completed-tunes",
        json={
            "name": "other",
            "description": "",
            "tune_config_url": "https://example.org/config_deploy.yaml",
            "tune_checkpoint_url": "https://example.org/best.ckpt",
        },
    ).json()["tune_id"]
    answer = ann.post("/v2/inference", json=wish(inside, fine_tuning_id=tune))
    (error,) = answer.json()["detail"]
    assert (answer.status_code, error["loc"]) == (422, ["body", "fine_tuning_id"])
    assert inside.installation.catalog.requests() == []
