"""Lists of requests: whole, filtered, sorted, searched, and within bounds."""

from __future__ import annotations

import httpx
import pytest

from geostudio_dagster_tests.gateway.v2.requesting import planned, post, wish
from geostudio_dagster_tests.gateway.v2.serving import Api

Ids = dict[str, str]


@pytest.fixture
def some(inside: Api, ann: httpx.Client) -> Ids:
    """Thirty requests, a few of them special."""
    ids = {f"plain{n}": post(ann, wish(inside, name=f"plain {n:02d}")) for n in range(27)}
    ids["vienna"] = post(ann, wish(inside, location="vienna", description="Flood of 2024"))
    ids["tune"] = post(ann, wish(inside, fine_tuning_id="geotune-ABC"))
    ids["saved"] = post(ann, wish(inside, demo={"demo": True}, name="50%_off"))
    planned(inside, ids["vienna"], 1)
    return ids


def _ids(client: httpx.Client, **params: object) -> list[str]:
    answer = client.get("/v2/inference", params={"limit": 1000, **params})  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    assert answer.json()["page_count"] == len(answer.json()["results"])
    return [item["id"] for item in answer.json()["results"]]


def test_pages_filters_and_search(some: Ids, inside: Api, ann: httpx.Client) -> None:
    whole = ann.get("/v2/inference").json()
    assert (whole["total_records"], whole["page_count"]) == (30, 25)
    newest_first = list(reversed(some.values()))
    assert _ids(ann) == newest_first
    assert _ids(ann, limit=3, skip=28) == newest_first[28:]
    assert _ids(ann, sort="created_at", limit=1) == [some["plain0"]]
    assert _ids(ann, sort="-name", limit=1) == [some["plain26"]]
    assert _ids(ann, location="vienna") == [some["vienna"]]
    assert _ids(ann, tune_id="geotune-ABC") == _ids(ann, tune_id="geotune-abc") == [some["tune"]]
    assert _ids(ann, saved=True) == [some["saved"]]
    assert len(_ids(ann, saved=False)) == 29
    assert _ids(ann, status="SUBMITTED") == [some["vienna"]]
    assert len(_ids(ann, status=["SUBMITTED", "PENDING"])) == 30
    assert len(_ids(ann, model_id=inside.model.id)) == 30
    assert _ids(ann, model_id="6238a5ea-781a-431e-8668-b0de515ea0c8") == []
    assert len(_ids(ann, created_by="ann@example.org")) == 30
    assert _ids(ann, created_by="bob@example.org") == []
    assert _ids(ann, q="flood of") == [some["vienna"]]
    assert _ids(ann, q="%_OFF") == [some["saved"]]
    assert _ids(ann, q=some["tune"]) == [some["tune"]]
    assert len(_ids(ann, nothing_known="x")) == 30
    middle = ann.get(f"/v2/inference/{some['plain20']}").json()["created_at"]
    assert _ids(ann, created_after=middle) == newest_first[:10]
    assert _ids(ann, created_before=middle) == newest_first[10:]


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        "limit=1001",
        "limit=many",
        "skip=-1",
        "skip=1000001",
        "sort=owner",
        "sort=;drop",
        "status=DONE",
        "model_id=x",
        "saved=perhaps",
        "created_after=yesterday",
        "created_after=0001-01-01T00:00:00%2B23:59",
        "q=" + "x" * 300,
    ],
)
def test_what_a_list_cannot_be_asked_names_the_parameter(ann: httpx.Client, query: str) -> None:
    answer = ann.get(f"/v2/inference?{query}")
    assert answer.status_code == 422, answer.text
    name = query.partition("=")[0]
    assert name in answer.json()["detail"][0]["loc"]


def test_a_member_of_a_group_reads_but_does_not_change(
    inside: Api, ann: httpx.Client, bob: httpx.Client
) -> None:
    request = post(ann, wish(inside))
    group = ann.post("/v2/groups", json={"name": "team"}).json()["id"]
    ann.post(f"/v2/groups/{group}/members", json={"user_email": "bob@example.org"})
    shared = {"artifact_type": "inference_run", "artifact_id": request}
    assert ann.post(f"/v2/groups/{group}/artifacts", json=shared).status_code < 300
    assert bob.get(f"/v2/inference/{request}").status_code == 200
    assert _ids(bob) == [request]
    assert bob.get(f"/v2/inference/{request}/tasks").status_code == 200
    assert bob.delete(f"/v2/inference/{request}").status_code == 404
    assert bob.post(f"/v2/inference/{request}/cancel").status_code == 404
