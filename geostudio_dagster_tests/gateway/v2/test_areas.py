"""Areas over REST: sources that administrators describe, advice on them, dry runs and requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster_tests.areas.conftest import AREA, DAY, pixels
from geostudio_dagster_tests.emulators.stac_api import COLLECTION, StacApi, stac_api
from geostudio_dagster_tests.gateway.v2.requesting import post
from geostudio_dagster_tests.gateway.v2.serving import Api

SOURCES, ADVICE = "/v2/data-sources", "/v2/data-advice/lab"
BANDS = ("B02", "B03", "B04", "B08")


@pytest.fixture
def stac(tmp_path: Path) -> Iterator[StacApi]:
    """A STAC API with granules of two days that have the demo model's bands."""
    with stac_api(tmp_path / "stac") as api:
        for day, cloud in (("2024-06-28", 3), (DAY, 40)):
            bands = {name: pixels(seed=n) for n, name in enumerate((*BANDS, "SCL"))}
            api.granule(f"S2-{day}", f"{day}T10:00:00Z", bands, cloud=cloud)
        yield api


def source(api: StacApi, **changes: Any) -> dict[str, Any]:
    """A description of it."""
    return {
        "connector": "lab",
        "collection_name": "sentinel",
        "bands": [{"band_name": name} for name in (*BANDS, "SCL")],
        "resolution_m": 10,
        "cloud_masking": {"band": "SCL", "encoding": "sentinel2_scl"},
        "search": {"type": "stac", "url": api.url, "collection": COLLECTION},
        **changes,
    }


@pytest.fixture
def described(root: httpx.Client, stac: StacApi) -> dict[str, Any]:
    """The source, described by an administrator."""
    answer = root.post(SOURCES, json=source(stac))
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def wish(api: Api, **more: Any) -> dict[str, Any]:
    """A request for the area and the day."""
    domain = {"bbox": [AREA]}
    return {
        "model_id": api.model.id,
        "spatial_domain": domain,
        "temporal_domain": [DAY],
        **more,
    }


def test_an_administrators_source_is_served_to_everybody(
    ann: httpx.Client, described: dict[str, Any]
) -> None:
    assert described["served"] is True
    (entry,) = ann.get(SOURCES, params={"connector": "lab"}).json()["results"]
    assert entry == described
    assert ann.get(ADVICE).json() == {"results": ["sentinel"]}


def test_a_users_own_source_is_not_served(inside: Api, ann: httpx.Client, stac: StacApi) -> None:
    answer = ann.post(SOURCES, json=source(stac))
    assert (answer.status_code, answer.json()["served"]) == (201, False)
    told = ann.post("/v2/inference/dry-run", json=wish(inside)).json()
    assert "no data source for areas" in told["problems"][0]
    assert stac.searches == []


