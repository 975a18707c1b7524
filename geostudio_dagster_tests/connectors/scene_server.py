"""A real HTTP server on loopback that serves one file in all the ways that servers do."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_CHUNK = 16 * 1024


@dataclass
class SceneServer:
    """What is served, how, and what was asked."""

    content: bytes
    etag: str = '"first"'
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    released: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def gets(self, path: str) -> int:
        return sum(urlsplit(target).path == path for target, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: SceneServer

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.state.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.state.seen[path] += 1
        kind = path.strip("/").split("/")[0].replace("-", "_")
        status = re.fullmatch(r"status_(\d+)", kind)
        try:
            if status:
                self._empty(int(status[1]))
            else:
                getattr(self, f"_{kind}")()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes, status: int = 200, **headers: Any) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def _file(self) -> None:
        """With ranges and a validator, as object stores do."""
        content, headers = self.state.content, {"ETag": self.state.etag, "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", self.state.etag) == self.state.etag
        if not wanted or not same:
            self._send(content, **headers)
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content)), len(content) - 1)
        if first >= len(content):
            self._empty(416)
            return
        span = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], 206, Content_Range=span, **headers)

    def _unbelievable(self) -> None:
        """Parts of a file of a number of bytes that has no end."""
        self._send(b"II", 206, Content_Range=f"bytes 0-1/{'9' * 5000}", ETag=self.state.etag)

    def _changing(self) -> None:
        """As /file, but the file is another one from the second answer on."""
        if self.state.seen["/changing"] > 1:
            self.state.etag = '"second"'
        self._file()

    def _plain(self) -> None:
        """Without ranges."""
        self._send(self.state.content)

    def _broken(self) -> None:
        """The first connection breaks half-way; later ones are as /file."""
        if self.state.seen["/broken"] > 1:
            self._file()
            return
        content = self.state.content
        self.send_response(200)
        self.send_header("ETag", self.state.etag)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True

    def _busy(self) -> None:
        """Twice 503 with Retry-After, then the file."""
        if self.state.seen["/busy"] <= 2:
            self._empty(503, Retry_After="0")
        else:
            self._file()

    def _overloaded(self) -> None:
        self._empty(429, Retry_After="86400")

    def _huge(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**15))
        self.end_headers()
        self.state.released.wait(240)

    def _endless(self) -> None:
        """No length told, and no end."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while not self.state.released.is_set():
            self.wfile.write(bytes(_CHUNK))

    def _silent(self) -> None:
        self.close_connection = True
        self.state.released.wait(240)

    def _drip(self) -> None:
        """A byte now and then: never silent for long, never done."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.close_connection = True
        while not self.state.released.wait(0.05):
            self.wfile.write(b"I")
            self.wfile.flush()

    def _gzip(self) -> None:
        self._send(b"\x1f\x8b", Content_Encoding="gzip")

    def _redirect(self) -> None:
        target = parse_qs(urlsplit(self.path).query)["to"][0]
        self._empty(302, Location=unquote(target))

    def _loop(self) -> None:
        self._empty(301, Location="/loop")

    def _web_page(self) -> None:
        self._send(b"<html>Please log in</html>", Content_Type="text/html")


@contextmanager
def serving(content: bytes) -> Iterator[SceneServer]:
    """Serve these bytes at an address of this machine, in the body."""
    state = SceneServer(content)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.port = server.server_port
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
