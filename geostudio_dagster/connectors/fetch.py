"""The one fetcher of remote scenes: guarded, bounded in size and time, resuming where it can."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import httpcore
import httpx

from geostudio_dagster import __version__
from geostudio_dagster.connectors.addresses import (
    RemoteScene,
    UnacceptableAddressError,
    http_url,
    shown,
)
from geostudio_dagster.connectors.exchange import (
    TRANSIENT_STATUS,
    TransientError,
    content_length,
    header,
    network_errors,
    retry_after,
    retrying,
)
from geostudio_dagster.connectors.guard import GuardedPool
from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import FetchSettings

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 5
_NUMBER = re.compile(r"[0-9]{1,18}")
_REDIRECTS = (301, 302, 303, 307, 308)


def download(scene: RemoteScene, part: Path, settings: FetchSettings) -> int:
    """Download a scene into ``part``, continuing what is there, and return its size in bytes.

    An interrupted download is continued where the server proves (``If-Range``) that the file is
    still the same; ``<part>.validator`` remembers by what. Only transient failures are retried.

    Raises:
        TaskError: ``not_found``, ``forbidden``, ``forbidden_address``, ``too_large``, or
            ``unreachable`` (retryable where another try may help).
    """
    started = time.monotonic()
    deadline = started + settings.total_timeout_s
    again = retrying(settings.attempts, deadline)
    log.info("downloading %s", scene)
    size = int(again(_download_once, scene, part, settings, deadline))
    log.info("downloaded %d bytes in %.2f s", size, time.monotonic() - started)
    return size


def read_start(
    scene: RemoteScene, start: int, length: int, settings: FetchSettings
) -> tuple[bytes, int | None]:
    """Up to ``length`` bytes from ``start``, in one short try, and the whole file's size if told.

    A server without ranges is read from the beginning and left early; then only ``start`` 0
    gives anything.

    Raises:
        TaskError: as for :func:`download`.
    """
    deadline = time.monotonic() + min(settings.total_timeout_s, 2 * settings.timeout_s)
    headers = {"Range": f"bytes={start}-{start + length - 1}"}
    with _answer(scene, settings, deadline, headers) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT and (
            start or response.status != HTTPStatus.OK
        ):
            return b"", None
        total = (
            total_size(response)
            if response.status == HTTPStatus.PARTIAL_CONTENT
            else content_length(response)
        )
        data = bytearray()
        for chunk in body(response, scene):
            data += chunk
            if len(data) >= length:
                break
        return bytes(data[:length]), total


def _download_once(scene: RemoteScene, part: Path, settings: FetchSettings, deadline: float) -> int:
    memory = part.with_name(f"{part.name}.validator")
    have, validator = _resumable(part, memory)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    with _answer(scene, settings, deadline, headers) as response:
        begin = range_start(response) if response.status == HTTPStatus.PARTIAL_CONTENT else 0
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or begin not in (0, have):
            memory.unlink(missing_ok=True)  # the next try starts over
            raise TransientError(f"{scene} has changed during the download.")
        length = content_length(response)
        expected = None if length is None else begin + length
        if expected is not None and expected > settings.max_bytes:
            raise too_large(scene, settings)
        with part.open("r+b" if begin else "wb") as stream:
            stream.seek(begin)
            stream.truncate()
            memory.write_text(version_of(response), "latin-1")  # after the old bytes are gone
            size = begin
            for chunk in body(response, scene):
                size += len(chunk)
                if size > settings.max_bytes:
                    raise too_large(scene, settings)
                stream.write(chunk)
    if expected is not None and size != expected:
        raise TransientError(f"{scene} ended after {size} of {expected} bytes.")
    memory.unlink(missing_ok=True)
    return size


@contextmanager
def _answer(
    scene: RemoteScene, settings: FetchSettings, deadline: float, headers: dict[str, str]
) -> Iterator[httpcore.Response]:
    pool = GuardedPool(settings, deadline)
    with pool, answer(pool, scene, settings, headers) as found:
        yield found


@contextmanager
def answer(
    pool: GuardedPool, scene: RemoteScene, settings: FetchSettings, headers: dict[str, str]
) -> Iterator[httpcore.Response]:
    """The response to a GET after redirects, each of which is checked like the first address.

    Raises:
        TaskError: as for :func:`download`, for whatever is no answer with a file, in the body too.
    """
    url = scene.url
    wait = dict.fromkeys(("connect", "read", "write", "pool"), settings.timeout_s)
    with network_errors(scene):
        for _ in range(_MAX_REDIRECTS + 1):
            target = httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            )
            sent = {
                "Host": url.netloc.decode("ascii"),
                "User-Agent": f"geostudio-dagster/{__version__}",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                **headers,
            }
            with pool.stream(
                "GET", target, headers=list(sent.items()), extensions={"timeout": wait}
            ) as response:
                if response.status not in _REDIRECTS:
                    _check_status(response, scene)
                    yield response
                    return
                url = _next_hop(url, response, scene)
    raise TaskError("unreachable", f"{scene} redirects more than {_MAX_REDIRECTS} times.")


def _next_hop(url: httpx.URL, response: httpcore.Response, scene: RemoteScene) -> httpx.URL:
    location = header(response, b"location")
    if not location:
        raise TaskError("unreachable", f"{scene} redirects to nowhere.")
    try:
        return http_url(str(url.join(location)))
    except (UnacceptableAddressError, httpx.InvalidURL, ValueError):
        raise TaskError(
            "forbidden_address",
            f"{scene} redirects to {shown(location)}, which is not a plain http(s) URL.",
        ) from None


def _check_status(response: httpcore.Response, scene: RemoteScene) -> None:
    status = response.status
    if status in (
        HTTPStatus.OK,
        HTTPStatus.PARTIAL_CONTENT,
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    ):
        return
    if status in (404, 410):
        raise TaskError("not_found", f"{scene} does not exist (HTTP {status}); check the URL.")
    if status in (401, 403):
        raise TaskError(
            "forbidden",
            f"{scene} may not be read (HTTP {status}); make it public, or give a presigned URL.",
        )
    if status in TRANSIENT_STATUS:
        raise TransientError(f"{scene} answered HTTP {status}.", retry_after(response))
    raise TaskError("unreachable", f"{scene} answered HTTP {status} instead of a file.")


def body(response: httpcore.Response, scene: RemoteScene) -> Iterator[bytes]:
    """The bytes of the file, as they are stored.

    Raises:
        TaskError: ``unreachable``, they come in another encoding.
    """
    encoding = header(response, b"content-encoding").lower()
    if encoding not in ("", "identity"):
        raise TaskError(
            "unreachable", f"{scene} is sent with the encoding {encoding}, which was not asked for."
        )
    yield from response.iter_stream()


def _resumable(part: Path, memory: Path) -> tuple[int, str]:
    """Bytes that are there already, and the validator that they belong to, empty if unknown."""
    try:
        return part.stat().st_size, memory.read_text("latin-1")
    except FileNotFoundError:
        return 0, ""


def version_of(response: httpcore.Response) -> str:
    """What tells this version of the file from others; empty where nothing does."""
    etag = header(response, b"etag")
    strong = etag if etag and not etag.startswith("W/") else ""
    return strong or header(response, b"last-modified")


def range_start(response: httpcore.Response) -> int:
    """Offset of a partial answer's first byte, -1 where it is not told."""
    first = header(response, b"content-range").removeprefix("bytes ").partition("-")[0]
    return int(first) if _NUMBER.fullmatch(first) else -1


def total_size(response: httpcore.Response) -> int | None:
    """Bytes of the whole file that an answer is a part of, if told."""
    total = header(response, b"content-range").rpartition("/")[2]
    return int(total) if _NUMBER.fullmatch(total) else None


def too_large(scene: RemoteScene, settings: FetchSettings) -> TaskError:
    """The error for a file beyond the limit."""
    return TaskError(
        "too_large",
        f"{scene} is larger than {settings.max_bytes} bytes; give a smaller file, or have "
        "GEOSTUDIO_FETCH__MAX_BYTES raised.",
    )
