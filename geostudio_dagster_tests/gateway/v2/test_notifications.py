"""Notifications: who may send them, what they change (nothing), how they are read."""

from __future__ import annotations

import json
import threading
from typing import Any
from uuid import uuid4

import httpx
import pytest

from geostudio_dagster_tests.conftest import shared_or_skip
from geostudio_dagster_tests.gateway.v2.requesting import planned, post, published, wish, worked
from geostudio_dagster_tests.gateway.v2.serving import BOB, ROOT, Api

SLD = "<StyledLayerDescriptor>evil</StyledLayerDescriptor>"


def message(event_id: str, /, **more: Any) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "detail_type": "Inf:Task:Notify",
        "source": "com.example.inference",
        "timestamp": "2026-11-20T17:31:47Z",
        "detail": {"message": "half of it is done"},
        **more,
    }


def listed(client: httpx.Client, event_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/v2/notifications/{event_id}", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def state_of(client: httpx.Client, request_id: str) -> dict[str, Any]:
    """A request as its owner sees it, without the links, whose end moves with the clock."""
    document: dict[str, Any] = client.get(f"/v2/inference/{request_id}").json()
    return {key: value for key, value in document.items() if key != "map_url"}


@pytest.fixture
def request_id(inside: Api, ann: httpx.Client) -> str:
    """A request of Ann's."""
    return post(ann, wish(inside))


def test_a_notification_is_kept_and_comes_back_as_it_was_sent(
    ann: httpx.Client, request_id: str
) -> None:
    made = ann.post("/v2/notifications", json=message(request_id))
    assert made.status_code == 201
    assert made.json() == {
        "id": made.json()["id"],
        "event_id": request_id,
        "source": "com.example.inference",
        "detail_type": "Inf:Task:Notify",
        "timestamp": "2026-11-20T17:31:47.000000Z",
        "detail": {"message": "half of it is done", "error": None, "status": None},
    }
    assert listed(ann, request_id)[0] == made.json()
    assert listed(ann, request_id, source="com.example.inference") == [made.json()]
    assert listed(ann, request_id, source="another") == []


def test_what_happens_is_told_in_the_form_of_upstreams_list(
    inside: Api, ann: httpx.Client, request_id: str
) -> None:
    golden = json.loads(shared_or_skip("golden/notifications.json").read_text())
    planned(inside, request_id, 3)
    worked(inside, request_id, failing=[1])
    document = ann.get(f"/v2/notifications/{request_id}").json()
    assert set(document) == set(golden)
    assert document["total_records"] == document["page_count"] == len(document["results"])
    for item in document["results"]:
        assert set(item) == set(golden["results"][0])
        assert set(item["detail"]) >= set(golden["results"][0]["detail"])
        assert item["event_id"] == request_id
    oldest = [item["detail"]["message"] for item in reversed(document["results"])]
    assert oldest[0] == "Planning inference tasks .."
    assert "Inference tasks added to queue." in oldest
    types = {item["detail_type"] for item in document["results"]}
    assert types >= {"Inf:Task:Notify", "Inf:Task:Updated", "Inf:Task:Error"}


def test_pages_beyond_25_and_true_totals(ann: httpx.Client, request_id: str) -> None:
    """Upstream says total_records 0, whatever there is."""
    for number in range(30):
        detail = {"message": str(number)}
        ann.post("/v2/notifications", json=message(request_id, detail=detail))
    total = ann.get(f"/v2/notifications/{request_id}?limit=1").json()["total_records"]
    assert total >= 31
    everything = listed(ann, request_id, limit=1000)
    assert len(everything) == total
    assert listed(ann, request_id, limit=7, skip=5) == everything[5:12]
    assert listed(ann, request_id, skip=total) == []


def test_nobody_tells_a_foreign_request_anything(
    inside: Api, ann: httpx.Client, bob: httpx.Client, root: httpx.Client, request_id: str
) -> None:
    """Reference S-9: upstream lets any user post layers and styles into any request."""
    before = state_of(ann, request_id)
    evil = message(
        request_id,
        detail_type="Inf:Task:LayerReady",
        detail={"sld_body": SLD, "uri": "geofm:evil"},
    )
    for document in (evil, {**evil, "event_id": str(uuid4()), "inference_id": request_id}):
        answer = bob.post("/v2/notifications", json=document)
        assert answer.status_code == 404
        assert answer.json()["detail"] == f"Inference with event>({request_id}) Not Found."
    assert state_of(ann, request_id) == before
    assert SLD not in ann.get(f"/v2/notifications/{request_id}").text
    assert listed(bob, request_id) == []
    assert bob.get(f"/v2/async/notify/{request_id}").status_code == 404
    assert root.post("/v2/notifications", json=evil).status_code == 201


@pytest.mark.parametrize(
    "kind", ["Inf:Task:Complete", "Inf:Task:Failed", "Inf:Task:PendingGeoserver", "anything"]
)
def test_no_status_follows_from_a_notification(
    ann: httpx.Client, request_id: str, kind: str
) -> None:
    """Reference S-9, 1.6: statuses by best-effort webhook, one of them always a 422."""
    before = state_of(ann, request_id)
    detail = {"status": "FAILED", "error": "boom", "layers": [{"uri": "geofm:evil"}]}
    answer = ann.post(
        "/v2/notifications", json=message(request_id, detail_type=kind, detail=detail)
    )
    assert answer.status_code == 201
    assert state_of(ann, request_id) == before


def test_an_event_of_its_own_names_the_request_beside(
    ann: httpx.Client, bob: httpx.Client, request_id: str
) -> None:
    event = str(uuid4())
    made = ann.post("/v2/notifications", json=message(event, inference_id=request_id))
    assert made.status_code == 201
    assert listed(ann, event) == [made.json()]
    assert listed(bob, event) == []


def test_unknown_and_deleted_requests_are_404(ann: httpx.Client, request_id: str) -> None:
    assert ann.post("/v2/notifications", json=message(str(uuid4()))).status_code == 404
    assert listed(ann, str(uuid4())) == []
    assert ann.delete(f"/v2/inference/{request_id}").status_code == 204
    assert ann.post("/v2/notifications", json=message(request_id)).status_code == 404
    assert listed(ann, request_id) == []


def test_an_empty_detail_is_412(ann: httpx.Client, request_id: str) -> None:
    answer = ann.post("/v2/notifications", json=message(request_id, detail={}))
    assert answer.status_code == 412
    assert "detail is empty" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", "x"),
        ("event_id", None),
        ("detail_type", ""),
        ("detail_type", "x" * 101),
        ("source", 5),
        ("timestamp", "yesterday"),
        ("timestamp", "0001-01-01T00:00:00+14:00"),
        ("timestamp", "9999-12-31T23:59:59-14:00"),
        ("timestamp", 1e30),
        ("detail", []),
        ("detail", {"message": "x" * 70_000}),
        ("detail", {"message": "a\0b"}),
        ("inference_id", "../x"),
    ],
)
def test_bad_input_names_the_field_and_leaves_no_row(
    ann: httpx.Client, request_id: str, field: str, value: object
) -> None:
    before = listed(ann, request_id)
    answer = ann.post("/v2/notifications", json=message(request_id, **{field: value}))
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][:2] == ["body", field]
    assert listed(ann, request_id) == before


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=1001", "skip=-1", "limit=x", "source=" + "x" * 101]
)
def test_pages_out_of_bounds_are_422(ann: httpx.Client, request_id: str, query: str) -> None:
    assert ann.get(f"/v2/notifications/{request_id}?{query}").status_code == 422


