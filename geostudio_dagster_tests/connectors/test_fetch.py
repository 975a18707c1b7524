"""The fetcher against a real server that behaves in all the ways that servers do."""

from __future__ import annotations

import socket
import ssl
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from geostudio_dagster.connectors.addresses import RemoteScene, http_url
from geostudio_dagster.connectors.fetch import download, read_start
from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import FetchSettings
from geostudio_dagster_tests.connectors.scene_server import SceneServer
from geostudio_dagster_tests.ports import held_port, port_of


def remote(url: str) -> RemoteScene:
    return RemoteScene(http_url(url))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Where the download goes."""
    return tmp_path / "part.tif"


@pytest.mark.parametrize("path", ["/file", "/plain"])
def test_downloads_the_bytes(
    path: str, server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    size = download(remote(server.url(path)), part, fetch)
    assert part.read_bytes() == server.content
    assert size == len(server.content)
    assert not part.with_name("part.tif.validator").exists()
    _, headers = server.asked[0]
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert headers["accept-encoding"] == "identity"
    assert "range" not in headers


@pytest.mark.parametrize(
    ("path", "code", "retryable", "says"),
    [
        ("/status-404", "not_found", False, "does not exist"),
        ("/status-410", "not_found", False, "does not exist"),
        ("/status-401", "forbidden", False, "presigned"),
        ("/status-403", "forbidden", False, "presigned"),
        ("/status-418", "unreachable", False, "HTTP 418"),
        ("/status-204", "unreachable", False, "HTTP 204"),
        ("/gzip", "unreachable", False, "encoding gzip"),
        ("/loop", "unreachable", False, "more than 5 times"),
        ("/overloaded", "unreachable", True, "HTTP 429"),
        ("/huge", "too_large", False, "larger than"),
    ],
)
def test_answers_that_are_no_file_are_asked_for_once(
    path: str,
    code: str,
    retryable: bool,
    says: str,
    *,
    server: SceneServer,
    part: Path,
    fetch: FetchSettings,
) -> None:
    with pytest.raises(TaskError, match=says) as error:
        download(remote(server.url(path) + "?token=secret"), part, fetch)
    assert (error.value.code, error.value.retryable) == (code, retryable)
    assert server.url(path) in str(error.value)
    assert "secret" not in str(error.value)
    assert server.gets(path) == (6 if path == "/loop" else 1)


def test_a_server_in_trouble_is_tried_again_when_it_asks(
    server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    download(remote(server.url("/busy")), part, fetch)
    assert server.gets("/busy") == 3
    assert part.read_bytes() == server.content


def test_attempts_are_bounded(server: SceneServer, part: Path, fetch: FetchSettings) -> None:
    twice = fetch.model_copy(update={"attempts": 2})
    with pytest.raises(TaskError, match="HTTP 500") as error:
        download(remote(server.url("/status-500")), part, twice)
    assert (error.value.code, error.value.retryable) == ("unreachable", True)
    assert server.gets("/status-500") == 2


def test_a_broken_download_is_continued(
    server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    download(remote(server.url("/broken")), part, fetch)
    assert part.read_bytes() == server.content
    second = server.asked[1][1]
    assert second["range"] == f"bytes={len(server.content) // 2}-"
    assert second["if-range"] == '"first"'


def test_a_file_that_changed_in_between_starts_over(
    server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    once = fetch.model_copy(update={"attempts": 1})
    with pytest.raises(TaskError) as error:
        download(remote(server.url("/broken")), part, once)
    assert error.value.retryable
    assert part.stat().st_size == len(server.content) // 2
    server.content, server.etag = server.content[::-1], '"second"'
    download(remote(server.url("/broken")), part, once)
    assert part.read_bytes() == server.content


def test_what_is_there_without_a_validator_is_not_trusted(
    server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    part.write_bytes(b"left by something else")
    download(remote(server.url("/file")), part, fetch)
    assert "range" not in server.asked[0][1]
    assert part.read_bytes() == server.content


def test_a_file_that_shrank_starts_over(
    server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    part.write_bytes(server.content + b"longer")
    part.with_name("part.tif.validator").write_text('"first"')
    download(remote(server.url("/file")), part, fetch)
    assert part.read_bytes() == server.content


def test_an_endless_body_stops_at_the_cap(
    server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    small = fetch.model_copy(update={"max_bytes": 100_000})
    with pytest.raises(TaskError, match="larger than 100000 bytes") as error:
        download(remote(server.url("/endless")), part, small)
    assert error.value.code == "too_large"
    assert part.stat().st_size <= 100_000


def test_silence_ends(server: SceneServer, part: Path, fetch: FetchSettings) -> None:
    impatient = fetch.model_copy(update={"timeout_s": 0.2, "attempts": 1})
    with pytest.raises(TaskError, match="did not answer in time") as error:
        download(remote(server.url("/silent")), part, impatient)
    assert (error.value.code, error.value.retryable) == ("unreachable", True)


def test_a_drip_ends(server: SceneServer, part: Path, fetch: FetchSettings) -> None:
    impatient = fetch.model_copy(update={"total_timeout_s": 2})
    with pytest.raises(TaskError, match="did not answer in time") as error:
        download(remote(server.url("/drip")), part, impatient)
    assert error.value.retryable
    assert server.gets("/drip") == 1


def test_nobody_listens(part: Path, fetch: FetchSettings) -> None:
    with held_port() as held:
        once = fetch.model_copy(update={"attempts": 1})
        with pytest.raises(TaskError, match="cannot be read") as error:
            download(remote(f"http://127.0.0.1:{port_of(held)}/a.tif"), part, once)
    assert (error.value.code, error.value.retryable) == ("unreachable", True)


def test_redirects_are_followed_where_they_may_go(
    server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    download(remote(server.url("/redirect?to=/redirect%3Fto=/file")), part, fetch)
    assert part.read_bytes() == server.content


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost:{port}/file",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:{port}/file",
        "http://2130706433:{port}/file",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.tif",
        "http://user:secret@127.0.0.1:{port}/file",
    ],
)
def test_redirects_to_closed_places_are_not_followed(
    target: str, server: SceneServer, part: Path, fetch: FetchSettings
) -> None:
    # Only 127.0.0.1 is allowed by name; every other name of this machine is checked as any.
    url = server.url(f"/redirect?to={target.format(port=server.port)}")
    with pytest.raises(TaskError) as error:
        download(remote(url), part, fetch)
    assert error.value.code == "forbidden_address"
    assert not error.value.retryable
    assert "secret" not in str(error.value)
    assert server.gets("/file") == 0


def test_the_connection_goes_to_the_address_that_was_checked(
    server: SceneServer, part: Path, fetch: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that gives another address the second time it is asked is not asked again."""
    answers = iter(["127.0.0.1"])

    def rebinding(host: str, port: int, *_: object, **__: object) -> list[object]:
        assert host == "scene.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    connected: list[object] = []
    connect = socket.create_connection

    def recording(address: object, *args: object, **kwargs: object) -> socket.socket:
        connected.append(address)
        monkeypatch.undo()  # connecting to a number resolves nothing
        return connect(address, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket, "create_connection", recording)
    named = fetch.model_copy(update={"allowed_hosts": ("scene.example",)})
    download(remote(server.url("/file", host="scene.example")), part, named)
    assert connected == [("127.0.0.1", server.port)]
    assert server.asked[0][1]["host"] == f"scene.example:{server.port}"


