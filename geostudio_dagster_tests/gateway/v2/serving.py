"""A gateway that really listens, and clients that have keys of their own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from fastapi import FastAPI

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway.protocol import PatientProtocol
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings

ANN, BOB, ROOT = "ann@example.org", "bob@example.org", "root@example.org"
PATIENCE_S = 240  # with a busy machine


@dataclass
class Api:
    """A gateway over an installation; ``url`` is its host, without ``/v2``.

    With ``app`` a client talks to the application in this process instead (cheaper, but without
    a server between them).
    """

    installation: Installation
    model: ModelRecord
    url: str
    app: FastAPI | None = None
    _keys: dict[str, str] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    def key(self, email: str = ANN, *, admin: bool = False) -> str:
        """The value of that user's key, made when first asked for."""
        if email not in self._keys:
            catalog = self.installation.catalog
            _, self._keys[email] = catalog.create_key(email, days=1, admin=admin or None)
        return self._keys[email]

    def client(self, email: str | None = ANN, *, admin: bool = False) -> httpx.Client:
        """A client with that user's key; without any for None. Closed with the fixture."""
        headers = {} if email is None else {"X-API-Key": self.key(email, admin=admin)}
        if self.app is not None:
            from fastapi.testclient import TestClient

            inside = TestClient(
                self.app, base_url=self.url, headers=headers, raise_server_exceptions=False
            )
            self._open.callback(inside.close)
            return inside
        return self._open.enter_context(
            httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S)
        )

    def close(self) -> None:
        """Close the clients."""
        self._open.close()


def free_socket() -> socket.socket:
    """A listening socket on loopback with a port of its own."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    return listening


@contextmanager
def listening(settings: Settings) -> Iterator[str]:
    """A real server in a thread, until the end; gives its address, as ``gateway_url`` has it."""
    with free_socket() as own:
        url = f"http://127.0.0.1:{own.getsockname()[1]}"
        app = create_app(settings.model_copy(update={"gateway_url": url}))
        config = uvicorn.Config(app, http=PatientProtocol, log_level="error", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while not server.started:
            assert thread.is_alive(), "the gateway ended while it started"
            assert time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.01)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