def test_the_stream_has_upstreams_shape_live_and_ends_with_the_request(api: Api) -> None:
    ann = api.client()
    request_id = post(ann, wish(api))

    def later() -> None:
        api.client().post("/v2/notifications", json=message(request_id))
        planned(api, request_id, 1)
        worked(api, request_id)
        published(api, request_id)

    got: list[dict[str, Any]] = []
    latest = ""
    with ann.stream("GET", f"/v2/async/notify/{request_id}") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        thread = threading.Thread(target=later)
        for line in stream.iter_lines():
            if line.startswith("id:"):
                latest = line.removeprefix("id: ")
            if line.startswith("data:"):
                got.append(json.loads(line.removeprefix("data: ")))
                if len(got) == 1:
                    thread.start()
        thread.join()
    assert all(set(item) == {"detail_type", "status", "data"} for item in got)
    messages = [item["data"]["message"] for item in got]
    assert messages[0] == "Planning inference tasks .."
    assert "half of it is done" in messages
    assert got[-1]["detail_type"] == "Inf:Task:Complete"
    assert got[-1]["status"] == ann.get(f"/v2/inference/{request_id}").json()["status"]
    again = ann.get(f"/v2/async/notify/{request_id}", headers={"Last-Event-ID": latest})
    assert again.status_code == 204


def test_the_stream_is_for_the_owner(api: Api) -> None:
    """Reference S-9: upstream's sockets need no credentials at all."""
    request_id = post(api.client(), wish(api))
    for address in (f"/v2/async/notify/{request_id}", f"/v2/inference/{request_id}/events"):
        assert api.client(None).get(address).status_code == 401
        assert api.client(BOB).get(address).status_code == 404
        with api.client(ROOT, admin=True).stream("GET", address) as stream:
            assert stream.status_code == 200
    assert api.client(None).get(f"/ws/inference/{request_id}").status_code == 404
