"""The audit log: who did what, and nothing that should not be in it."""

from __future__ import annotations

import datetime as dt
import json
import logging
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from geostudio_dagster.audit_log import AuditLog
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.housekeeping import tidy
from geostudio_dagster.installation import Installation
from geostudio_dagster_tests.gateway.v2.requesting import post, wish
from geostudio_dagster_tests.gateway.v2.serving import ANN, ROOT, Api


def lines(installation: Installation) -> list[dict[str, Any]]:
    """All entries of a test's own log, which may lie in two days' files."""
    files = sorted(installation.settings.audit.glob("audit-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_who_did_what_is_written_and_no_secret(
    inside: Api, ann: httpx.Client, root: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="geostudio_dagster")
    request = post(ann, wish(inside, description="nobody's business"))
    ann.post(f"/studio-gateway/v2/inference/{request}/cancel/")
    root.delete(f"/v2/inference/{request}?because=secret")
    made = root.post("/v2/auth/api-keys").json()
    refused = ann.post("/v2/inference", json={"model_id": "no"})
    assert refused.status_code == 422
    found = lines(inside.installation)
    told = [(item["who"], item["method"], item["path"], item["status"]) for item in found]
    assert told == [
        (ANN, "POST", "/v2/inference", 201),
        (ANN, "POST", f"/v2/inference/{request}/cancel", 202),
        (ROOT, "DELETE", f"/v2/inference/{request}", 204),
        (ROOT, "POST", "/v2/auth/api-keys", 200),
        (ANN, "POST", "/v2/inference", 422),
    ]
    assert [item.get("id") for item in found] == [request, None, None, made["id"], None]
    assert {item["how"] for item in found} == {"key"}
    assert dt.datetime.fromisoformat(found[0]["at"]).utcoffset() == dt.timedelta(0)
    written = json.dumps(found) + caplog.text
    for secret in (made["value"], ann.headers["X-API-Key"], "because", "nobody's business"):
        assert secret not in written
    files = list(inside.installation.settings.audit.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_strangers_and_readers_leave_no_line(inside: Api, ann: httpx.Client) -> None:
    assert ann.get("/v2/inference").status_code == 200
    stranger = TestClient(inside.app, base_url="http://127.0.0.1")
    answer = stranger.post("/v2/inference", json={}, headers={"X-API-Key": "pak-guessed"})
    assert answer.status_code == 401
    assert lines(inside.installation) == []


def test_an_unwritable_log_costs_no_call(inside: Api, ann: httpx.Client) -> None:
    folder = inside.installation.settings.audit
    folder.write_text("a file where the folder should be")
    assert post(ann, wish(inside))


def test_old_days_go_and_todays_stays(installation: Installation) -> None:
    folder = installation.settings.audit
    now = dt.datetime(2026, 11, 27, 12, tzinfo=dt.UTC)
    kept = AuditLog(folder)
    for days in (400, 366, 365, 0):
        kept.write(now - dt.timedelta(days=days), who="ann")
    kept.close()
    (folder / "audit-notes.jsonl").write_text("not ours")
    notes = tidy(installation, now)
    assert {"audit-2025-10-23.jsonl", "audit-2025-11-26.jsonl"} <= set(notes)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["audit-2025-11-27.jsonl", "audit-2026-11-27.jsonl", "audit-notes.jsonl"]


def test_no_days_write_nothing(inside: Api) -> None:
    settings = inside.installation.settings
    gateway = settings.gateway.model_copy(update={"audit_days": 0})
    app = create_app(settings.model_copy(update={"gateway": gateway}))
    with TestClient(app, base_url="http://127.0.0.1", headers=inside.client().headers) as client:
        post(client, wish(inside))
    assert not Path(settings.audit).exists()
