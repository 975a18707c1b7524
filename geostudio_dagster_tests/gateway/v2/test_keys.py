from __future__ import annotations

import re
from datetime import timedelta

import httpx
import pytest

from geostudio_dagster.catalog.api_schema import ApiKey
from geostudio_dagster.catalog.database import utc_now
from geostudio_dagster.catalog.schema import Base
from geostudio_dagster_tests.gateway.v2.serving import ANN, BOB, Api

KEYS = "/v2/auth/api-keys"


def sentence(answer: httpx.Response) -> tuple[int, object]:
    return answer.status_code, answer.json()["detail"]


def with_key(api: Api, value: str) -> httpx.Client:
    client = api.client(None)
    client.headers["X-API-Key"] = value
    return client


def test_a_key_is_shown_once_and_works(inside: Api, ann: httpx.Client) -> None:
    made = ann.post(KEYS, json={})
    assert made.status_code == 200
    assert re.fullmatch("pak-[A-Za-z0-9]{32}", made.json()["value"])
    assert made.json()["active"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", made.json()["expires_on"])
    listed = with_key(inside, made.json()["value"]).get(KEYS).json()
    assert (listed["total_records"], listed["page_count"]) == (2, 2)
    mine = next(item for item in listed["results"] if item["id"] == made.json()["id"])
    assert mine["value"] == made.json()["value"][:8] + "*" * 28
    assert mine["last_used_at"] is not None


def test_only_a_hash_is_stored(inside: Api, ann: httpx.Client) -> None:
    value = inside.key(ANN)
    ann.get(KEYS)
    with inside.installation.catalog._read() as session:
        for table in Base.metadata.sorted_tables:
            for row in session.execute(table.select()):
                assert value not in repr(row)
        stored = session.query(ApiKey).one()
    # Neither the hash nor what is shown opens the door.
    for guess in (stored.hashed_key, stored.shown):
        assert with_key(inside, guess).get(KEYS).status_code == 401


def test_a_third_key_is_refused_until_one_is_deleted(ann: httpx.Client) -> None:
    second = ann.post(KEYS, json={}).json()
    third = ann.post(KEYS, json={})
    assert sentence(third) == (
        412,
        "You already have 2 API Keys registered. Delete one and try again.",
    )
    gone = ann.delete(KEYS, params={"apikey_id": second["id"]})
    assert (gone.status_code, gone.content) == (204, b"")
    assert ann.post(KEYS, json={}).status_code == 200
    again = ann.delete(KEYS, params={"apikey_id": second["id"]})
    assert sentence(again) == (404, "APIKey not found")


def test_a_key_can_be_switched_off_and_on_at_once(inside: Api, ann: httpx.Client) -> None:
    made = ann.post(KEYS).json()
    other = with_key(inside, made["value"])
    assert other.get(KEYS).status_code == 200
    off = ann.patch(KEYS, params={"apikey_id": made["id"]}, json={"active": False})
    assert (off.status_code, off.json()["active"]) == (200, False)
    assert sentence(other.get(KEYS)) == (401, "x-api-key provided is invalid or inactive.")
    ann.patch(KEYS, params={"apikey_id": made["id"]}, json={"active": True})
    assert other.get(KEYS).status_code == 200
    ann.delete(KEYS, params={"apikey_id": made["id"]})
    assert sentence(other.get(KEYS)) == (401, "x-api-key provided is invalid or inactive.")


def test_an_expired_key_is_refused_and_does_not_count(inside: Api, ann: httpx.Client) -> None:
    made = ann.post(KEYS).json()
    with inside.installation.catalog._write() as session:
        session.get_one(ApiKey, made["id"]).expires_at = utc_now() - timedelta(seconds=1)
    assert with_key(inside, made["value"]).get(KEYS).status_code == 401
    assert ann.post(KEYS).status_code == 200


def test_keys_of_others_are_out_of_reach(ann: httpx.Client, bob: httpx.Client) -> None:
    theirs = bob.get(KEYS).json()["results"][0]["id"]
    assert [item["id"] for item in ann.get(KEYS).json()["results"]] != [theirs]
    for call in (
        lambda: ann.patch(KEYS, params={"apikey_id": theirs}, json={"active": False}),
        lambda: ann.delete(KEYS, params={"apikey_id": theirs}),
    ):
        assert sentence(call()) == (404, "APIKey not found")
    assert bob.get(KEYS).status_code == 200


@pytest.mark.parametrize("active", ["no", 0, None, []])
def test_a_switch_is_true_or_false(ann: httpx.Client, active: object) -> None:
    own = ann.get(KEYS).json()["results"][0]["id"]
    refused = ann.patch(KEYS, params={"apikey_id": own}, json={"active": active})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "active"]
    assert refused.json()["errors"][0]["pointer"] == "#/active"
    assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "Provide a valid Authorization or X-Api-Key header."),
        ({"X-API-Key": ""}, "Provide a valid Authorization or X-Api-Key header."),
        ({"X-API-Key": "pak-wrong"}, "x-api-key provided is invalid or inactive."),
        ({"x-forwarded-email": ANN}, "Provide a valid Authorization or X-Api-Key header."),
        ({"Authorization": "Bearer pak-wrong"}, "x-api-key provided is invalid or inactive."),
        ({"Authorization": "Bearer a.b.c"}, "Authorization token is invalid or expired."),
        ({"Authorization": "Basic YTpi"}, "Provide a valid Authorization or X-Api-Key header."),
    ],
)
def test_wrong_credentials_are_told_apart(
    inside: Api, headers: dict[str, str], expected: str
) -> None:
    answer = inside.client(None).get(KEYS, headers=headers)
    assert sentence(answer) == (401, expected)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["title"] == "Unauthorized"


def test_a_key_is_a_bearer_too_and_headers_know_no_case(inside: Api) -> None:
    value = inside.key(BOB)
    for headers in ({"Authorization": f"Bearer {value}"}, {"x-api-KEY": value}):
        assert inside.client(None).get(KEYS, headers=headers).status_code == 200


def test_no_route_of_the_api_is_open(inside: Api) -> None:
    described = inside.client(None).get("/openapi.json").json()["paths"]
    guarded = {path for path in described if path.startswith("/v2/")}
    assert len(guarded) > 5
    for path in guarded:
        for method, operation in described[path].items():
            filled = re.sub(r"\{[^}]+\}", "00000000-0000-4000-8000-000000000000", path)
            answer = inside.client(None).request(method, filled)
            # Signed links prove themselves, and are asked for their proof.
            signed = any(item["name"] == "grant" for item in operation.get("parameters", ()))
            expected = (401, 403, 422) if signed else (401,)
            assert answer.status_code in expected, (method, path, answer.text)
