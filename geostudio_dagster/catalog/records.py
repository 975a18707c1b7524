"""What the catalog hands out: plain, frozen values that outlive any database session.

Times are aware, UTC, with microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from geostudio_dagster.catalog.states import RequestStatus, ShardStatus, StepStatus

Window = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task to be recorded.

    Attributes:
        shard: number of the shard it belongs to, from 0.
        window: column and row offset, width and height of its core in scene pixels; None is all.
        scene_size: width and height of the whole scene, pixels.
        footprint: GeoJSON geometry, EPSG:4326.
        steps: process ids in order; ``push-to-geoserver``, if there, is the last.
    """

    id: str
    url: str
    date: str | None
    shard: int
    window: Window | None
    scene_size: tuple[int, int] | None
    footprint: dict[str, Any] | None
    pixels: int | None
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A request's tasks, in order, and what they are expected to cost."""

    tasks: tuple[PlannedTask, ...]
    shard_count: int
    estimate: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One version of a registered model; ``uri`` is the bundle's folder."""

    id: str
    name: str
    version: int
    digest: str
    uri: str
    manifest: dict[str, Any]
    owner: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request; ``publish_attempt`` counts its publications and makes their run keys.

    ``card_id`` is the card that its model was asked for by.
    """

    id: str
    model_id: str
    spec: dict[str, Any]
    owner: str
    status: RequestStatus
    error: str | None
    priority: int
    n_tasks: int
    estimate: dict[str, Any]
    cancel_requested: bool
    publish_attempt: int
    publish_run_id: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    card_id: str | None = None
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One partition of a request.

    ``run_id`` is the run that answers for it while RUNNING; otherwise the last one that did.
    """

    key: str
    request_id: str
    number: int
    status: ShardStatus
    attempt: int
    run_id: str | None
    not_before: datetime
    n_tasks: int
    submitted_at: datetime | None
    priority: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One stage of a task; ``in_hand`` while a process is at it, not merely holding it."""

    process_id: str
    number: int
    status: StepStatus
    attempts: int
    crashes: int
    in_hand: bool
    run_id: str | None
    lease_until: datetime | None
    error_code: str | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task with its steps in order; ``number`` is its place in the plan, from 0."""

    id: str
    request_id: str
    shard_key: str
    number: int
    url: str
    date: str | None
    window: Window | None
    scene_size: tuple[int, int] | None
    footprint: dict[str, Any] | None
    pixels: int | None
    status: StepStatus
    error: str | None
    steps: tuple[StepRecord, ...]

    def step(self, process_id: str) -> StepRecord:
        """The step of ``process_id``.

        Raises:
            KeyError: the task has no such step.
        """
        for step in self.steps:
            if step.process_id == process_id:
                return step
        raise KeyError(process_id)


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A file of a task or of a request: one per role ``name``.

    ``key`` is the storage key, or the address of a file outside the storage.
    """

    owner_id: str
    name: str
    key: str
    media_type: str
    size: int | None
    sha256: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One published layer; ``bounds`` are west, south, east, north in EPSG:4326.

    Each granule is ``{"task_id", "key", "bounds"}``.
    """

    request_id: str
    name: str
    title: str
    kind: str
    bounds: tuple[float, float, float, float]
    style: dict[str, Any]
    granules: tuple[dict[str, Any], ...]
    uri: str
    digest: str
    published_at: datetime


@dataclass(frozen=True, slots=True)
class ShownLayer:
    """What lists show of a layer; not its granules, of which there may be 100,000."""

    request_id: str
    name: str
    title: str
    bounds: tuple[float, float, float, float]
    style: dict[str, Any]
    uri: str


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a request; ids grow in the order of commit."""

    id: int
    at: datetime
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a shard's tasks stand at the end of a run; ``retry_at`` is None once it is settled."""

    finished: int
    failed: int
    stopped: int
    waiting: int
    held_elsewhere: int
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """A request in figures; the mappings have every status, with 0 where there is none."""

    request: RequestRecord
    model: ModelRecord
    tasks_by_status: Mapping[str, int]
    steps_by_status: Mapping[str, Mapping[str, int]]
    shards_by_status: Mapping[str, int]
    pixels_done: int
    pixels_total: int
