"""Connections that can only go where :mod:`connectors.addresses` allows, and end in time.

The name is resolved once, every address is checked, and the connection goes to the number that
was checked: a name that changes its mind in between (DNS rebinding) gains nothing. TLS still
verifies the certificate against the name. Proxies of the environment are not used, since a
proxy would resolve the name by itself.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import httpcore
import httpx

from geostudio_dagster.connectors.addresses import vetted_addresses
from geostudio_dagster.settings import FetchSettings


class Deadline:
    """A moment (monotonic) that whoever holds it may move."""

    def __init__(self, at: float) -> None:
        self.at = at


class GuardedPool(httpcore.ConnectionPool):
    """A pool of connections for work that must end by ``deadline`` (monotonic)."""

    def __init__(self, settings: FetchSettings, deadline: float | Deadline) -> None:
        deadline = deadline if isinstance(deadline, Deadline) else Deadline(deadline)
        super().__init__(
            ssl_context=_trust(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
            max_connections=4,
            network_backend=_VettedBackend(settings, deadline),
        )


@lru_cache
def _trust(*_: str | None) -> ssl.SSLContext:
    """What certificates are verified by; reading the authorities takes a while, so it is kept."""
    return httpx.create_ssl_context()


class _VettedBackend(httpcore.NetworkBackend):
    def __init__(self, settings: FetchSettings, deadline: Deadline) -> None:
        self._settings = settings
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception | None = None
        for number in vetted_addresses(host, port, self._settings.allowed_hosts):
            try:
                stream = self._plain.connect_tcp(
                    number,
                    port,
                    timeout=_left(timeout, self._deadline),
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            return _TimedStream(stream, self._deadline)
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("sockets of this machine are not for scenes")

    def sleep(self, seconds: float) -> None:
        self._plain.sleep(seconds)


class _TimedStream(httpcore.NetworkStream):
    """A stream none of whose waits outlives the deadline, however slowly bytes drip."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        inner = self._stream.start_tls(ssl_context, server_hostname, _left(timeout, self._deadline))
        return _TimedStream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(timeout: float | None, deadline: Deadline) -> float:
    left = deadline.at - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for the whole download is over")
    return left if timeout is None else min(timeout, left)
