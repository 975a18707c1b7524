"""What Prometheus reads at ``/metrics``.

Counts of calls are kept by each process. Where several answer (``--workers``, or servers that an
operator starts with PROMETHEUS_MULTIPROC_DIR set), they write them to files in one folder, and
whichever is asked adds them up. Figures of the work come from the catalog, the same for all.
"""

from __future__ import annotations

import datetime as dt
import hmac
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Security
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.catalog.gauges import Figures
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.principal import bearer_header, key_header, principal_of
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway_settings import LOOPBACK

log = logging.getLogger(__name__)
router = APIRouter(tags=["health"])

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
REFUSED = "Metrics are for administrators, and for GEOSTUDIO_GATEWAY__METRICS_TOKEN."
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_STREAM = b"text/event-stream"
_FRESH_S = 15.0
_SEEN = "geostudio.seen"  # of the scope


class Metrics:
    """The counts of this process, of one application."""

    def __init__(self) -> None:
        self.shared = bool(os.environ.get(FOLDER))
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "geostudio_gateway_requests",
            "Calls, by the route's template and the status of the answer.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "geostudio_gateway_request_seconds",
            "Time from a call to the end of its answer; event streams are left out.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.streams = Gauge(
            "geostudio_gateway_event_streams",
            "Event streams that are open.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._lock = threading.Lock()
        self._figures: Figures | None = None
        self._counted_at = float("-inf")

    def text(self, catalog: Catalog) -> bytes:
        """Everything, in Prometheus' text format."""
        work = CollectorRegistry()
        work.register(_Work(self._latest(catalog)))
        calls = self.registry
        if self.shared:
            _forget_the_dead(Path(os.environ[FOLDER]))
            calls = CollectorRegistry()
            MultiProcessCollector(calls)  # type: ignore[no-untyped-call]
        return generate_latest(calls) + generate_latest(work)

    def _latest(self, catalog: Catalog) -> Figures | None:
        """The catalog's figures, which are counted at most every 15 seconds."""
        with self._lock:
            if time.monotonic() - self._counted_at > _FRESH_S:
                try:
                    self._figures = catalog.figures(dt.datetime.now(dt.UTC))
                except SQLAlchemyError:
                    log.exception("the catalog could not be asked for its figures")
                    return None
                self._counted_at = time.monotonic()
            return self._figures


class _Work(Collector):
    """The figures of the work, as one answer's metrics."""

    def __init__(self, figures: Figures | None) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """One value or family per figure; without a catalog only that it is away."""
        found = self._figures
        up = "Whether the catalog answers."
        yield GaugeMetricFamily("geostudio_catalog_up", up, value=float(found is not None))
        if found is None:
            return
        for name, counts in (("requests", found.requests), ("tasks", found.tasks)):
            family = GaugeMetricFamily(
                f"geostudio_{name}", f"{name.capitalize()} by status.", labels=("status",)
            )
            for status, number in counts.items():
                family.add_metric([status], number)
            yield family
        yield GaugeMetricFamily(
            "geostudio_shards_waiting", "Shards that wait for a run.", value=found.waiting_shards
        )
        yield GaugeMetricFamily(
            "geostudio_oldest_shard_wait_seconds",
            "For how long the first of the waiting shards could have run.",
            value=found.oldest_wait_s,
        )
        yield GaugeMetricFamily(
            "geostudio_pixels_predicted",
            "Pixels predicted, of the requests that there are.",
            value=found.pixels,
        )


class CountCalls:
    """ASGI middleware, the outermost: counts each call and times it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, and count it when its answer is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, streams = 500, False
        seen: dict[str, str] = {}
        metrics, began = self._metrics, time.perf_counter()

        async def look(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                if _is_stream(message):
                    streams = True
                    metrics.streams.inc()
            await send(message)

        try:
            await self._app({**scope, _SEEN: seen}, receive, look)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = seen.get("route", "none")
            metrics.calls.labels(method, route, str(status)).inc()
            if streams:
                metrics.streams.dec()
            else:
                metrics.seconds.labels(method, route).observe(time.perf_counter() - began)


class NoteRoute:
    """ASGI middleware, the innermost: tells :class:`CountCalls` the template of the route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on; the router writes into the scope what it matched."""
        try:
            await self._app(scope, receive, send)
        finally:
            if _SEEN in scope and "endpoint" in scope:
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                scope[_SEEN]["route"] = template(path, scope.get("path_params") or {})


def template(path: str, parameters: Mapping[str, object]) -> str:
    """The path with ``{name}`` for the values of its parameters, which are in their order."""
    end = len(path)
    for name, value in reversed(list(parameters.items())):
        place = path.rfind(f"/{value}", 0, end)
        if place >= 0:
            path = f"{path[:place]}/{{{name}}}{path[place + 1 + len(str(value)) :]}"
            end = place
    return path


def reader(
    request: Request,
    place: Place,
    key: Annotated[str | None, Security(key_header)] = None,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(bearer_header)] = None,
) -> None:
    """See that the one who asks may read the metrics.

    Raises:
        HTTPException: 401, wrong credentials or none from another machine; 403, no administrator.
    """
    token = place.settings.gateway.metrics_token
    if token is not None and bearer is not None:
        given = bearer.credentials.encode()
        if hmac.compare_digest(given, token.get_secret_value().encode()):
            return
    if key is None and bearer is None and _is_this_machine(request):
        return
    if not principal_of(request, place, key, bearer.credentials if bearer else None).admin:
        raise HTTPException(403, REFUSED)


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=PlainTextResponse,
    responses=responses(401, 403),
    dependencies=[Depends(reader)],
)
def metrics_text(request: Request, place: Place) -> Response:
    """Calls and work in Prometheus' text format."""
    kept: Metrics = request.app.state.metrics
    return Response(kept.text(place.catalog), media_type=CONTENT_TYPE_LATEST)


def _is_this_machine(request: Request) -> bool:
    # Behind a proxy on this machine everybody comes from it.
    if any(name in request.headers for name in _FORWARDED):
        return False
    return request.client is not None and request.client.host in LOOPBACK


def _is_stream(message: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(_STREAM)
        for name, value in message.get("headers", ())
    )


def _forget_the_dead(folder: Path) -> None:
    """Drop the open streams of processes that were killed."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
