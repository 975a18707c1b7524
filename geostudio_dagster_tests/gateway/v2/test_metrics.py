"""/metrics and /health, as Prometheus and orchestrators read them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from geostudio_dagster import __version__
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway.metrics import template
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.gateway.v2.requesting import planned, post, wish, worked
from geostudio_dagster_tests.gateway.v2.serving import PATIENCE_S, Api
from geostudio_dagster_tests.ports import held_port, port_for_a_process, port_of


def samples(content: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
    }


def value(content: str, name: str, **labels: str) -> float:
    return samples(content).get((name, frozenset(labels.items())), 0.0)


def calls(content: str, route: str, status: int, method: str = "GET") -> float:
    return value(
        content,
        "geostudio_gateway_requests_total",
        method=method,
        route=route,
        status=str(status),
    )


def test_calls_are_counted_by_the_template_of_their_route(
    inside: Api, ann: httpx.Client, root: httpx.Client
) -> None:
    request_id = post(ann, wish(inside))
    for path in (f"/v2/inference/{request_id}", f"/studio-gateway/v2/inference/{request_id}/"):
        assert ann.get(path).status_code == 200
    ann.get("/v2/inference/00000000-0000-0000-0000-000000000000")
    for number in range(20):
        ann.get(f"/nowhere/{number}")
    ann.post(
        "/v2/notifications", content=b"[" * 10_000, headers={"Content-Type": "application/json"}
    )
    text = root.get("/metrics").text
    assert calls(text, "/v2/inference/{inference_id}", 200) == 2
    assert calls(text, "/v2/inference/{inference_id}", 404) == 1
    assert calls(text, "/v2/inference", 201, "POST") == 1
    assert calls(text, "none", 404) == 20
    assert calls(text, "none", 422, "POST") == 1
    assert request_id not in text
    count = "geostudio_gateway_request_seconds_count"
    assert value(text, count, method="GET", route="/v2/inference/{inference_id}") == 3


@pytest.mark.parametrize(
    ("path", "parameters", "expected"),
    [
        (
            "/v2/tasks/tasks/logs/logs",
            {"task_id": "tasks", "step": "logs"},
            "/v2/tasks/{task_id}/logs/{step}",
        ),
        ("/files/a/b/c.tif", {"key": "a/b/c.tif"}, "/files/{key}"),
        ("/v2/models", {}, "/v2/models"),
    ],
)
def test_templates(path: str, parameters: dict[str, Any], expected: str) -> None:
    assert template(path, parameters) == expected


def test_the_work_in_figures(inside: Api, ann: httpx.Client, root: httpx.Client) -> None:
    done, waiting = post(ann, wish(inside)), post(ann, wish(inside))
    planned(inside, done, 4, shards=2)
    worked(inside, done, failing=[0])
    planned(inside, waiting, 3, shards=3)
    text = root.get("/metrics").text
    assert value(text, "geostudio_catalog_up") == 1
    assert value(text, "geostudio_tasks", status="FAILED") == 1
    assert value(text, "geostudio_tasks", status="READY") == 3
    assert value(text, "geostudio_requests", status="SUBMITTED") == 1
    assert value(text, "geostudio_shards_waiting") == 3
    assert value(text, "geostudio_oldest_shard_wait_seconds") > 0
    assert value(text, "geostudio_gateway_event_streams") == 0


def test_an_open_stream_is_counted(api: Api) -> None:
    request_id = post(api.client(), wish(api))
    with api.client().stream("GET", f"/v2/inference/{request_id}/events"):
        text = api.client(None).get("/metrics").text
        assert value(text, "geostudio_gateway_event_streams") == 1


def test_metrics_are_not_for_everybody(
    inside: Api, settings: Settings, ann: httpx.Client, root: httpx.Client
) -> None:
    """Reference S-9: upstream's are open to whoever reaches the port."""
    assert inside.client(None).get("/metrics").status_code == 401
    assert ann.get("/metrics").status_code == 403
    assert root.get("/metrics").status_code == 200
    local = TestClient(inside.app, base_url="http://127.0.0.1", client=("127.0.0.1", 5))
    assert local.get("/metrics").status_code == 200
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):  # somebody behind a proxy
        assert local.get("/metrics", headers={name: "10.1.2.3"}).status_code == 401
    assert local.get("/metrics", headers={"X-API-Key": "pak-wrong"}).status_code == 401


