"""Users' processors over REST, as GEOStudio's clients and its guide ask for them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any
from uuid import uuid4

import httpx
import pytest

from geostudio_dagster.catalog.states import PROCESSOR
from geostudio_dagster.gateway.v2.inference_schemas import GeoServerPush
from geostudio_dagster.gateway.v2.pushed_layers import pushed_layers
from geostudio_dagster.planning.output_styles import LineMark, PolygonMark, VectorStyle
from geostudio_dagster.planning.request import OutputLayer
from geostudio_dagster_tests.gateway.v2.requesting import post as submit
from geostudio_dagster_tests.gateway.v2.requesting import wish
from geostudio_dagster_tests.gateway.v2.serving import BOB, Api
from geostudio_dagster_tests.scripts import COUNT, DROP

URL = "/v2/generic-processor"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def post(
    client: httpx.Client,
    metadata: object,
    script: str = DROP,
    *,
    field: str = "generic_processor_metadata",
    name: str = "drop.py",
) -> httpx.Response:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    files = {"generic_processor_file": (name, script.encode(), "text/x-python")}
    return client.post(URL, data={field: text}, files=files)


def made(client: httpx.Client, name: str = "drop-class", script: str = DROP) -> dict[str, Any]:
    answer = post(client, {"name": name}, script)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("field", ["generic_processor_metadata", "generic_processor"])
def test_an_upload_under_either_name_is_created(ann: httpx.Client, field: str) -> None:
    metadata = {
        "name": "drop-class",
        "description": "Takes a class away.",
        "processor_parameters": {"drop": 1, "note": None, "nested": {"a": [True, "ö"]}},
    }
    answer = post(ann, metadata, field=field)
    assert answer.status_code == 201, answer.text
    document = answer.json()
    assert {key: document[key] for key in metadata} == metadata
    assert document["status"] == "FINISHED"
    assert document["active"] is True
    assert document["created_by"] == "ann@example.org"
    assert document["processor_file_path"] == f"{document['id']}/drop.py"
    assert TIME.fullmatch(document["created_at"])
    assert TIME.fullmatch(document["updated_at"])
    assert document["sha256"] == hashlib.sha256(DROP.encode()).hexdigest()
    assert (document["version"], document["contract"]) == (1, "positional")

    found = ann.get(f"{URL}/{document['id']}").json()
    script = httpx_get(ann, found["processor_presigned_url"])
    assert script.status_code == 200
    assert script.content == DROP.encode()
    assert script.headers["content-disposition"] == 'attachment; filename="drop.py"'
    forged = re.sub("grant=.", "grant=0", found["processor_presigned_url"])
    assert httpx_get(ann, forged).status_code == 403


def httpx_get(client: httpx.Client, url: str) -> httpx.Response:
    """Without a key."""
    return client.get(url, headers={"X-API-Key": ""})


def test_nothing_uploaded_is_an_empty_list(ann: httpx.Client) -> None:
    answer = ann.get(URL)
    assert answer.status_code == 200
    assert answer.json() == {"total_records": 0, "page_count": 0, "results": []}


def test_pages_versions_report_and_deprecation(ann: httpx.Client) -> None:
    first = made(ann)
    assert made(ann)["id"] == first["id"], "the same again is the same version"
    second = made(ann, script=COUNT)
    assert (second["version"], second["contract"]) == (2, "flags")
    made(ann, "other", COUNT)

    page = ann.get(URL, params={"limit": 1, "skip": 1, "sort": "name"}).json()
    assert (page["total_records"], page["page_count"]) == (2, 1)
    assert page["results"][0]["name"] == "other"
    assert page["results"][0]["processor_presigned_url"] is None
    assert ann.get(URL, params={"all_versions": True}).json()["total_records"] == 3
    assert ann.get(URL, params={"q": "OTH"}).json()["total_records"] == 1
    assert ann.get(URL, params={"limit": -1}).status_code == 422

    versions = ann.get(f"{URL}/{first['id']}/versions").json()
    assert [entry["version"] for entry in versions["results"]] == [2, 1]
    report = ann.get(f"{URL}/{second['id']}/report").json()
    assert report["ok"] is True
    assert "rasterio" in report["imports"]
    assert ann.post(f"{URL}/{second['id']}/deprecate").json()["deprecated"] is True


def test_others_see_what_is_shared_with_their_group_only(api: Api) -> None:
    ann, bob = api.client(), api.client(BOB)
    processor = made(ann)
    assert bob.get(f"{URL}/{processor['id']}").status_code == 404
    assert bob.get(URL).json()["results"] == []
    group = ann.post("/v2/groups", json={"name": "floods"}).json()
    ann.post(f"/v2/groups/{group['id']}/members", json={"user_email": BOB})
    grant = {"artifact_type": "generic_processor", "artifact_id": processor["id"]}
    assert ann.post(f"/v2/groups/{group['id']}/artifacts", json=grant).status_code == 201
    assert bob.get(f"{URL}/{processor['id']}").json()["name"] == "drop-class"
    assert bob.get(URL).json()["total_records"] == 1
    assert bob.delete(f"{URL}/{processor['id']}").status_code == 404


def test_delete_takes_it_away(inside: Api, ann: httpx.Client) -> None:
    processor = made(ann)
    answer = ann.delete(f"{URL}/{processor['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    missing = ann.get(f"{URL}/{processor['id']}")
    assert missing.status_code == 404
    assert missing.json()["detail"] == "Generic Processor component not found"
    assert ann.delete(f"{URL}/{processor['id']}").status_code == 404
    assert ann.get(f"{URL}/{uuid4()}").status_code == 404
    scripts = inside.installation.settings.storage_root / "_processors"
    assert list(scripts.iterdir()) == []
    assert made(ann)["version"] == 2


@pytest.mark.parametrize(
    ("metadata", "script", "name", "status", "words"),
    [
        ("{name: 1}", DROP, "a.py", 422, "Expecting property name enclosed in double quotes"),
        ({"description": "x"}, DROP, "a.py", 422, "Field required"),
        ({"name": "n" * 101}, DROP, "a.py", 422, "at most 100 characters"),
        ({"name": "a@2"}, DROP, "a.py", 422, "has @ or /"),
        ({"name": "a"}, DROP, "a.txt", 422, "does not end in .py"),
        ({"name": "a"}, DROP, "../a.py", 422, "no plain file name"),
        ({"name": "a"}, "def f(:", "a.py", 422, "does not parse"),
        ({"name": "a"}, "print(1)", "a.py", 422, "no entry point"),
        ({"name": "a"}, "", "a.py", 422, "is empty"),
        ({"name": "a"}, "#" * 10_000_001, "a.py", 413, "at most 10000000 are taken"),
        ({"name": "a", "limits": {"wall": 5}}, DROP, "a.py", 422, "there is no such limit"),
        (
            {"name": "a", "parameters_schema": {"type": "objekt"}},
            DROP,
            "a.py",
            422,
            "is not a JSON Schema",
        ),
        (
            {"name": "a", "parameters_schema": {"properties": {"x": {"pattern": "(a+)+$"}}}},
            DROP,
            "a.py",
            422,
            "uses pattern",
        ),
        ({"name": "a", "processor_parameters": [1]}, DROP, "a.py", 422, "valid dictionary"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_reason(
    ann: httpx.Client, *, metadata: object, script: str, name: str, status: int, words: str
) -> None:
    answer = post(ann, metadata, script, name=name)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.text
    assert ann.get(URL).json()["total_records"] == 0


def test_a_refused_script_comes_with_its_report(ann: httpx.Client) -> None:
    answer = post(ann, {"name": "a"}, "print(1)")
    assert answer.json()["report"]["problems"] == [answer.json()["detail"]]
    assert answer.json()["report"]["ok"] is False
    no_metadata = ann.post(URL, files={"generic_processor_file": ("a.py", DROP.encode())})
    assert no_metadata.status_code == 422
    assert no_metadata.json()["detail"][0]["loc"] == ["body", "generic_processor_metadata"]
    no_file = ann.post(URL, files={"generic_processor_metadata": (None, '{"name": "a"}')})
    assert no_file.json()["detail"][0]["loc"] == ["body", "generic_processor_file"]


def test_nobody_uploads_without_a_key(inside: Api) -> None:
    assert post(inside.client(None), {"name": "a"}).status_code == 401


STEPS = ["url-connector", "terratorch-inference", "postprocess-generic", "push-to-geoserver"]
FLOODED = {"color": "#FA4D56", "quantity": "1", "opacity": 1, "label": "no number"}
SEGMENTS = [
    {"color": "#FA4D56", "quantity": 1, "opacity": 0.5, "label": "Flood"},
    {"color": "#808080", "quantity": 0, "opacity": 0, "label": "None"},
    FLOODED,
]
PUSH = {
    "workspace": "geofm",
    "layer_name": "Masked Flood",
    "display_name": "Masked",
    "filepath_key": "",
    "file_suffix": "_masked",
    "geoserver_style": {"segmentation": SEGMENTS},
}


def test_a_request_pins_the_processor_that_it_names(inside: Api, ann: httpx.Client) -> None:
    first = made(ann)
    request = submit(
        ann,
        wish(
            inside,
            generic_processor_id=first["id"],
            generic_processor={"name": "drop-class", "processor_parameters": {"drop": 1}},
            pipeline_steps=[{"process_id": name} for name in [*STEPS[:3], PROCESSOR, STEPS[3]]],
            geoserver_push=[PUSH, {**PUSH, "file_suffix": "", "layer_name": "pred"}],
        ),
    )
    made(ann, script=COUNT)
    catalog = inside.installation.catalog
    (pin,) = catalog.request_processors(request)
    assert pin.processor.id == first["id"]
    assert pin.parameters == {"drop": 1}
    assert pin.position == "after_postprocess"
    (layer,) = catalog.request(request).spec["output_layers"]
    assert (layer["suffix"], layer["name"], layer["title"]) == (
        "_masked.tif",
        "masked_flood",
        "Masked",
    )
    assert [(entry["value"], entry["name"]) for entry in layer["style"]["classes"]] == [
        (1, "Flood"),
        (0, "None"),
    ]
    answer = ann.get(f"/v2/inference/{request}").json()
    assert answer["generic_processor_id"] == first["id"]


def test_before_postprocess_as_the_steps_say(inside: Api, ann: httpx.Client) -> None:
    processor = made(ann)
    steps = [{"process_id": name} for name in [*STEPS[:2], PROCESSOR, *STEPS[2:]]]
    document = wish(inside, generic_processor_id=processor["id"], pipeline_steps=steps)
    (pin,) = inside.installation.catalog.request_processors(submit(ann, document))
    assert pin.position == "before_postprocess"


def test_anothers_processor_is_not_there(inside: Api, ann: httpx.Client, bob: httpx.Client) -> None:
    processor = made(ann)
    answer = bob.post("/v2/inference", json=wish(inside, generic_processor_id=processor["id"]))
    assert answer.status_code == 404
    assert answer.json()["detail"] == "Generic Processor component not found"


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("", None),
        ({"segmentation": [FLOODED]}, None),
        (
            {
                "regression": [
                    {"color": "#000000", "quantity": 5},
                    {"color": "#ffffff", "quantity": 1},
                ]
            },
            {"kind": "ramp", "stops": [(1.0, "#ffffff"), (5.0, "#000000")]},
        ),
        (
            {
                "rgb": [
                    {"label": "RedChannel", "channel": 3, "minValue": 0, "maxValue": 200},
                    {"label": "GreenChannel", "channel": 2},
                    {"label": "BlueChannel", "channel": 1},
                ]
            },
            {"kind": "rgb", "channels": [3, 2, 1], "minimum": 0, "maximum": 200},
        ),
    ],
)
def test_styles_of_pushed_layers_are_ours(style: Any, expected: dict[str, Any] | None) -> None:
    (layer,) = pushed_layers([GeoServerPush(**{**PUSH, "geoserver_style": style})])
    found = OutputLayer.model_validate(layer).style
    if expected is None:
        assert found is None
        return
    document = found.model_dump() if found else {}
    if "stops" in expected:
        document["stops"] = [(stop["value"], stop["colour"]) for stop in document["stops"]]
    assert expected.items() <= {**document, "channels": list(document.get("channels", ()))}.items()


def test_vector_styles_of_pushed_layers_keep_their_plain_values() -> None:
    by_property = {"property_name": "depth", "property_values": [{"value": 1, "output": 2}]}
    style = {
        "point_style": {"well_known_name": "Star", "fill": "#00ff00", "size": 12},
        "line_style": {"stroke": "blue", "stroke_width": by_property},
        "polygon_style": {"fill": "#112233", "fill_opacity": 0.25, "stroke_width": 3},
    }
    push = {**PUSH, "file_suffix": "_floods", "geoserver_style": style}
    (layer,) = pushed_layers([GeoServerPush(**push)])
    made = OutputLayer.model_validate(layer)
    assert made.suffix == "_floods.geojson"
    assert isinstance(made.style, VectorStyle)
    assert (made.style.point.shape, made.style.point.fill, made.style.point.size) == (
        "star",
        "#00ff00",
        12,
    )
    assert made.style.line == LineMark()
    assert made.style.polygon == PolygonMark(fill="#112233", fill_opacity=0.25, stroke_width=3)