def test_a_known_collection_is_served_once_it_is_said_how(
    ann: httpx.Client, root: httpx.Client, stac: StacApi
) -> None:
    names = {"connector": "sentinel_aws", "collection_name": "sentinel-2-l2a"}
    search = source(stac)["search"]
    made = root.post(SOURCES, json={**names, "bands": [], "search": search})
    assert (made.status_code, made.json()["served"]) == (201, True)
    (entry,) = ann.get(SOURCES, params={"connector": "sentinel_aws"}).json()["results"]
    assert entry["id"] == made.json()["id"]
    assert root.post(SOURCES, json={**names, "bands": []}).status_code == 409


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"search": {"type": "stac", "url": "http://10.0.0.1/", "collection": "s"}}, "search.url"),
        ({"search": {"type": "stac", "url": "ftp://a.org/", "collection": "s"}}, "search.url"),
        ({"search": {"type": "stac", "url": "https://u:p@a.org/", "collection": "s"}},
         "search.url"),
        ({"search": {"type": "stac", "url": "https://a.org/"}}, "search.collection"),
        ({"search": {"type": "stac", "url": "https://a.org/", "collection": "s", "x": 1}},
         "search.x"),
        ({"resolution_m": None}, "resolution_m"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_searched_is_refused(
    root: httpx.Client, stac: StacApi, changes: dict[str, Any], field: str
) -> None:
    answer = root.post(SOURCES, json=source(stac, **changes))
    assert answer.status_code == 422, answer.text
    assert ".".join(map(str, answer.json()["detail"][0]["loc"])) == f"body.{field}"


def test_a_dry_run_is_the_plan(inside: Api, ann: httpx.Client, described: dict[str, Any]) -> None:
    document = wish(inside, temporal_domain=["2024-06-01_2024-06-30", "2024-08-01"], task_size=256)
    told = ann.post("/v2/inference/dry-run", json=document).json()
    assert (told["admissible"], told["problems"]) == (True, [])
    plan = told["plan"]
    assert plan["dates"] == ["2024-06-28", DAY]
    assert plan["missing"] == ["2024-08-01: there is no data of these areas."]
    assert inside.installation.catalog.requests() == []
    request = post(ann, document)
    plan_request(inside.installation, request)
    record = inside.installation.catalog.request(request)
    assert record.n_tasks == plan["tasks"] == 8
    for name in ("tasks", "shards", "mpx", "patches", "dates", "missing", "input_bytes"):
        assert record.estimate[name] == plan[name]


def test_clouds_and_masks_are_those_of_the_source(
    inside: Api, ann: httpx.Client, described: dict[str, Any]
) -> None:
    document = wish(inside, maxcc=20, post_processing={"cloud_masking": "True"})
    told = ann.post("/v2/inference/dry-run", json=document).json()
    assert "cloudier than 20 %" in told["problems"][0]
    assert "the nearest dates are 2024-06-28" in told["problems"][0]
    assert told["warnings"] == []
    document["temporal_domain"] = ["2024-06-28"]
    request = post(ann, document)
    spec = inside.installation.catalog.request(request).spec
    assert spec["source"] == {"connector": "lab", "collection": "sentinel"}
    assert spec["maxcc"] == 20
    assert spec["masking"]["band"] == "SCL"
    assert ann.get(f"/v2/inference/{request}").json()["maxcc"] == 20


def test_a_source_that_is_named_but_not_searched_is_refused(
    inside: Api, ann: httpx.Client, described: dict[str, Any]
) -> None:
    spec = [{"connector": "sentinelhub", "collection": "s2_l2a", "bands": []}]
    answer = ann.post("/v2/inference", json=wish(inside, model_input_data_spec=spec))
    assert answer.status_code == 422
    assert "use lab sentinel" in answer.text


def test_advice_tells_dates_items_and_clouds(ann: httpx.Client, described: dict[str, Any]) -> None:
    question = {
        "collections": ["sentinel"],
        "dates": ["2024-06-29"],
        "bbox": [AREA, [0, 0, 1, 1]],
        "maxcc": 80,
        "pre_days": 1,
        "post_days": 1,
    }
    here, elsewhere = ann.post(ADVICE, json=question).json()["results"]
    assert here["bbox"] == AREA
    assert here["unique_dates"] == ["2024-06-28", DAY]
    assert here["available_data"][1] == {
        "id": f"S2-{DAY}",
        "date": DAY,
        "datetime": f"{DAY}T10:00:00Z",
        "cloud_cover": 40,
        "collection": "sentinel",
    }
    assert here["message"] == (
        "The modalities sentinel do not have any data for the selected dates. Try the Bef_Days: "
        f"2024-06-28 or Aft_Days: {DAY}"
    )
    assert (elsewhere["unique_dates"], elsewhere["available_data"]) == ([], [])
    (on_the_day,) = ann.post(ADVICE, json=question | {"dates": [DAY], "bbox": [AREA]}).json()[
        "results"
    ]
    assert on_the_day["message"] == ""
    (clear,) = ann.post(ADVICE, json=question | {"bbox": [AREA], "maxcc": 10}).json()["results"]
    assert clear["unique_dates"] == ["2024-06-28"]


def test_advice_of_a_polygon_and_of_an_api_that_fails(
    ann: httpx.Client, stac: StacApi, described: dict[str, Any]
) -> None:
    polygon = "POLYGON ((15.01 47.82, 15.02 47.82, 15.02 47.83, 15.01 47.82))"
    question = {"collections": ["sentinel"], "dates": [DAY], "area_polygon": polygon}
    (told,) = ann.post(ADVICE, json=question).json()["results"]
    assert told["unique_dates"] == [DAY]
    stac.refusals = [(500, {})]
    (failed,) = ann.post(ADVICE, json=question).json()["results"]
    assert "cannot be searched" in failed["message"]
    (nowhere,) = ann.post(ADVICE, json=question | {"area_polygon": None}).json()["results"]
    assert "bbox or area_polygon" in nowhere["message"]