def test_a_token_of_the_settings_reads_metrics_and_nothing_else(
    settings: Settings, installation: Installation
) -> None:
    gateway = settings.gateway.model_validate({"metrics_token": "for-prometheus"})
    app = create_app(settings.model_copy(update={"gateway": gateway}))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        good = {"Authorization": "Bearer for-prometheus"}
        assert client.get("/metrics", headers=good).status_code == 200
        assert client.get("/v2/models", headers=good).status_code == 401
        bad = {"Authorization": "Bearer for-prometheuS"}
        assert client.get("/metrics", headers=bad).status_code == 401


@pytest.fixture
def two_workers(tmp_path: Path, settings: Settings, installation: Installation) -> Iterator[str]:
    """The gateway as its command starts it, with two processes that answer."""
    port = port_for_a_process()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "geostudio_dagster", "gateway", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=environment, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(url):
            assert process.poll() is None, "the gateway ended while it started"
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        assert not list(tmp_path.glob("geostudio-metrics-*"))


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/livez", timeout=PATIENCE_S).status_code == 200
    except httpx.ConnectError:
        time.sleep(0.05)
        return False


def counted(url: str) -> float:
    return calls(httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text, "/v2/models", 401)


def test_whichever_worker_is_asked_tells_the_counts_of_all(two_workers: str) -> None:
    asked = 40
    for _ in range(asked):  # a connection each, so that both get some
        assert httpx.get(f"{two_workers}/v2/models", timeout=PATIENCE_S).status_code == 401
    deadline = time.monotonic() + PATIENCE_S
    while counted(two_workers) < asked:  # a call counts when its answer is over, for the server
        assert time.monotonic() < deadline
    for _ in range(6):
        text = httpx.get(f"{two_workers}/metrics", timeout=PATIENCE_S).text
        assert calls(text, "/v2/models", 401) == asked
    assert value(text, "geostudio_catalog_up") == 1


def test_every_worker_refuses_a_revoked_key_at_once(
    two_workers: str, installation: Installation
) -> None:
    record, value = installation.catalog.create_key("ann@example.org", days=1)

    def statuses() -> set[int]:
        # A connection each, so that both workers are asked.
        asked = {"headers": {"X-API-Key": value}, "trust_env": False}
        return {httpx.get(f"{two_workers}/v2/models", **asked).status_code for _ in range(12)}

    assert statuses() == {200}
    installation.catalog.set_key_active(record.id, False)
    assert statuses() == {401}
    installation.catalog.set_key_active(record.id, True)
    assert statuses() == {200}
    installation.catalog.revoke_key(record.id)
    assert statuses() == {401}


def test_alive_and_ready_as_upstream_says_it(inside: Api) -> None:
    nobody = inside.client(None)
    assert nobody.get("/health/livez").json() == {"status": "UP", "version": __version__}
    assert nobody.get("/health/readyz").json() == {"status": "UP"}


def test_without_dagster_it_is_degraded_but_serves(
    settings: Settings, installation: Installation
) -> None:
    with held_port() as held:
        url = f"http://127.0.0.1:{port_of(held)}"
        app = create_app(settings.model_copy(update={"dagster_url": url}))
        with TestClient(app, base_url="http://127.0.0.1") as client:
            answer = client.get("/health/readyz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "DEGRADED"
    assert answer.json()["missing"] == [
        "Dagster does not answer; requests are kept, and start when it is back."
    ]


def test_without_a_catalog_it_is_down_and_metrics_say_so(
    inside: Api, settings: Settings, installation: Installation
) -> None:
    local = TestClient(inside.app, base_url="http://127.0.0.1", client=("127.0.0.1", 5))
    with installation.catalog._write() as session:
        session.execute(text("ALTER TABLE requests RENAME TO elsewhere"))
    try:
        answer = local.get("/health/readyz")
        assert answer.status_code == 503
        assert answer.json()["detail"]["status"] == "DOWN"
        assert "The catalog does not answer." in answer.json()["detail"]["missing"]
        assert value(local.get("/metrics").text, "geostudio_catalog_up") == 0
        assert local.get("/health/livez").status_code == 200
    finally:
        with installation.catalog._write() as session:
            session.execute(text("ALTER TABLE elsewhere RENAME TO requests"))
