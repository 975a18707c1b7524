"""HTTP calls to GeoServer's REST interface: retries, and errors that carry its own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

import httpx
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import GeoServerSettings

ERROR_CODE = "geoserver"
_NOT_FOUND = 404
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_SERVER_ERROR = 500
_TRANSIENT = frozenset({429, 502, 503, 504})
_TIMED_OUT = 408
_IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})
_LONGEST_MESSAGE = 500
_LONGEST_WAIT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
_CHUNK = 1 << 20


class GeoServerError(TaskError):
    """A refusal by GeoServer, or GeoServer out of reach.

    Attributes:
        status: the HTTP status, or None where there was no answer.
    """

    def __init__(self, message: str, *, status: int | None, retryable: bool) -> None:
        self.status = status
        super().__init__(ERROR_CODE, message, retryable=retryable)


class GeoServerRest:
    """One connection to ``<url>/rest``; every path segment given to it is escaped.

    Args:
        settings: address, user and limits, among them the tries of a call that may be repeated
            (GET, PUT, DELETE) after a transient error.
        first_wait_s: wait after the first failure; doubles each time.
    """

    def __init__(self, settings: GeoServerSettings, *, first_wait_s: float = 1.0) -> None:
        self._user = settings.user
        self._workspace = settings.workspace
        self._url = settings.url.rstrip("/")
        self._client = httpx.Client(
            auth=(settings.user, settings.password.get_secret_value()),
            timeout=httpx.Timeout(settings.timeout_s, connect=_CONNECT_TIMEOUT_S),
        )
        self._retrying = Retrying(
            stop=stop_after_attempt(settings.attempts),
            wait=wait_exponential(multiplier=first_wait_s, max=_LONGEST_WAIT_S)
            + wait_random(0, first_wait_s / 2),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def find(self, *segments: str) -> httpx.Response | None:
        """GET as JSON; None when GeoServer has no such thing."""
        try:
            return self.call(
                "GET",
                *segments,
                query={"quietOnNotFound": "true"},
                headers={"Accept": "application/json"},
            )
        except GeoServerError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def call(
        self,
        method: str,
        *segments: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Path | None = None,
    ) -> httpx.Response:
        """One call; a file body is streamed, and read anew for every try.

        Raises:
            GeoServerError: GeoServer refused (with its message), or did not answer.
        """
        path = "/".join(quote(segment, safe="") for segment in segments)
        url = f"{self._url}/{path}"

        def once() -> httpx.Response:
            return self._once(method, url, query or {}, headers or {}, body)

        return self._retrying(once) if method in _IDEMPOTENT else once()

    def _once(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | Path | None,
    ) -> httpx.Response:
        try:
            with _content(body) as (content, size):
                length = {"Content-Length": str(size)} if size is not None else {}
                response = self._client.request(
                    method, url, params=query, headers={**headers, **length}, content=content
                )
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise GeoServerError(
                f"GeoServer at {self._url} did not answer {method} {url} ({reason}).",
                status=None,
                retryable=True,
            ) from error
        if not response.is_success:
            raise self._refusal(method, url, response)
        return response

    def _refusal(self, method: str, url: str, response: httpx.Response) -> GeoServerError:
        status = response.status_code
        said = message_of(response)
        text = f"GeoServer answered HTTP {status} {response.reason_phrase} to {method} {url}"
        text += f": {said}" if said else "."
        text += self._advice(status)
        passing = status >= _SERVER_ERROR or status in _TRANSIENT or status == _TIMED_OUT
        return GeoServerError(text, status=status, retryable=passing)

    def _advice(self, status: int) -> str:
        """What to look at; asking again cannot help, so the request waits for a person."""
        if status == _UNAUTHORIZED:
            return (
                f" (as user {self._user}; check GEOSTUDIO_GEOSERVER__USER and"
                " GEOSTUDIO_GEOSERVER__PASSWORD, then retry the request)"
            )
        if status not in {_FORBIDDEN, _NOT_FOUND}:
            return ""
        # GeoServer hides what a user may not see behind 404.
        return (
            f" (as user {self._user}, who may lack the right to write to workspace"
            f" {self._workspace}; give it, or check GEOSTUDIO_GEOSERVER__URL,"
            " GEOSTUDIO_GEOSERVER__USER and GEOSTUDIO_GEOSERVER__WORKSPACE, then retry the request)"
        )


def message_of(response: httpx.Response) -> str:
    """GeoServer's own words: its text body, without HTML, at most 500 characters."""
    text = response.text
    if "html" in response.headers.get("content-type", ""):
        text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL | re.IGNORECASE)
        text = re.sub(r"<[^>]*>", " ", text)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, GeoServerError) and (
        error.status is None or error.status in _TRANSIENT
    )


@contextmanager
def _content(
    body: bytes | Path | None,
) -> Iterator[tuple[bytes | Iterator[bytes] | None, int | None]]:
    if isinstance(body, Path):
        with body.open("rb") as stream:
            yield _chunks(stream), body.stat().st_size
    else:
        yield body, None


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
