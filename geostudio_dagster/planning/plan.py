"""From a request to tasks and shards: what each is, where it lies, and what it will cost."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil, prod
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from geostudio_dagster.catalog import Plan, PlannedTask, Position, RequestRecord
from geostudio_dagster.catalog.states import (
    CONNECTOR,
    EARLY_PROCESSOR,
    POSTPROCESS,
    PREDICTION,
    PROCESSOR,
    PUSH,
    STEP_ORDER,
)
from geostudio_dagster.connectors.header import SceneHeader
from geostudio_dagster.connectors.url import look
from geostudio_dagster.errors import InvalidRequest, TaskError
from geostudio_dagster.models.bundle import BundleManifest, PatchSettings
from geostudio_dagster.planning.dates import date_in_name
from geostudio_dagster.planning.grid import cores
from geostudio_dagster.planning.request import RequestSpec, parse_request
from geostudio_dagster.raster.footprint import footprint
from geostudio_dagster.settings import Settings

log = logging.getLogger(__name__)

STEPS = (CONNECTOR, PREDICTION, POSTPROCESS, PUSH)
_STEP_OF = {Position.BEFORE_POSTPROCESS: EARLY_PROCESSOR, Position.AFTER_POSTPROCESS: PROCESSOR}

_LOOKS_AT_ONCE = 16
_SILENT_LOOKS = 3  # times a host fails to answer before the rest of its scenes is taken unseen
_SECONDS_PER_TASK = 0.25  # what a task costs besides its pixels: reading, records, packaging
_UNKNOWN_PIXELS = 16_000_000  # assumed of a scene whose header could not be read


def make_plan(
    request: RequestRecord | RequestSpec,
    request_id: str,
    manifest: BundleManifest,
    settings: Settings,
    speed_mpx_s: float | None,
    *,
    positions: Collection[Position] = (),
) -> Plan:
    """Turn a request into tasks, in shards, with an estimate.

    Every URL is one task, ``<request>-task_<n>``; a scene larger than the task size becomes
    several, ``<request>-task_<n>_<i>``, which stay neighbours. A scene whose header cannot be
    read stays one whole task, which will fail with its own error.

    Args:
        speed_mpx_s: measured prediction speed of the model, Mpx/s; None before its first run.
        positions: where processors of users run in this request.

    Raises:
        InvalidRequest: there are no scenes, or they make more tasks than allowed.
    """
    spec = request if isinstance(request, RequestSpec) else parse_request(request.spec)
    if not spec.spatial_domain.urls:
        raise InvalidRequest("spatial_domain.urls", "is empty", "give at least one scene")
    headers = _inspect_all(spec.spatial_domain.urls, settings)
    tasks = _tasks(spec, request_id, headers, settings, steps_with(positions))
    figures = {
        "input_bytes": sum(_input_bytes(header, manifest) for header in headers if header),
        "scenes_without_header": sum(header is None for header in headers),
    }
    return in_shards(tasks, spec, manifest, settings, speed_mpx_s=speed_mpx_s, figures=figures)


def in_shards(
    tasks: Sequence[PlannedTask],
    spec: RequestSpec,
    manifest: BundleManifest,
    settings: Settings,
    *,
    speed_mpx_s: float | None,
    figures: Mapping[str, Any],
) -> Plan:
    """The plan of these tasks, with an estimate that ``figures`` are added to."""
    speed = speed_mpx_s or settings.shards.assumed_mpx_per_second
    typical = _typical(tasks)
    seconds = [_seconds(task, speed, typical) for task in tasks]
    numbers = _shards(seconds, spec.shard_size, settings)
    count = numbers[-1] + 1
    estimate = {
        "tasks": len(tasks),
        "shards": count,
        "mpx": round(sum(task.pixels or 0 for task in tasks) / 1e6, 3),
        "patches": sum(_patches(task, manifest.patch) for task in tasks),
        "output_bytes": sum(task.pixels or 0 for task in tasks) * _output_bytes(manifest),
        "seconds": round(sum(seconds), 1),
        "mpx_per_second": round(speed, 3),
        "speed_is_measured": speed_mpx_s is not None,
        **figures,
    }
    placed = tuple(replace(task, shard=n) for task, n in zip(tasks, numbers, strict=True))
    return Plan(tasks=placed, shard_count=count, estimate=estimate)


def steps_with(positions: Collection[Position]) -> tuple[str, ...]:
    """The steps of a task, in order, of a request with processors at these positions."""
    steps = {*STEPS, *(_STEP_OF[position] for position in positions)}
    return tuple(step for step in STEP_ORDER if step in steps)


def tasks_geojson(plan: Plan) -> bytes:
    """The tasks as an RFC 7946 feature collection, EPSG:4326; the same plan is the same bytes.

    Properties are ``inference_id``, ``task_id`` and ``date``; the geometry is null where the
    scene's header could not be read.
    """
    features = [
        {
            "type": "Feature",
            "id": task.id,
            "geometry": task.footprint,
            "properties": {
                "inference_id": task.id.rpartition("-task_")[0],
                "task_id": task.id,
                "date": task.date,
            },
        }
        for task in plan.tasks
    ]
    document = {"type": "FeatureCollection", "features": features}
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _tasks(
    spec: RequestSpec,
    request_id: str,
    headers: Sequence[SceneHeader | None],
    settings: Settings,
    steps: tuple[str, ...],
) -> list[PlannedTask]:
    urls = spec.spatial_domain.urls
    tasks: list[PlannedTask] = []
    scenes = zip(urls, _dates(spec, urls), headers, strict=True)
    for number, (url, date, header) in enumerate(scenes):
        whole = PlannedTask(
            id=f"{request_id}-task_{number}",
            url=url,
            date=date,
            shard=0,
            window=None,
            scene_size=(header.width, header.height) if header else None,
            footprint=header.footprint if header else None,
            pixels=header.width * header.height if header else None,
            steps=steps,
        )
        tasks.extend(_parts(whole, header, spec, settings))
        if len(tasks) > settings.max_tasks:
            raise InvalidRequest(
                "spatial_domain.urls",
                f"the scenes make more than {settings.max_tasks} tasks",
                "send fewer scenes a request, or a larger task_size",
            )
    return tasks


def _dates(spec: RequestSpec, urls: Sequence[str]) -> list[str | None]:
    given = spec.temporal_domain
    if len(given) == len(urls):
        return list(given)
    if len(given) == 1:
        return [given[0]] * len(urls)
    return [date_in_name(url) for url in urls]


def _parts(
    whole: PlannedTask, header: SceneHeader | None, spec: RequestSpec, settings: Settings
) -> Iterator[PlannedTask]:
    windows = header and cores(
        header.width,
        header.height,
        task_size=spec.task_size,
        max_pixels=settings.max_task_pixels,
    )
    if header is None or not windows:
        yield whole
        return
    for number, window in enumerate(windows):
        place = footprint(header.crs, header.transform, window)
        yield replace(
            whole,
            id=f"{whole.id}_{number}",
            window=window,
            footprint=place.geometry if place else None,
            pixels=window[2] * window[3],
        )


def _input_bytes(header: SceneHeader, manifest: BundleManifest) -> int:
    """What the model reads of a scene, uncompressed."""
    bands = min(len(header.bands), len(manifest.bands))
    return header.width * header.height * bands * np.dtype(header.dtype).itemsize


def _output_bytes(manifest: BundleManifest) -> int:
    """What one pixel of the prediction takes, uncompressed."""
    if manifest.task == "regression":
        return 4
    return 1 if manifest.output == "classes" else 4 * len(manifest.classes)


def _typical(tasks: Sequence[PlannedTask]) -> float:
    known = [task.pixels for task in tasks if task.pixels is not None]
    return sum(known) / len(known) if known else _UNKNOWN_PIXELS


def _seconds(task: PlannedTask, speed_mpx_s: float, typical_pixels: float) -> float:
    pixels = typical_pixels if task.pixels is None else task.pixels
    return _SECONDS_PER_TASK + pixels / 1e6 / speed_mpx_s


def _patches(task: PlannedTask, patch: PatchSettings) -> int:
    if task.scene_size is None:
        return 0
    width, height = task.window[2:] if task.window else task.scene_size
    stride = patch.size - patch.overlap
    return prod(max(1, ceil((side - patch.overlap) / stride)) for side in (width, height))


def _shards(seconds: Sequence[float], shard_size: int | None, settings: Settings) -> list[int]:
    """The shard of each task, in order: by count where asked for, else by expected seconds."""
    limit = settings.shards.max_per_request
    if shard_size is not None:
        size = max(shard_size, ceil(len(seconds) / limit))
        return [place // size for place in range(len(seconds))]
    capacity = max(settings.shards.target_seconds, sum(seconds) / limit)
    numbers = _packed(seconds, capacity)
    while numbers and numbers[-1] >= limit:  # tasks do not fill shards to the brim
        capacity *= 1.1
        numbers = _packed(seconds, capacity)
    return numbers


def _packed(seconds: Sequence[float], capacity: float) -> list[int]:
    numbers: list[int] = []
    shard, load = 0, 0.0
    for cost in seconds:
        if load and load + cost > capacity:
            shard, load = shard + 1, 0.0
        load += cost
        numbers.append(shard)
    return numbers


@dataclass
class _Hosts:
    """Hosts that did not answer several times: asking them on would only cost time."""

    silent: Counter[str] = field(default_factory=Counter)
    lock: Lock = field(default_factory=Lock)

    def given_up(self, host: str) -> bool:
        with self.lock:
            return self.silent[host] >= _SILENT_LOOKS

    def note(self, host: str, *, answered: bool) -> None:
        with self.lock:
            self.silent[host] = 0 if answered else self.silent[host] + 1


def _inspect_all(urls: Sequence[str], settings: Settings) -> list[SceneHeader | None]:
    hosts = _Hosts()
    with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="inspect") as pool:
        return list(pool.map(lambda url: _inspect(url, hosts, settings), urls))


def _inspect(url: str, hosts: _Hosts, settings: Settings) -> SceneHeader | None:
    host = urlsplit(url).netloc
    if hosts.given_up(host):
        return None
    try:
        header = look(url, settings)
    except TaskError as error:
        hosts.note(host, answered=not host or error.code != "unreachable")
        return None
    except Exception:
        # A defect met in one scene is that one's own: its task will run into it again.
        log.exception("the header of a scene could not be read")
        return None
    hosts.note(host, answered=True)
    return header
