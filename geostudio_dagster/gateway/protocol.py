"""HTTP as the server speaks it: the head of a call comes whole, soon and in measure.

uvicorn itself waits for ever for the rest of a head, however long it grows.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from geostudio_dagster.gateway.headers import SECURITY_HEADERS
from geostudio_dagster.gateway.problems import problem

_HEAD_S = 30.0
_LARGEST_HEAD = 1024**2  # bytes, with what came of the body at the same time


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with an end to its patience; what is no HTTP gets a problem document."""

    head_s = _HEAD_S
    largest_head = _LARGEST_HEAD

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first call."""
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece, unless the head grows too long."""
        if self._waiting is not None:
            self._taken += len(data)
            if self._taken > self.largest_head:
                self._refuse(431, f"Headers have at most {self.largest_head} bytes together.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A call began, the first or another one on the same connection."""
        super().on_message_begin()
        if self._waiting is None:
            self._await_head()
        self._begun = True

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, msg)

    def _await_head(self) -> None:
        self._taken, self._begun = 0, False
        self._waiting = self.loop.call_later(self.head_s, self._give_up)

    def _head_came(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None

    def _give_up(self) -> None:
        if self._begun:
            self._refuse(408, f"The head of the call did not come within {self.head_s:g} seconds.")
        else:
            self.transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        self._head_came()
        if self.transport.is_closing():
            return
        answer: Any = problem(status, sentence, {**SECURITY_HEADERS, "Connection": "close"})
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()
