"""Data sources, advice, and the shelves that are empty here."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest

SOURCES, ADVICE = "/v2/data-sources", "/v2/data-advice"
OWN = {"connector": "my_stac", "collection_name": "landsat", "bands": [{"band_name": "B1"}]}


def test_every_source_has_an_id_and_pages_have_a_total(ann: httpx.Client) -> None:
    page = ann.get(SOURCES).json()
    assert page["total_records"] == page["page_count"] == len(page["results"])
    assert len({entry["id"] for entry in page["results"]}) == page["total_records"]
    (entry,) = ann.get(SOURCES, params={"connector": "sentinel_aws"}).json()["results"]
    assert entry["collection_name"] == "sentinel-2-l2a"
    assert [b["band_name"] for b in entry["bands"] if b.get("RGB_band") == "R"] == ["red"]
    assert entry["cloud_masking"] == {"band": "SCL", "encoding": "sentinel2_scl"}
    assert entry["served"] is False  # described, but not fetched from
    second = ann.get(SOURCES, params={"limit": 1, "skip": 1}).json()
    assert second["results"] == [page["results"][1]]
    assert ann.get(SOURCES, params={"collection": "nonsense"}).json() == {
        "total_records": 0,
        "page_count": 0,
        "results": [],
    }
    assert ann.get(f"{SOURCES}?limit=-1").json()["detail"][0]["loc"] == ["query", "limit"]


def test_own_sources_are_ones_own(ann: httpx.Client, bob: httpx.Client, root: httpx.Client) -> None:
    made = ann.post(SOURCES, json=OWN | {"search": {"filter": "x"}})
    assert made.status_code == 201
    source = made.json()
    assert (source["created_by"], source["search"]) == ("ann@example.org", {"filter": "x"})
    assert source in ann.get(SOURCES).json()["results"]
    assert ann.get(f"{ADVICE}/my_stac").json() == {"results": ["landsat"]}
    assert ann.post(SOURCES, json=OWN).status_code == 409
    assert bob.get(SOURCES, params={"connector": "my_stac"}).json()["results"] == []
    assert bob.get(f"{ADVICE}/my_stac").status_code == 404
    assert bob.delete(f"{SOURCES}/{source['id']}").status_code == 404
    removed = ann.delete(f"{SOURCES}/{source['id']}")
    assert (removed.status_code, removed.content) == (204, b"")
    assert ann.delete(f"{SOURCES}/{source['id']}").status_code == 404
    root.post(SOURCES, json=OWN)
    assert len(bob.get(SOURCES, params={"connector": "my_stac"}).json()["results"]) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"connector": ""}, "connector"),
        ({"connector": "a b"}, "connector"),
        ({"collection_name": "x" * 201}, "collection_name"),
        ({"bands": "all"}, "bands"),
        ({"resolution_m": -1}, "resolution_m"),
    ],
)
def test_bad_sources_name_the_field(ann: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = ann.post(SOURCES, json=OWN | change)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][1] == field


def test_a_known_source_is_not_described_twice(ann: httpx.Client) -> None:
    known = {"connector": "sentinel_aws", "collection_name": "sentinel-2-l2a"}
    assert ann.post(SOURCES, json=OWN | known).status_code == 409


def test_an_unknown_connector_is_missing_and_no_mistake_of_ours(ann: httpx.Client) -> None:
    for answer in (
        ann.get(f"{ADVICE}/nonsense"),
        ann.post(f"{ADVICE}/nonsense", json={"collections": ["a"], "dates": ["2024-01-01"]}),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (
            404,
            "There is no data connector nonsense.",
        )


def test_advice_invents_nothing(ann: httpx.Client) -> None:
    wish = {
        "collections": ["s2_l2a"],
        "dates": ["2024-01-01", "2024-02-01_2024-03-01"],
        "bbox": [[16.3, 48.2, 16.4, 48.3], [179, -1, -179, 1]],
        "area_polygon": None,
        "maxcc": 80,
        "pre_days": 1,
        "post_days": 1,
    }
    answer = ann.post(f"{ADVICE}/sentinelhub", json=wish)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [(r["bbox"], r["unique_dates"], r["available_data"]) for r in results] == [
        (box, [], []) for box in wish["bbox"]
    ]
    assert results[0]["message"].startswith("This installation does not search sentinelhub")


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"dates": ["garbage"]}, ["body", "dates"]),
        ({"dates": ["2024-02-30"]}, ["body", "dates"]),
        ({"dates": ["2024-03-01_2024-01-01"]}, ["body", "dates"]),
        ({"dates": []}, ["body", "dates"]),
        ({"bbox": [[200, 95, 1, 2]]}, ["body", "bbox"]),
        ({"bbox": [[1, 2, 3]]}, ["body", "bbox", 0]),
        ({"bbox": [[1, 5, 3, 4]]}, ["body", "bbox"]),
        ({"maxcc": 101}, ["body", "maxcc"]),
        ({"pre_days": -1}, ["body", "pre_days"]),
        ({"collections": ["s9"]}, ["body", "collections", 0]),
    ],
)
def test_bad_questions_name_the_field(
    ann: httpx.Client, change: dict[str, Any], location: list[Any]
) -> None:
    wish = {"collections": ["s2_l2a"], "dates": ["2024-01-01"], "bbox": [[1, 2, 3, 4]]}
    answer = ann.post(f"{ADVICE}/sentinelhub", json=wish | change)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][: len(location)] == location


@pytest.mark.parametrize(
    ("shelf", "missing", "adding"),
    [
        ("datasets", "Dataset not found", "/v2/datasets/onboard"),
        ("base-models", "Base model not found", "/v2/base-models"),
        ("tune-templates", "Template not found", "/v2/tune-templates"),
    ],
)
def test_empty_shelves_say_so(ann: httpx.Client, shelf: str, missing: str, adding: str) -> None:
    empty = {"total_records": 0, "page_count": 0, "results": []}
    assert ann.get(f"/v2/{shelf}", params={"name": "x", "summary": True}).json() == empty
    for method in ("GET", "PATCH", "DELETE"):
        answer = ann.request(method, f"/v2/{shelf}/{uuid4()}")
        assert (answer.status_code, answer.json()["detail"]) == (404, missing)
    answer = ann.post(adding, json={"name": "x"})
    assert answer.status_code == 501
    assert answer.json()["detail"].startswith("Models are not trained here")


def test_nothing_is_trained_here(ann: httpx.Client) -> None:
    for path in ("/v2/submit-tune", "/v2/submit-hpo-tune"):
        assert ann.post(path, json={"name": "x"}).status_code == 501
    assert ann.get("/v2/nonsense").status_code == 404
