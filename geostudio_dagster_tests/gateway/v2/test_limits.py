"""What is too much, too deep or not what it says it is ends in 4xx with a sentence, soon."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.gateway.limits import _STRINGS, _depth
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.gateway.v2.serving import Api, listening

GROUPS = "/v2/groups"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def small(settings: Settings, installation: Installation, model: ModelRecord) -> Iterator[Api]:
    """A listening gateway that takes bodies up to a million bytes."""
    gateway = GatewaySettings(max_body_bytes=1_000_000)
    with listening(settings.model_copy(update={"gateway": gateway})) as url:
        api = Api(installation, model, url)
        yield api
        api.close()


def test_a_body_that_says_it_is_too_large_is_refused(small: Api) -> None:
    refused = small.client().post(GROUPS, content=b" " * 1_000_001, headers=JSON)
    assert refused.status_code == 413
    assert refused.json()["detail"] == (
        "The body is larger than the 1000000 bytes that are allowed."
    )
    assert refused.headers["content-type"] == "application/problem+json"


def test_a_body_without_a_length_is_refused_while_it_comes(small: Api) -> None:
    def forever() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 100_000

    client = small.client()
    for content_type in ("application/json", "multipart/form-data; boundary=x"):
        headers = {"Content-Type": content_type}
        try:
            refused = client.post(GROUPS, content=forever(), headers=headers)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            continue  # the connection ended before we had sent all of it, which is the point
        assert refused.status_code in (413, 422)
    assert client.get(GROUPS).json() == []


def test_a_sender_that_stops_in_the_middle_leaves_nothing(small: Api) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    head = (
        f"POST {GROUPS} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {small.key()}\r\n"
        "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(head.encode() + b'{"name": "half')
    assert small.client().get(GROUPS).json() == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"name": ' + b"[" * 100_000, "is nested more than 64 levels deep"),
        (b'{"a":' * 50_000, "is nested more than 64 levels deep"),
        (b'{"name": NaN}', "has NaN or Infinity, which JSON does not know"),
        (b'{"name": -Infinity}', "has NaN or Infinity, which JSON does not know"),
        (b'{"name": 1e999}', "has a number that is too large to be held"),
        (b'{"name": ' + b"9" * 5000 + b"}", "has a number that is too large to be held"),
        (b'{"name": "a\\u0000b"}', "has a character that cannot be stored"),
        (b'{"name": "a\\ud800b"}', "has a character that cannot be stored"),
        (b'{"name": "a"', "JSON decode error"),
        (b"name=a", "JSON decode error"),
    ],
)
def test_broken_json_is_refused(ann: httpx.Client, body: bytes, message: str) -> None:
    refused = ann.post(GROUPS, content=body, headers=JSON)
    assert refused.status_code == 422
    assert message in refused.json()["detail"][0]["msg"]
    if "character" in message:
        assert refused.json()["detail"][0]["loc"] == ["body", "name"]
    assert ann.get(GROUPS).json() == []


def test_bytes_that_are_no_text_are_refused(ann: httpx.Client) -> None:
    refused = ann.post(GROUPS, content=b'{"name": "\xff\xfe"}', headers=JSON)
    assert refused.status_code in (400, 422)


def test_words_like_nan_inside_texts_are_texts(ann: httpx.Client) -> None:
    name = 'NaN "Infinity" [[[[ 1e999 \\ud800 \N{PILE OF POO}'
    body = json.dumps({"name": name, "description": "[" * 500}).encode()
    made = ann.post(GROUPS, content=body, headers=JSON)
    assert made.status_code == 201
    assert made.json()["name"] == name


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "application/xml"]
)
def test_json_says_that_it_is_json(ann: httpx.Client, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    refused = ann.post(GROUPS, content=b'{"name": "a"}', headers=headers)
    assert refused.status_code == 415
    assert "Content-Type: application/json" in refused.json()["detail"]


def test_json_without_a_type_is_taken_only_from_who_cannot_be_a_foreign_page(
    inside: Api, ann: httpx.Client
) -> None:
    body = b'{"name": "a"}'
    assert ann.post(GROUPS, content=body).status_code == 201
    assert inside.client(None).post(GROUPS, content=body).status_code == 415


def test_a_text_of_ten_megabytes_is_refused_by_its_field(ann: httpx.Client) -> None:
    refused = ann.post(GROUPS, json={"name": "x" * 10_000_000})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "name"]
    assert len(refused.content) < 2000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/groups/%00", 404),
        ("/v2/groups?q=%00", 422),
        ("/v2/groups?q=" + "x" * 20_000, 414),
        ("/v2/auth/api-keys?limit=-1", 422),
        ("/v2/auth/api-keys?limit=1001", 422),
        ("/v2/auth/api-keys?skip=1000001", 422),
        ("/v2/auth/api-keys?sort=a;b", 422),
        ("/v2/auth/api-keys?limit=x", 422),
        ("/v2/auth/api-keys?colour=red", 200),
        ("/v2/nothing", 404),
    ],
)
def test_odd_addresses(ann: httpx.Client, path: str, status: int) -> None:
    answer = ann.get(path)
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status


def test_long_headers_are_refused(ann: httpx.Client) -> None:
    refused = ann.get(GROUPS, headers={"X-Long": "x" * 70_000})
    assert refused.status_code == 431


@pytest.mark.parametrize("prefix", ["", "/studio-gateway"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_address_works_with_prefix_and_slash(
    ann: httpx.Client, prefix: str, slash: str
) -> None:
    made = ann.post(f"{prefix}/v2/groups{slash}", json={"name": f"g{prefix}{slash}"})
    assert (made.status_code, made.history) == (201, [])
    assert len(ann.get(f"{prefix}/v2/groups{slash}").json()) == 1
    assert ann.get(f"{prefix}/health/livez{slash}").status_code == 200


def test_the_documentation_needs_nothing_from_elsewhere(ann: httpx.Client) -> None:
    for prefix in ("", "/studio-gateway"):
        page = ann.get(f"{prefix}/docs")
        assert page.status_code == 200
        assert "://" not in page.text
        assert "<script>" not in page.text
        for name in ("swagger/swagger-ui-bundle.js", "swagger/swagger-ui.css", "static/docs.js"):
            assert f'"{prefix}/{name}"' in page.text
            assert ann.get(f"{prefix}/{name}").status_code == 200
        assert ann.get(f"{prefix}/openapi.json").json()["openapi"].startswith("3.1")
    entrance = ann.get("/", follow_redirects=False)
    assert (entrance.status_code, entrance.headers["location"]) == (307, "/docs")
    assert ann.get("/swagger/..%2f..%2f__init__.py").status_code == 404


def test_the_description_is_whole(ann: httpx.Client) -> None:
    document = ann.get("/openapi.json").json()
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names))
    for path, method, operation in operations:
        assert operation["tags"], (path, method)
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")):
                assert list(answer["content"]) == ["application/problem+json"], (path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_depth_is_counted_outside_of_texts() -> None:
    for text, depth in ((b"[[1],{}]", 2), (b'{"[[[": "]]]"}', 1), (b'"[[[[[', 0), (b"", 0)):
        assert _depth(_STRINGS.sub(b'""', text)) == depth


def test_a_foreign_host_is_refused(inside: Api, tmp_path: Path) -> None:
    refused = inside.client().get(GROUPS, headers={"Host": "evil.example.org"})
    assert refused.status_code == 400
