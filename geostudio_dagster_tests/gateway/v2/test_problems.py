"""Errors of all kinds are problem documents; outages and mistakes tell nothing of the inside."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway.problems import handle_problems
from geostudio_dagster_tests.gateway.v2.serving import Api


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/v2/nothing", 404, "Not Found"),
        ("PUT", "/v2/groups", 405, "Method Not Allowed"),
        ("GET", "/layers/00000000-0000-4000-8000-000000000000", 404, "There is no request"),
    ],
)
def test_every_error_is_a_problem_document(
    ann: httpx.Client, method: str, path: str, status: int, detail: str
) -> None:
    answer = ann.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (document["status"], document["type"]) == (status, "about:blank")
    assert detail in document["detail"]


def test_a_field_of_any_name_is_told_with_numbers_where_places_are() -> None:
    app = FastAPI()
    handle_problems(app)

    @app.get("/")
    def refuse() -> None:
        raise InvalidRequest(f"urls.7.{'9' * 5000}", "is odd", "leave it out")

    (error,) = TestClient(app).get("/").json()["detail"]
    assert error["loc"] == ["body", "urls", 7, "9" * 5000]


def test_while_the_catalog_is_away_the_answer_is_503(inside: Api, ann: httpx.Client) -> None:
    assert ann.get("/v2/groups").status_code == 200
    catalog = Path(str(inside.installation.catalog._url.database))
    catalog.rename(catalog.with_suffix(".away"))
    catalog.mkdir()
    try:
        answer = ann.get("/v2/groups")
    finally:
        catalog.rmdir()
        catalog.with_suffix(".away").rename(catalog)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert str(catalog) not in answer.text
    assert ann.get("/v2/groups").status_code == 200


def test_a_mistake_of_ours_tells_nothing_of_the_inside(inside: Api, ann: httpx.Client) -> None:
    with inside.installation.catalog._write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO groups VALUES ('no uuid', 'broken', NULL, 'x', '2026-01-01 00:00:00')"
        )
        session.connection().exec_driver_sql(
            "INSERT INTO group_members VALUES"
            " ('no uuid', 'ann@example.org', 'owner', '2026-01-01 00:00:00')"
        )
    answer = ann.get("/v2/groups")
    assert answer.status_code == 500
    assert answer.json()["detail"] == "Internal Server Error"
    assert "uuid" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
