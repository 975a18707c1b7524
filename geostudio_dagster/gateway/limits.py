"""What is refused before any route sees it: too much, too deep, not what it says it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geostudio_dagster.gateway.problems import invalid, problem
from geostudio_dagster.gateway_settings import GatewaySettings

_LONGEST_ADDRESS = 16 * 1024
_LONGEST_HEADERS = 64 * 1024
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_FORMS = ("multipart/form-data",)
_UPLOADS = "/v2/file-share/"  # PUT below it streams a file of any kind
# Possessive, so that no text makes the search slow; an unclosed string reaches to the end.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_NUMBER = re.compile(rb"NaN|Infinity")
_HUGE_NUMBER = re.compile(rb"[eE]\+?0*[1-9]\d{2,}|\d{300,}")
_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


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
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            return _too_large(limit), receive
        if upload:
            return None, _counted(receive, limit)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type in _FORMS:
            return None, _counted(receive, limit)
        body, ended = await _body(receive, limit)
        if not ended:
            return _too_large(limit), receive
        if body and not (_is_json(media_type) or (not media_type and _has_credentials(headers))):
            return problem(
                415, "Send JSON, with the header Content-Type: application/json."
            ), receive
        return _refused_json(body, self._settings.max_json_depth), _replayed(body, receive)


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


def _too_large(limit: int) -> Response:
    return problem(413, _too_large_sentence(limit))


def _too_large_sentence(limit: int) -> str:
    return f"The body is larger than the {limit} bytes that are allowed."


def _has_credentials(headers: Headers) -> bool:
    """Whether no page elsewhere can have sent it: a browser would have asked us first.

    The geostudio SDK leaves the content type out after it uploaded a file.
    """
    return "x-api-key" in headers or "authorization" in headers


def _is_json(media_type: str) -> bool:
    kind, _, subtype = media_type.partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


async def _body(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """The whole body, and whether it ended within ``limit`` bytes."""
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return b"", False
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts), True


def _counted(receive: Receive, limit: int) -> Receive:
    """``receive``, raising 413 as soon as more than ``limit`` bytes came."""
    size = 0

    async def count() -> Message:
        nonlocal size
        message = await receive()
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


def _refused_json(body: bytes, deepest: int) -> Response | None:
    bare = _STRINGS.sub(b'""', body)
    if _depth(bare) > deepest:
        return invalid(["body"], f"is nested more than {deepest} levels deep", "json_too_deep")
    if _NO_NUMBER.search(bare):
        return invalid(["body"], "has NaN or Infinity, which JSON does not know", "json_invalid")
    if _HUGE_NUMBER.search(bare):
        return invalid(["body"], "has a number that is too large to be held", "json_invalid")
    if _SUSPICIOUS.search(body):
        return _refused_text(body)
    return None


def _depth(bare: bytes) -> int:
    """How deep arrays and objects are nested."""
    letters = np.frombuffer(bare, np.uint8)
    opened = (letters == ord("[")) | (letters == ord("{"))
    closed = (letters == ord("]")) | (letters == ord("}"))
    steps = opened.astype(np.int32) - closed
    return int(steps.cumsum().max(initial=0))


def _refused_text(body: bytes) -> Response | None:
    """Refuses characters that no database takes: NUL and halves of surrogate pairs."""
    try:
        document = json.loads(body)
    except ValueError:
        return None  # the route says what is wrong with it
    for place in _odd_texts(document, ()):
        message = "has a character that cannot be stored (NUL or half a surrogate pair)"
        return invalid(["body", *place], message, "string_unicode")
    return None


def _odd_texts(value: object, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            shown = key.encode(errors="replace").decode()
            yield from _odd_texts(key, (*place, shown))
            yield from _odd_texts(item, (*place, shown))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _odd_texts(item, (*place, number))
