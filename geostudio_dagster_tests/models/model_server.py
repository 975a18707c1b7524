"""A real HTTP server on loopback that runs a model, well or badly."""

from __future__ import annotations

import base64
import io
import json
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

Forward = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass
class ModelServer:
    """What it computes, and what it was asked."""

    forward: Forward
    port: int = 0
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    busiest: int = 0
    together: threading.Barrier | None = None
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ModelServer

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        state, name = self.state, self.path.strip("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with state.lock:
            headers = {key.lower(): value for key, value in self.headers.items()}
            state.asked.append((self.path, headers, body))
            state.seen[name] += 1
            state.busy += 1
            state.busiest = max(state.busiest, state.busy)
        try:
            getattr(self, f"_{name}", self._status)(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with state.lock:
                state.busy -= 1

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _status(self, _: bytes) -> None:
        self._send(b"no, \n because", int(self.path.strip("/")))

    def _array(self, values: NDArray[Any]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, values)
        self._send(buffer.getvalue())

    def _tensor(self, body: bytes) -> None:
        self._array(self.state.forward(np.load(io.BytesIO(body))))

    def _together(self, body: bytes) -> None:
        """Answers only when as many as the barrier wants are asking."""
        assert self.state.together is not None
        if self.state.seen["together"] > 1:  # the first is the trial at load
            self.state.together.wait(120)
        self._tensor(body)

    def _busy(self, body: bytes) -> None:
        """Asks for patience twice, then answers."""
        if self.state.seen["busy"] <= 2:
            self._send(b"", (429, 503)[self.state.seen["busy"] - 1], Retry_After="0")
        else:
            self._tensor(body)

    def _overloaded(self, _: bytes) -> None:
        self._send(b"", 429, Retry_After="86400")

    def _broken(self, body: bytes) -> None:
        """The first connection breaks."""
        if self.state.seen["broken"] > 1:
            self._tensor(body)
        self.close_connection = True

    def _moved(self, _: bytes) -> None:
        self._send(b"", 307, Location="/tensor")

    def _silent(self, _: bytes) -> None:
        self.close_connection = True
        self.state.released.wait(240)

    def _drip(self, _: bytes) -> None:
        """A byte now and then: never silent for long, never done."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while not self.state.released.wait(0.05):
            self.wfile.write(b"x")

    def _endless(self, _: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while not self.state.released.is_set():
            self.wfile.write(bytes(16 * 1024))

    def _page(self, _: bytes) -> None:
        self._send(b"<html>Please log in</html>")

    def _objects(self, body: bytes) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.array([object()]), allow_pickle=True)
        self._send(buffer.getvalue())

    def _integers(self, body: bytes) -> None:
        self._array(np.load(io.BytesIO(body)).astype(np.int64))

    def _half(self, body: bytes) -> None:
        self._array(np.load(io.BytesIO(body))[..., ::2, ::2])

    def _infinite(self, body: bytes) -> None:
        self._array(np.load(io.BytesIO(body)) + np.inf)

    def _pooling(self, body: bytes) -> None:
        """As vLLM with TerraTorch's segmentation plugin: classes times 255, low byte."""
        self._picture(body, lambda classes: (classes * 255 % 256).astype(np.uint8))

    def _pooling_plain(self, body: bytes) -> None:
        """As vLLM with TerraTorch's plugin for TerraMind."""
        self._picture(body, lambda classes: classes.astype(np.uint8))

    def _pooling_strange(self, body: bytes) -> None:
        self._picture(body, lambda classes: classes.astype(np.uint8) + 100)

    def _pooling_small(self, body: bytes) -> None:
        self._picture(body, lambda classes: classes[::2].astype(np.uint8))

    def _picture(self, body: bytes, coded: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        asked = json.loads(body)["data"]
        assert asked["out_data_format"] == "b64_json"
        as_path = asked["data_format"] == "path"
        content = Path(asked["data"]).read_bytes() if as_path else base64.b64decode(asked["data"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with MemoryFile(content) as memory, memory.open() as file:
                pixels = file.read([index + 1 for index in asked["indices"]])
            values = coded(self.state.forward(pixels[None])[0].argmax(axis=0))
            height, width = values.shape
            profile = {"count": 1, "height": height, "width": width, "dtype": values.dtype}
            with MemoryFile() as memory:
                with memory.open(driver="GTiff", **profile) as file:
                    file.write(values, 1)
                picture = base64.b64encode(memory.read()).decode()
        answer = {"request_id": "r", "data": {"data_format": "b64_json", "data": picture}}
        self._send(json.dumps(answer).encode())


@contextmanager
def serving(forward: Forward) -> Iterator[ModelServer]:
    """A server that runs until the end of the body."""
    state = ModelServer(forward)
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
