"""What is too much, too deep or not what it says it is ends in 4xx with a sentence, soon."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.responses import Response

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.gateway import limits
from geostudio_dagster.gateway.hosts import TrustedHosts
from geostudio_dagster.gateway.json_bodies import (
    _STRINGS,
    _depth,
    _object,
    _TwiceError,
    refused_json,
)
from geostudio_dagster.gateway.protocol import PatientProtocol
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.gateway.v2.serving import Api, listening
from geostudio_dagster_tests.planning.test_admission import Compared

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


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "\xff\xfe"}',
        b'{"name": "\xed\xa0\x80"}',  # half a surrogate pair, as no text is written
        '{"name": "a"}'.encode("utf-16"),
        '{"name": "a"}'.encode("utf-32"),
        '{"name": "a", "more": NaN}'.encode("utf-16-le"),
        '{"name": "a", "name": "b"}'.encode("utf-16-be"),
        '{"name": "a"}'.encode("utf-32-le"),
        '{"name": "a", "more": NaN}'.encode("utf-32-be"),
    ],
)
def test_bytes_that_are_no_text_are_refused(ann: httpx.Client, body: bytes) -> None:
    refused = ann.post(GROUPS, content=body, headers=JSON)
    assert refused.status_code == 422
    assert "is not UTF-8" in refused.json()["detail"][0]["msg"]
    assert ann.get(GROUPS).json() == []


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"name": "a", "name": "b"}', ["body", "name"]),
        (b'{"name": "a", "more": [1, {"x": NaN}]}', ["body", "more", 1, "x"]),
        (b'{"name": "a", "more": {"y": 1e999}}', ["body", "more", "y"]),
        (b'{"name": "a", "more": {"y": ' + b"9" * 400 + b"}}", ["body", "more", "y"]),
        (b'{"name": "a", "more": {"k\\u0000": 1}}', ["body", "more", "k?"]),
    ],
)
def test_what_is_wrong_anywhere_in_json_is_told_with_its_place(
    ann: httpx.Client, body: bytes, place: list[str | int]
) -> None:
    refused = ann.post(GROUPS, content=body, headers=JSON)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == place
    assert ann.get(GROUPS).json() == []


def test_a_name_twice_among_very_many_is_found_by_few_comparisons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"n{number}" for number in range(50_000)]
    pairs = [(Compared(name), number) for number, name in enumerate([*names, names[-1]])]
    monkeypatch.setattr(Compared, "times", 0)
    with pytest.raises(_TwiceError, match=r"^n49999$"):
        _object(pairs)
    # One by one with all others would be a thousand million.
    assert 1 <= Compared.times < 2 * len(names)


@pytest.mark.parametrize(("size", "on_the_loop"), [(1_000, True), (200_000, False)])
def test_a_large_body_is_looked_through_beside_the_event_loop(
    ann: httpx.Client, monkeypatch: pytest.MonkeyPatch, size: int, on_the_loop: bool
) -> None:
    found: list[bool] = []

    def noting(body: bytes, deepest: int) -> Response | None:
        found.append(_has_event_loop())
        return refused_json(body, deepest)

    monkeypatch.setattr(limits, "refused_json", noting)
    body = b'{"a": 1, "a": "' + b"x" * size + b'"}'
    refused = ann.post(GROUPS, content=body, headers=JSON)
    assert refused.json()["detail"][0]["loc"] == ["body", "a"]
    assert found == [on_the_loop]


def _has_event_loop() -> bool:
    """Whether this thread has one, which waits for what is done here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def test_a_mark_before_the_text_and_large_numbers_that_can_be_held_are_taken(
    ann: httpx.Client,
) -> None:
    body = b'\xef\xbb\xbf{"name": "marked", "more": 1e200}'
    assert ann.post(GROUPS, content=body, headers=JSON).status_code == 201


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate"])
def test_packed_bodies_are_refused_as_such(ann: httpx.Client, coding: str) -> None:
    refused = ann.post(
        GROUPS, content=b'{"name": "a"}', headers={**JSON, "Content-Encoding": coding}
    )
    assert (refused.status_code, refused.json()["status"]) == (415, 415)
    assert "Content-Encoding" in refused.json()["detail"]


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_a_body_that_does_not_come_is_not_waited_for(
    settings: Settings, installation: Installation, model: ModelRecord, content_type: str
) -> None:
    gateway = GatewaySettings(body_timeout_s=0.2)
    with listening(settings.model_copy(update={"gateway": gateway})) as url:
        api = Api(installation, model, url)
        host, port = url.removeprefix("http://").split(":")
        head = (
            f"POST /v2/generic-processor HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {api.key()}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: 500\r\n\r\n"
        )
        with socket.create_connection((host, int(port))) as raw:
            raw.settimeout(30)
            raw.sendall(head.encode() + b"--x\r\n")
            answer = raw.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert "application/problem+json" in answer


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


def _answer_to(url: str, *pieces: bytes) -> str:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.settimeout(30)
        for piece in pieces:
            raw.sendall(piece)
        answer = b""
        while part := raw.recv(65536):
            answer += part
    return answer.decode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"\x00\x01\r\n\r\n", 400),
        (b"FOO /v2/models HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\0b\r\n\r\n", 400),
        (b"POST /v2/models HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /v2/models HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
        (b"GET /health/livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 200),
    ],
)
def test_what_is_no_http_gets_a_problem_document(api: Api, head: bytes, status: int) -> None:
    answer = _answer_to(api.url, head)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    if status != 200:
        assert "content-type: application/problem+json" in answer
        assert json.loads(answer.partition("\r\n\r\n")[2])["status"] == status


def test_a_head_that_does_not_end_is_not_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.settimeout(30)
        raw.sendall(b"GET /health/livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
        monkeypatch.setattr(PatientProtocol, "head_s", 0.1)
        raw.sendall(b"GET /health")
        told = b"".join(iter(lambda: raw.recv(65536), b""))
    assert b"HTTP/1.1 408 " in told
    assert _answer_to(api.url) == "", "who says nothing gets no answer, and is let go"


def test_a_head_that_grows_for_ever_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "largest_head", 1000)
    head = b"GET /health/livez HTTP/1.1\r\nX: " + b"x" * 2000
    assert _answer_to(api.url, head).startswith("HTTP/1.1 431 ")


@pytest.mark.parametrize("host", ["evil.example.org", "[::1", "", "127.0.0.1.example.org"])
def test_a_foreign_host_is_refused(inside: Api, host: str) -> None:
    refused = inside.client().get(GROUPS, headers={"Host": host})
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"].startswith("Invalid host header")


def test_hosts_are_known_by_name_address_and_ending() -> None:
    hosts = TrustedHosts(lambda *_: None, ["localhost", "[::1]", "*.example.org"])  # type: ignore[arg-type,return-value]
    for host in ("localhost", "LOCALHOST:8091", "[::1]:80", "a.example.org", "a.b.example.org:1"):
        assert hosts._knows(host), host
    for host in ("example.org", "localhost.evil.org", "evil-example.org", "::1x", ""):
        assert not hosts._knows(host), host
