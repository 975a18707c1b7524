"""What is refused before any route sees it: too much, too deep, not what it says it is."""

from __future__ import annotations

import asyncio

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geostudio_dagster.gateway.json_bodies import refused_json
from geostudio_dagster.gateway.problems import invalid, problem
from geostudio_dagster.gateway_settings import GatewaySettings

_LONGEST_ADDRESS = 16 * 1024
_LONGEST_HEADERS = 64 * 1024
_LARGE_BODY = 100_000  # bytes; to look through more takes so long that others would wait for it
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_FORMS = ("multipart/form-data",)
_UPLOADS = "/v2/file-share/"  # PUT below it streams a file of any kind


class Limits:
    """ASGI middleware: sizes of addresses, headers and bodies; depth and contents of JSON."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer 4xx."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = _refused_head(scope)
        if refused is None and scope["method"] in _WITH_BODY:
            refused, receive = await self._checked_body(scope, receive)
        if refused is not None:
            refused.headers["Connection"] = "close"  # what is still being sent is not read
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _checked_body(
        self, scope: Scope, receive: Receive
    ) -> tuple[Response | None, Receive]:
        headers = Headers(scope=scope)
        upload = scope["method"] == "PUT" and _UPLOADS in scope["path"]
        limit = self._settings.max_upload_bytes if upload else self._settings.max_body_bytes
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        refused = _refused_body_head(headers, limit)
        if refused is not None or upload or media_type in _FORMS:
            return refused, _counted(receive, limit, self._settings.body_timeout_s)
        try:
            body = await self._whole(receive, limit)
        except HTTPException as error:
            return problem(error.status_code, error.detail), receive
        if body and not (_is_json(media_type) or (not media_type and _has_credentials(headers))):
            sentence = "Send JSON, with the header Content-Type: application/json."
            return problem(415, sentence), receive
        return await self._refused_json(body), _replayed(body, receive)

    async def _refused_json(self, body: bytes) -> Response | None:
        deepest = self._settings.max_json_depth
        if len(body) <= _LARGE_BODY:  # for which a thread costs more than it spares
            return refused_json(body, deepest)
        return await to_thread.run_sync(refused_json, body, deepest)

    async def _whole(self, receive: Receive, limit: int) -> bytes:
        """The whole body.

        Raises:
            HTTPException: 400, the sender went away; 408, it is too slow; 413, it is too large.
        """
        patience_s = self._settings.body_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                return await _body(receive, limit)
        except TimeoutError:
            raise HTTPException(408, _too_slow_sentence(patience_s)) from None
        except ClientDisconnect:
            raise HTTPException(400, "The body ended before all of it was there.") from None


def _refused_head(scope: Scope) -> Response | None:
    if "\0" in scope["path"]:
        return problem(404, "Not Found")
    if b"%00" in scope["query_string"]:
        return invalid(["query"], "has a NUL character")
    if len(scope["path"]) + len(scope["query_string"]) > _LONGEST_ADDRESS:
        return problem(414, f"Addresses have at most {_LONGEST_ADDRESS} characters.")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > _LONGEST_HEADERS:
        return problem(431, f"Headers have at most {_LONGEST_HEADERS} characters together.")
    return None


def _refused_body_head(headers: Headers, limit: int) -> Response | None:
    """What the headers tell already."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        return problem(413, _too_large_sentence(limit))
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        return problem(415, "Send the body as it is, without Content-Encoding.")
    return None


def _too_large_sentence(limit: int) -> str:
    return f"The body is larger than the {limit} bytes that are allowed."


def _too_slow_sentence(patience_s: float) -> str:
    return f"The body did not come within {patience_s:g} seconds; send it again."


def _has_credentials(headers: Headers) -> bool:
    """Whether no page elsewhere can have sent it: a browser would have asked us first.

    The geostudio SDK leaves the content type out after it uploaded a file.
    """
    return "x-api-key" in headers or "authorization" in headers


def _is_json(media_type: str) -> bool:
    kind, _, subtype = media_type.partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


async def _body(receive: Receive, limit: int) -> bytes:
    """The whole body, if it ends within ``limit`` bytes.

    Raises:
        HTTPException: 413, it does not.
        ClientDisconnect: the sender went away; half a body must not be taken for a whole one.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise HTTPException(413, _too_large_sentence(limit))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _counted(receive: Receive, limit: int, patience_s: float) -> Receive:
    """``receive``, raising 413 after more than ``limit`` bytes, 408 after so long a silence."""
    size = 0

    async def count() -> Message:
        nonlocal size
        try:
            async with asyncio.timeout(patience_s):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, _too_slow_sentence(patience_s)) from None
        size += len(message.get("body", b""))
        if size > limit:
            raise HTTPException(413, _too_large_sentence(limit))
        return message

    return count


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then what comes behind it."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
