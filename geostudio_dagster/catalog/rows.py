"""From database rows to the values that callers keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.changes import chunks
from geostudio_dagster.catalog.records import (
    ArtifactRecord,
    EventRecord,
    LayerRecord,
    ModelRecord,
    RequestRecord,
    ShardRecord,
    ShownLayer,
    StepRecord,
    TaskRecord,
    Window,
)
from geostudio_dagster.catalog.schema import (
    Artifact,
    Base,
    Event,
    Layer,
    Model,
    Request,
    Shard,
    Step,
    Task,
)


def columns(table: type[Base], record: type[Any]) -> list[ColumnElement[Any]]:
    """The columns of a table that are read for a record, which is made of any such row."""
    names = {field.name for field in fields(record)}
    return [column for column in table.__table__.columns if column.key in names]


def model_record(row: Model | Row[Any]) -> ModelRecord:
    """A model."""
    return ModelRecord(
        id=row.id,
        name=row.name,
        version=row.version,
        digest=row.digest,
        uri=row.uri,
        manifest=row.manifest,
        owner=row.owner,
        created_at=row.created_at,
    )


def request_record(row: Request | Row[Any]) -> RequestRecord:
    """A request."""
    return RequestRecord(
        id=row.id,
        model_id=row.model_id,
        spec=row.spec,
        owner=row.owner,
        status=row.status,
        error=row.error,
        priority=row.priority,
        n_tasks=row.n_tasks,
        estimate=row.estimate,
        cancel_requested=row.cancel_requested,
        publish_attempt=row.publish_attempt,
        publish_run_id=row.publish_run_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
        card_id=row.card_id,
        deleted_at=row.deleted_at,
    )


def shard_record(row: Shard) -> ShardRecord:
    """A shard."""
    return ShardRecord(
        key=row.key,
        request_id=row.request_id,
        number=row.number,
        status=row.status,
        attempt=row.attempt,
        run_id=row.run_id,
        not_before=row.not_before,
        n_tasks=row.n_tasks,
        submitted_at=row.submitted_at,
        priority=row.priority,
    )


def step_record(row: Step | Row[Any]) -> StepRecord:
    """A step."""
    return StepRecord(
        process_id=row.process_id,
        number=row.number,
        status=row.status,
        attempts=row.attempts,
        crashes=row.crashes,
        in_hand=row.in_hand,
        run_id=row.run_id,
        lease_until=row.lease_until,
        error_code=row.error_code,
        error=row.error,
        started_at=row.started_at,
        finished_at=row.finished_at,
        metrics=row.metrics or {},
    )


def task_record(row: Task | Row[Any], steps: Sequence[Step | Row[Any]]) -> TaskRecord:
    """A task with its steps."""
    return TaskRecord(
        id=row.id,
        request_id=row.request_id,
        shard_key=row.shard_key,
        number=row.number,
        url=row.url,
        date=row.date,
        window=cast("Window", tuple(row.window)) if row.window else None,
        scene_size=cast("tuple[int, int]", tuple(row.scene_size)) if row.scene_size else None,
        footprint=row.footprint,
        pixels=row.pixels,
        status=row.status,
        error=row.error,
        steps=tuple(step_record(step) for step in steps),
    )


def task_records(session: Session, tasks: Sequence[Task]) -> list[TaskRecord]:
    """Tasks, in the given order, with their steps."""
    steps: dict[str, list[Step]] = defaultdict(list)
    for part in chunks([task.id for task in tasks]):
        query = select(Step).where(Step.task_id.in_(part)).order_by(Step.task_id, Step.number)
        for step in session.scalars(query.execution_options(populate_existing=True)):
            steps[step.task_id].append(step)
    return [task_record(task, steps[task.id]) for task in tasks]


def artifact_record(row: Artifact) -> ArtifactRecord:
    """An artifact."""
    return ArtifactRecord(
        owner_id=row.owner_id,
        name=row.name,
        key=row.key,
        media_type=row.media_type,
        size=row.size,
        sha256=row.sha256,
        metadata=row.details,
    )


def layer_record(row: Layer | Row[Any]) -> LayerRecord:
    """A layer."""
    return LayerRecord(
        request_id=row.request_id,
        name=row.name,
        title=row.title,
        kind=row.kind,
        bounds=cast("tuple[float, float, float, float]", tuple(row.bounds)),
        style=row.style,
        granules=tuple(row.granules),
        uri=row.uri,
        digest=row.digest,
        published_at=row.published_at,
    )


def shown_layer(row: Row[Any]) -> ShownLayer:
    """A layer without its granules."""
    return ShownLayer(
        request_id=row.request_id,
        name=row.name,
        title=row.title,
        bounds=cast("tuple[float, float, float, float]", tuple(row.bounds)),
        style=row.style,
        uri=row.uri,
    )


def event_record(row: Event) -> EventRecord:
    """An event."""
    return EventRecord(id=row.id, at=row.at, kind=row.kind, detail=row.detail)
