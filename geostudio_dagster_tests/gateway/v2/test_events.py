"""A request's events as a stream: from the beginning, from anywhere, until the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx

from geostudio_dagster_tests.gateway.v2.requesting import planned, post, published, wish, worked
from geostudio_dagster_tests.gateway.v2.serving import PATIENCE_S, Api

Event = tuple[int, str, dict[str, Any]]


def _events(answer: httpx.Response) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "event" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
        fields = {}


def _stream(client: httpx.Client, request: str, **headers: str) -> list[Event]:
    with client.stream("GET", f"/v2/inference/{request}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(_events(answer))


def _finished(api: Api, client: httpx.Client) -> str:
    request = post(client, wish(api))
    planned(api, request, 2)
    worked(api, request, failing=[1])
    published(api, request)
    return request


def test_everything_that_happened_then_done(inside: Api, ann: httpx.Client) -> None:
    request = _finished(inside, ann)
    told = _stream(ann, request)
    names = [name for _, name, _ in told]
    assert names[0] == "created"
    for name in ("planned", "task_finished", "task_failed", "layer_ready"):
        assert names.count(name) == 1, names
    assert names[-1] == "done"
    assert told[-1][2]["status"] == "COMPLETED_WITH_ERRORS"
    finished = next(data for _, name, data in told if name == "task_finished")
    assert finished["detail"] == {"task_id": f"{request}-task_0"}
    assert finished["at"].endswith("Z")


def test_a_lost_connection_goes_on_after_the_last_event(inside: Api, ann: httpx.Client) -> None:
    request = _finished(inside, ann)
    told = _stream(ann, request)
    middle = told[3][0]
    assert _stream(ann, request, **{"Last-Event-ID": str(middle)}) == told[4:]
    # Nothing is left to be told: 204 keeps a browser from asking again.
    last = ann.get(f"/v2/inference/{request}/events", headers={"Last-Event-ID": str(told[-1][0])})
    assert last.status_code == 204
    bad = ann.get(f"/v2/inference/{request}/events", headers={"Last-Event-ID": "x"})
    assert bad.status_code == 422


def test_events_come_while_they_happen(api: Api) -> None:
    client = api.client()
    request = post(client, wish(api))
    told: list[Event] = []
    seen = threading.Event()

    def listen() -> None:
        with api.client().stream("GET", f"/v2/inference/{request}/events") as answer:
            for event in _events(answer):
                told.append(event)
                if event[1] == "created":
                    seen.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert seen.wait(PATIENCE_S)
    planned(api, request, 1)
    worked(api, request)
    published(api, request)
    listener.join(PATIENCE_S)
    assert not listener.is_alive()
    assert [name for _, name, _ in told][-1] == "done"
    assert told[-1][2]["status"] == "COMPLETED"


def test_a_stream_is_for_its_owner_or_by_its_link(
    inside: Api, ann: httpx.Client, bob: httpx.Client
) -> None:
    request = _finished(inside, ann)
    assert bob.get(f"/v2/inference/{request}/events").status_code == 404
    nobody = inside.client(None)
    assert nobody.get(f"/v2/inference/{request}/events").status_code == 401
    grant = ann.get(f"/v2/inference/{request}").json()["map_url"].partition("?")[2]
    assert nobody.get(f"/v2/inference/{request}/events?{grant}").status_code == 200
    other = post(ann, wish(inside, name="another"))
    assert nobody.get(f"/v2/inference/{other}/events?{grant}").status_code == 403