def test_proxies_of_the_environment_are_not_used(
    server: SceneServer, part: Path, fetch: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    download(remote(server.url("/file")), part, fetch)
    assert part.read_bytes() == server.content


def test_the_first_bytes_and_the_size(server: SceneServer, fetch: FetchSettings) -> None:
    whole = len(server.content)
    assert read_start(remote(server.url("/file")), 0, 1000, fetch) == (server.content[:1000], whole)
    assert read_start(remote(server.url("/file")), 500, 10, fetch) == (
        server.content[500:510],
        whole,
    )
    assert read_start(remote(server.url("/plain")), 0, 1000, fetch) == (
        server.content[:1000],
        whole,
    )
    assert read_start(remote(server.url("/plain")), 500, 10, fetch) == (b"", None)
    assert read_start(remote(server.url("/huge?x")), 500, 10, fetch) == (b"", None)


class TlsServer:
    """HTTPS on 127.0.0.1 with a certificate for the name ``scene.example``."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.certificate = folder / "certificate.pem"
        key = folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=scene.example",
             "-addext", "subjectAltName=DNS:scene.example",
             "-keyout", str(key), "-out", str(self.certificate)],
            check=True,
            capture_output=True,
        )  # fmt: skip
        names: list[str | None] = []
        self.names = names

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        context.sni_callback = lambda _socket, name, _context: names.append(name)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def test_tls_is_verified_against_the_name(
    tmp_path: Path, part: Path, fetch: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = TlsServer(tmp_path, b"II*\0")
    port = tls.server.server_port
    resolve = socket.getaddrinfo

    def local(host: str, *args: object, **kwargs: object) -> object:
        return resolve("127.0.0.1" if host.endswith(".example") else host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", local)
    named = fetch.model_copy(update={"allowed_hosts": ("scene.example", "other.example")})
    try:
        with pytest.raises(TaskError, match="not trusted") as error:
            download(remote(f"https://scene.example:{port}/a.tif"), part, named)
        assert (error.value.code, error.value.retryable) == ("unreachable", False)
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.certificate))
        download(remote(f"https://scene.example:{port}/a.tif"), part, named)
        assert part.read_bytes() == b"II*\0"
        assert tls.names[-1] == "scene.example"
        with pytest.raises(TaskError, match="not trusted"):
            download(remote(f"https://other.example:{port}/a.tif"), part, named)
    finally:
        tls.server.shutdown()
        tls.server.server_close()
