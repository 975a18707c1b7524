"""Item search of a STAC API: guarded like scenes, bounded in pages, size and time."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

import httpcore
import httpx

from geostudio_dagster import __version__
from geostudio_dagster.connectors.addresses import (
    UnacceptableAddressError,
    http_url,
    refuse_closed_number,
    shown,
)
from geostudio_dagster.connectors.exchange import (
    TRANSIENT_STATUS,
    TransientError,
    header,
    network_errors,
    retry_after,
    retrying,
)
from geostudio_dagster.connectors.guard import GuardedPool
from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSearch

log = logging.getLogger(__name__)

_PAGE = 100  # items; most APIs give fewer than they are asked for, none is hurt by that many
_MOST_PAGES = 500
_MOST_BYTES = 64 * 1024**2  # of one page
_LONGEST_S = 600.0  # one search with all its pages and tries
_MOST_REDIRECTS = 3
_KEEPS_THE_METHOD = (307, 308)
_EXCERPT = 200  # characters of a refusal that are worth showing

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Call:
    """One request; ``body`` is JSON text, None for a GET."""

    url: str
    body: str | None

    def __str__(self) -> str:
        return shown(self.url)


def search(
    source: StacSearch,
    bbox: Sequence[float],
    span: tuple[datetime, datetime],
    settings: Settings,
    *,
    most_pages: int = _MOST_PAGES,
) -> Iterator[Document]:
    """Items that meet a box (west, south, east, north in degrees) within a span of time (UTC).

    Pages are asked for as the items are taken; an item may come twice.

    Raises:
        TaskError: ``unreachable`` (retryable where another try may help), ``forbidden``,
            ``forbidden_address``, ``not_stac``, or ``too_many``, there are more pages than that.
    """
    call: _Call | None = _first(source, bbox, span)
    again = retrying(settings.fetch.attempts, time.monotonic() + _LONGEST_S)
    seen: set[_Call] = set()
    with GuardedPool(settings.fetch, time.monotonic() + _LONGEST_S) as pool:
        for _ in range(most_pages):
            if call is None or call in seen:  # an API that gives the same page for ever
                return
            seen.add(call)
            page = again(_page, pool, call, settings)
            yield from page["features"]
            call = _next(page, call)
    if call is not None and call not in seen:
        raise TaskError(
            "too_many",
            f"{shown(source.url)} has more than {most_pages} pages of {source.collection} for one "
            "area; ask for fewer days, or a smaller area.",
        )


def _first(source: StacSearch, bbox: Sequence[float], span: tuple[datetime, datetime]) -> _Call:
    body: Document = {
        "collections": [source.collection],
        "bbox": list(bbox),
        "datetime": "/".join(f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in span),
        "limit": _PAGE,
    }
    if source.query:
        body["query"] = source.query
    return _Call(f"{source.url.rstrip('/')}/search", json.dumps(body))


def _next(page: Document, call: _Call) -> _Call | None:
    """What the page's link says is next."""
    links = page.get("links")
    for link in links if isinstance(links, list) else ():
        if not isinstance(link, Mapping) or link.get("rel") != "next":
            continue
        href = link.get("href")
        if not isinstance(href, str):
            break
        try:
            url = str(httpx.URL(call.url).join(href))
        except (httpx.InvalidURL, ValueError) as error:
            message = f"{call} names a next page that is no address."
            raise TaskError("not_stac", message) from error
        if str(link.get("method", "GET")).upper() != "POST":
            return _Call(url, None)
        body = link.get("body")
        body = dict(body) if isinstance(body, Mapping) else {}
        if link.get("merge"):
            body = {**json.loads(call.body or "{}"), **body}
        return _Call(url, json.dumps(body))
    return None


def _page(pool: GuardedPool, call: _Call, settings: Settings) -> Document:
    data = _asked(pool, call, settings)
    try:
        page = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TaskError("not_stac", f"{call} answers with something that is no JSON.") from error
    features = page.get("features") if isinstance(page, dict) else None
    if not isinstance(features, list) or not all(isinstance(item, dict) for item in features):
        raise TaskError("not_stac", f"{call} answers with something that is no list of items.")
    return dict(page)


def _asked(pool: GuardedPool, call: _Call, settings: Settings) -> bytes:
    url = _address(call.url, call, settings)
    wait = dict.fromkeys(("connect", "read", "write", "pool"), settings.fetch.timeout_s)
    content = None if call.body is None else call.body.encode()
    with network_errors(call):
        for _ in range(_MOST_REDIRECTS + 1):
            target = httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            )
            method = "GET" if content is None else "POST"
            with pool.stream(
                method,
                target,
                headers=_headers(url, content),
                content=content,
                extensions={"timeout": wait},
            ) as response:
                if not _redirects(response, content):
                    return _body(response, call)
                url = _address(_location(url, response), call, settings)
    raise TaskError("unreachable", f"{call} redirects more than {_MOST_REDIRECTS} times.")


def _location(url: httpx.URL, response: httpcore.Response) -> str:
    text = header(response, b"location")
    try:
        return str(url.join(text))
    except (httpx.InvalidURL, ValueError):
        return text  # which is then refused


def _redirects(response: httpcore.Response, content: bytes | None) -> bool:
    followed = (*_KEEPS_THE_METHOD, *(() if content else (301, 302, 303)))
    return response.status in followed and bool(header(response, b"location"))


def _address(text: str, call: _Call, settings: Settings) -> httpx.URL:
    """Every address is checked like a user's: an API may lead anywhere."""
    try:
        url = http_url(text)
        refuse_closed_number(url.host, text, settings)
    except (UnacceptableAddressError, httpx.InvalidURL, ValueError) as error:
        message = f"{call} leads to an address that is not allowed: {error}"
        raise TaskError("forbidden_address", message) from error
    return url


def _headers(url: httpx.URL, content: bytes | None) -> list[tuple[str, str]]:
    headers = {
        "Host": url.netloc.decode("ascii"),
        "User-Agent": f"geostudio-dagster/{__version__}",
        "Accept": "application/geo+json, application/json",
        "Accept-Encoding": "identity",
    }
    if content is not None:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
    return list(headers.items())


def _body(response: httpcore.Response, call: _Call) -> bytes:
    data = bytearray()
    for chunk in response.iter_stream():
        data += chunk
        if len(data) > _MOST_BYTES:
            raise TaskError("not_stac", f"{call} answers with more than {_MOST_BYTES} bytes.")
    status = response.status
    if status == HTTPStatus.OK:
        return bytes(data)
    if status in TRANSIENT_STATUS:
        raise TransientError(f"{call} answered HTTP {status}.", retry_after(response))
    if status in (401, 403):
        raise TaskError("forbidden", f"{call} may not be searched (HTTP {status}).")
    if 300 <= status < 400:  # noqa: PLR2004 - redirects that would make a GET of the search
        where = shown(header(response, b"location"))
        raise TaskError("unreachable", f"{call} redirects to {where}; name that address instead.")
    said = " ".join(data[:_EXCERPT].decode("utf-8", "replace").split())
    raise TaskError("unreachable", f"{call} refuses the search (HTTP {status}): {said or '-'}.")
