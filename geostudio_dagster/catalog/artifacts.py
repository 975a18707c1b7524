"""Files that tasks and requests made, and the events of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.changes import chunks, insert_into, lock_request
from geostudio_dagster.catalog.database import Database
from geostudio_dagster.catalog.records import ArtifactRecord, EventRecord
from geostudio_dagster.catalog.rows import artifact_record, event_record
from geostudio_dagster.catalog.schema import Artifact, Event, Request, Task
from geostudio_dagster.errors import NotFound


class Artifacts(Database):
    """The catalog's artifacts and events."""

    def put_artifacts(self, artifacts: Sequence[ArtifactRecord]) -> None:
        """Write artifacts of tasks or requests, each in place of the one of the same role.

        Raises:
            NotFound: an owner is neither a task nor a request; nothing is written.
        """
        with self._write() as session:
            owners = _requests_of(session, sorted({item.owner_id for item in artifacts}))
            for request_id in sorted(set(owners.values())):
                lock_request(session, request_id)
                own = [item for item in artifacts if owners[item.owner_id] == request_id]
                upsert_artifacts(session, request_id, own)

    def artifact(self, owner_id: str, name: str) -> ArtifactRecord:
        """The artifact of a role.

        Raises:
            NotFound: there is none.
        """
        with self._read() as session:
            row = session.get(Artifact, (owner_id, name))
            if row is None:
                raise NotFound(f"{owner_id} has no artifact {name}.")
            return artifact_record(row)

    def artifacts(self, owner_id: str) -> list[ArtifactRecord]:
        """All artifacts of a task or of a request itself, by name."""
        query = select(Artifact).where(Artifact.owner_id == owner_id).order_by(Artifact.name)
        with self._read() as session:
            return [artifact_record(row) for row in session.scalars(query)]

    def artifacts_named(self, name: str, owner_ids: Sequence[str]) -> dict[str, ArtifactRecord]:
        """The artifact of a role of each of many owners, by owner; absent where there is none."""
        found: dict[str, ArtifactRecord] = {}
        with self._read() as session:
            for part in chunks(owner_ids):
                query = select(Artifact).where(Artifact.owner_id.in_(part), Artifact.name == name)
                found |= {row.owner_id: artifact_record(row) for row in session.scalars(query)}
        return found

    def artifacts_in_role(
        self, prefix: str, owner_ids: Sequence[str]
    ) -> dict[str, list[ArtifactRecord]]:
        """The artifacts whose role begins with ``prefix``, by owner and then by role."""
        found: dict[str, list[ArtifactRecord]] = {}
        role = Artifact.name.startswith(prefix, autoescape=True)
        with self._read() as session:
            for part in chunks(owner_ids):
                query = select(Artifact).where(Artifact.owner_id.in_(part), role)
                for row in session.scalars(query.order_by(Artifact.name)):
                    found.setdefault(row.owner_id, []).append(artifact_record(row))
        return found

    def events(self, request_id: str, after: int = 0, limit: int = 10_000) -> list[EventRecord]:
        """What happened to the request after the event of that id, in order."""
        query = (
            select(Event)
            .where(Event.request_id == request_id, Event.id > after)
            .order_by(Event.id)
            .limit(limit)
        )
        with self._read() as session:
            return [event_record(row) for row in session.scalars(query)]

    def latest_events(self, after: Mapping[str, int]) -> dict[str, int]:
        """The id of the latest event of each request that has one after the given id."""
        latest: dict[str, int] = {}
        with self._read() as session:
            for part in chunks(list(after.items()), 100):
                newer = [and_(Event.request_id == key, Event.id > event) for key, event in part]
                query = select(Event.request_id, func.max(Event.id)).where(or_(*newer))
                rows = session.execute(query.group_by(Event.request_id)).tuples()
                latest |= dict(rows.all())
        return latest


def forget_artifacts(
    session: Session, owner_id: str, prefix: str, but: Sequence[ArtifactRecord]
) -> list[str]:
    """Remove the artifacts whose role begins with ``prefix``, except ``but``; their keys."""
    if not prefix:
        return []
    query = select(Artifact).where(
        Artifact.owner_id == owner_id, Artifact.name.startswith(prefix, autoescape=True)
    )
    kept_roles, kept_keys = {item.name for item in but}, {item.key for item in but}
    stale = [row for row in session.scalars(query) if row.name not in kept_roles]
    for row in stale:
        session.delete(row)
    session.flush()
    return sorted({row.key for row in stale} - kept_keys)


def upsert_artifacts(
    session: Session, request_id: str, artifacts: Sequence[ArtifactRecord]
) -> None:
    """Write artifacts, each in place of the one of the same owner and role."""
    latest = {(item.owner_id, item.name): item for item in artifacts}
    for part in chunks(list(latest.values()), 100):
        statement = insert_into(session, Artifact.__table__).values(
            [_artifact_row(request_id, item) for item in part]
        )
        replaced = {
            column.name: column
            for column in statement.excluded
            if column.name not in ("owner_id", "name")
        }
        session.execute(
            statement.on_conflict_do_update(index_elements=["owner_id", "name"], set_=replaced)
        )


def _artifact_row(request_id: str, item: ArtifactRecord) -> dict[str, Any]:
    return {
        "owner_id": item.owner_id,
        "name": item.name,
        "request_id": request_id,
        "key": item.key,
        "media_type": item.media_type,
        "size": item.size,
        "sha256": item.sha256,
        "metadata": dict(item.metadata),
    }


def _requests_of(session: Session, owners: Sequence[str]) -> dict[str, str]:
    """The request of each owner: its own id, or that of the task's request."""
    found: dict[str, str] = {}
    for part in chunks(owners):
        own = session.scalars(select(Request.id).where(Request.id.in_(part)))
        found |= {request_id: request_id for request_id in own}
        tasks = select(Task.id, Task.request_id).where(Task.id.in_(part))
        found |= dict(session.execute(tasks).tuples().all())
    missing = next((owner for owner in owners if owner not in found), None)
    if missing is not None:
        raise NotFound(f"There is no task or request {missing}.")
    return found
