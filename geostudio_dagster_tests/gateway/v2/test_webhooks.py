"""Webhooks: a real receiver gets signed messages, again after failures, and only where allowed."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from dagster import DagsterInstance

from geostudio_dagster.installation import Installation
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.settings import FetchSettings
from geostudio_dagster.webhooks import deliver_due
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver
from geostudio_dagster_tests.gateway.v2.requesting import planned, post, wish
from geostudio_dagster_tests.gateway.v2.serving import Api

LATER = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)


@dataclass
class Receiver:
    """Somebody else's server: what it got, and how it answers next (then 204)."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    def statuses(self) -> list[str]:
        return [json.loads(body)["data"]["status"] for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            status = receiver.answers.pop(0) if receiver.answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{receiver.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield receiver
    server.shutdown()
    server.server_close()


def verify(secret: str, headers: dict[str, str], body: bytes) -> None:
    """As the Standard Webhooks specification says, from its text."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def deliver(installation: Installation, at: dt.datetime = LATER) -> list[str]:
    return deliver_due(installation, at, 100)


def asked(inside: Api, client: httpx.Client, receiver: Receiver) -> str:
    """A planned request with the receiver as its webhook: one message is due."""
    request_id = post(client, wish(inside, webhook=receiver.url))
    planned(inside, request_id, 1)
    return request_id


def test_each_status_is_told_signed_with_the_users_own_secret(
    inside: Api, ann: httpx.Client, bob: httpx.Client, receiver: Receiver, make_scene: MakeScene
) -> None:
    document = wish(inside, make_scene("s.tif", size=64), webhook=receiver.url)
    request_id = post(ann, document)
    with DagsterInstance.ephemeral() as instance:
        driver = Driver(inside.installation, instance)
        assert driver.until_over(request_id) == "COMPLETED"
        driver._evaluate("webhook_deliveries")
    assert sorted(receiver.statuses()) == [
        "COMPLETED",
        "PUBLISHING_RESULTS",
        "RUNNING",
        "SUBMITTED",
    ]
    secret = ann.get("/v2/webhooks/secret").json()["secret"]
    for headers, body in receiver.got:
        verify(secret, headers, body)
        assert headers["content-type"] == "application/json"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    message = json.loads(max((body for _, body in receiver.got), key=_sequence))
    assert message["type"] == "inference.status"
    data = message["data"]
    assert (data["inference_id"], data["status"]) == (request_id, "COMPLETED")
    assert data["previous_status"] == "PUBLISHING_RESULTS"
    assert data["url"].endswith(f"/v2/inference/{request_id}")
    assert len(set(receiver.ids)) == 4
    assert bob.get("/v2/webhooks/secret").json()["secret"] != secret
    assert deliver(inside.installation) == []


def _sequence(body: bytes) -> int:
    return int(json.loads(body)["data"]["sequence"])


def test_what_fails_is_sent_again_later_the_same_under_the_same_id(
    inside: Api, ann: httpx.Client, receiver: Receiver
) -> None:
    request_id = asked(inside, ann, receiver)
    now = dt.datetime.now(dt.UTC)
    receiver.answers = [500, 302, 404]
    deliver(inside.installation, now)
    assert deliver(inside.installation, now) == []  # not before its time
    delay, moment = 20, now
    for _ in range(3):
        assert deliver(inside.installation, moment + dt.timedelta(seconds=delay - 1)) == []
        moment += dt.timedelta(seconds=delay)
        assert len(deliver(inside.installation, moment)) == 1
        delay *= 2
    assert len(receiver.got) == 4
    assert len(set(receiver.ids)) == 1
    assert len({body for _, body in receiver.got}) == 1
    assert deliver(inside.installation) == []
    kinds = [event.kind for event in inside.installation.catalog.events(request_id)]
    assert "webhook_failed" not in kinds


def test_a_sender_that_died_is_followed_by_another(
    inside: Api, ann: httpx.Client, receiver: Receiver
) -> None:
    asked(inside, ann, receiver)
    now = dt.datetime.now(dt.UTC)
    catalog = inside.installation.catalog
    (taken,) = catalog.take_deliveries(now, 10, attempts=5, delay_s=20)
    assert catalog.take_deliveries(now, 10, attempts=5, delay_s=20) == []
    deliver(inside.installation)
    assert receiver.ids == [taken.id]


def test_in_the_end_it_is_given_up_and_the_request_says_so(
    inside: Api, ann: httpx.Client, receiver: Receiver
) -> None:
    request_id = asked(inside, ann, receiver)
    most = inside.installation.settings.webhooks.attempts
    receiver.answers = [503] * 1000
    moment = dt.datetime.now(dt.UTC)
    for _ in range(most + 3):
        deliver(inside.installation, moment)
        moment += dt.timedelta(hours=2)
    assert len(receiver.got) == most
    failed = [
        e for e in inside.installation.catalog.events(request_id) if e.kind == "webhook_failed"
    ]
    assert [event.detail["error"] for event in failed] == [f"{receiver.url} answered HTTP 503."]


def test_who_says_gone_is_left_alone(inside: Api, ann: httpx.Client, receiver: Receiver) -> None:
    asked(inside, ann, receiver)
    receiver.answers = [410]
    deliver(inside.installation)
    assert deliver(inside.installation) == []
    assert len(receiver.got) == 1


def test_a_host_that_came_to_mean_this_machine_gets_nothing(
    inside: Api, ann: httpx.Client, receiver: Receiver
) -> None:
    """The address is looked at again when it is connected to, whatever it was when accepted."""
    local = receiver.url.replace("127.0.0.1", "localhost")
    fetch = FetchSettings(allowed_hosts=("127.0.0.1", "localhost"))
    allowing = inside.installation.settings.model_copy(update={"fetch": fetch})
    document = {
        "model": inside.model.name,
        "spatial_domain": {"urls": ["https://example.org/s.tif"]},
        "webhook": local.replace("http:", "https:"),
    }
    request_id = admit(document, inside.installation.catalog, allowing, owner="x@example.org").id
    planned(inside, request_id, 1)
    (note,) = deliver(inside.installation)
    assert "not a public address" in note
    assert "Given up." in note
    assert receiver.got == []


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/hook",
        "ftp://example.org/hook",
        "https://user:secret@example.org/hook",
        "https://10.0.0.1/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/hook",
        "https://exa mple.org/",
        "nonsense",
        "https://example.org/" + "x" * 3000,
    ],
)
def test_addresses_that_are_refused_leave_no_request(
    inside: Api, ann: httpx.Client, address: str
) -> None:
    answer = ann.post("/v2/inference", json=wish(inside, webhook=address))
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][-1] == "webhook"
    assert "secret" not in answer.json()["detail"][0]["msg"]
    assert ann.get("/v2/inference").json()["total_records"] == 0


def test_a_secret_for_the_whole_installation_is_not_shown_to_users(
    inside: Api, receiver: Receiver, ann: httpx.Client, root: httpx.Client
) -> None:
    asked(inside, ann, receiver)
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    settings = inside.installation.settings
    webhooks = settings.webhooks.model_validate({"secret": secret})
    changed = settings.model_copy(update={"webhooks": webhooks})
    installation = Installation(changed, inside.installation.catalog, inside.installation.storage)
    deliver(installation)
    verify(secret, *receiver.got[0])
    assert inside.app is not None
    place: Any = inside.app.state.place
    object.__setattr__(place, "settings", changed)
    assert ann.get("/v2/webhooks/secret").status_code == 403
    assert root.get("/v2/webhooks/secret").json()["secret"] == secret


def test_a_request_without_a_webhook_tells_nobody(inside: Api, ann: httpx.Client) -> None:
    planned(inside, post(ann, wish(inside)), 1)
    assert deliver(inside.installation) == []


def test_deliveries_are_listed_to_the_owner_with_how_each_stands(
    inside: Api, ann: httpx.Client, bob: httpx.Client, receiver: Receiver
) -> None:
    address = "/v2/webhooks/deliveries"
    empty = {"total_records": 0, "page_count": 0, "results": []}
    assert ann.get(address).json() == empty
    request_id = asked(inside, ann, receiver)
    receiver.answers = [500]
    deliver(inside.installation, dt.datetime.now(dt.UTC))
    (waiting,) = ann.get(address).json()["results"]
    assert (waiting["inference_id"], waiting["url"]) == (request_id, receiver.url)
    assert (waiting["state"], waiting["attempts"], waiting["id"]) == ("waiting", 1, receiver.ids[0])
    assert "HTTP 500" in waiting["error"]
    assert waiting["next_at"].endswith("Z")
    deliver(inside.installation)
    (told,) = ann.get(address, params={"state": "delivered"}).json()["results"]
    assert (told["id"], told["attempts"], told["error"]) == (waiting["id"], 2, None)
    assert told["delivered_at"] and told["next_at"] is None
    assert ann.post(f"/v2/inference/{request_id}/cancel").status_code == 202
    inside.installation.catalog.finish_cancel(request_id)
    receiver.answers = [410] * 9
    deliver(inside.installation)
    given_up = ann.get(address, params={"state": "given_up"}).json()
    listed = ann.get(address).json()
    assert given_up["total_records"] == listed["total_records"] - 1 >= 1
    assert {item["state"] for item in given_up["results"]} == {"given_up"}
    assert [item["sequence"] for item in listed["results"]] == sorted(
        (item["sequence"] for item in listed["results"]), reverse=True
    )
    page = ann.get(address, params={"limit": 1, "skip": 1, "inference_id": request_id}).json()
    assert page["results"] == listed["results"][1:2]
    assert bob.get(address).json() == empty
    assert bob.get(address, params={"inference_id": request_id}).json() == empty
    for query in ("limit=0", "state=lost", "sort=url", "inference_id=x"):
        assert ann.get(f"{address}?{query}").status_code == 422
