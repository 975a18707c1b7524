"""Users' processors: versions, who sees them, and the chains that requests pinned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Select, and_, func, insert, or_, select, true
from sqlalchemy.orm import Session, aliased

from geostudio_dagster.catalog.api_schema import Permission
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.pages import Paging
from geostudio_dagster.catalog.processor_records import (
    PinnedProcessor,
    Position,
    ProcessorDraft,
    ProcessorRecord,
)
from geostudio_dagster.catalog.processor_schema import Processor, RequestProcessor
from geostudio_dagster.catalog.schema import Request
from geostudio_dagster.catalog.states import LIVE_REQUESTS
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import NotFound

KIND = "generic_processor"
FINISHED = "FINISHED"
_DEFINITION = (
    "sha256",
    "parameters",
    "parameters_schema",
    "contract",
    "position",
    "limits",
    "gpu",
)
_SHOWN = 5
_FIRST_PAGE = Paging(limit=1000)


class Processors(Database):
    """The catalog's processors. Without a viewer a question is the operator's, who sees all."""

    def register_processor(self, draft: ProcessorDraft, *, owner: str) -> ProcessorRecord:
        """Record a script that lies in storage.

        The same script with the same definition again is the version that is there (offered
        again if it was deprecated); anything else under a known name is its next version, which
        the groups that see the one before see, too.
        """
        now = utc_now()
        with self._write() as session:
            _lock(session, owner, draft.name)
            of_name = and_(Processor.owner == owner, Processor.name == draft.name)
            rows = session.scalars(
                select(Processor).where(of_name).order_by(Processor.version)
            ).all()
            alive = [row for row in rows if row.deleted_at is None]
            same = next((row for row in reversed(alive) if _is_same(row, draft)), None)
            if same is not None:
                _refresh(same, draft, now)
                return processor_record(same)
            row = _row(draft, owner, max((row.version for row in rows), default=0) + 1, now)
            session.add(row)
            session.flush()
            if alive:
                _share_alike(session, alive[-1].id, row.id)
            return processor_record(row)

    def processor(self, reference: str, viewer: Viewer | None = None) -> ProcessorRecord:
        """The processor of an id, of ``name@version``, or the newest version of a name.

        A name means the viewer's own processor first, then one that everybody has. Deprecated
        versions are found by id and by ``name@version`` only.

        Raises:
            NotFound: there is none that the viewer may see; the sentence names what there is.
        """
        with self._read() as session:
            row = session.scalar(_visible(viewer).where(Processor.id == reference))
            row = row or _by_name(session, reference, viewer)
            if row is None:
                raise NotFound(_not_found(session, reference, viewer))
            return processor_record(row)

    def processors(
        self,
        viewer: Viewer | None = None,
        page: Paging = _FIRST_PAGE,
        *,
        all_versions: bool = False,
    ) -> tuple[int, list[ProcessorRecord]]:
        """How many processors the viewer sees, and a page of them.

        ``q`` looks into names and descriptions.

        Raises:
            InvalidRequest: the list is not sorted by that field.
        """
        statement = _visible(viewer)
        looked_for = page.contains(Processor.name, Processor.description)
        if looked_for is not None:
            statement = statement.where(looked_for)
        if not all_versions:
            statement = statement.where(_is_newest())
        columns = {"created_at": Processor.created_at, "name": Processor.name}
        ordered = statement.order_by(*page.order(columns, Processor.id))
        with self._read() as session:
            total = session.scalar(select(func.count()).select_from(statement.subquery())) or 0
            rows = session.scalars(ordered.limit(page.limit).offset(page.skip))
            return total, [processor_record(row) for row in rows]

    def processor_versions(
        self, processor_id: str, viewer: Viewer | None = None
    ) -> list[ProcessorRecord]:
        """All versions of the same owner and name that are not deleted, the newest first.

        Raises:
            NotFound: the viewer sees no such processor.
        """
        known = self.processor(processor_id, viewer)
        statement = _visible(viewer).where(
            Processor.owner == known.owner, Processor.name == known.name
        )
        with self._read() as session:
            rows = session.scalars(statement.order_by(Processor.version.desc()))
            return [processor_record(row) for row in rows]

    def active_processors(self) -> list[ProcessorRecord]:
        """The newest offered version of every owner and name, by owner and name."""
        statement = _visible(None).where(Processor.status == FINISHED, _is_newest(offered=True))
        with self._read() as session:
            rows = session.scalars(statement.order_by(Processor.owner, Processor.name))
            return [processor_record(row) for row in rows]

    def processors_digest(self) -> str:
        """Changes whenever a processor is added, changed, deprecated or deleted."""
        statement = select(Processor.id, Processor.updated_at).order_by(Processor.id)
        with self._read() as session:
            lines = [f"{key} {at.isoformat()}" for key, at in session.execute(statement)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def deprecate_processor(
        self, processor_id: str, viewer: Viewer | None = None
    ) -> ProcessorRecord:
        """Offer a version no more; who names its version or id still gets it.

        Raises:
            NotFound: the viewer owns no such processor.
        """
        return self._end(processor_id, viewer, "deprecated_at")

    def delete_processor(self, processor_id: str, viewer: Viewer | None = None) -> ProcessorRecord:
        """Take a version away from everybody but the requests that pinned it.

        Raises:
            NotFound: the viewer owns no such processor.
        """
        return self._end(processor_id, viewer, "deleted_at")

    def _end(self, processor_id: str, viewer: Viewer | None, column: str) -> ProcessorRecord:
        now = utc_now()
        owned = true() if viewer is None else viewer.owns(Processor.owner)
        statement = select(Processor).where(
            Processor.id == processor_id, Processor.deleted_at.is_(None), owned
        )
        with self._write() as session:
            row = session.scalar(statement.with_for_update())
            if row is None:
                raise NotFound(f"There is no processor {processor_id} of yours.")
            if getattr(row, column) is None:
                setattr(row, column, now)
                row.updated_at = now
            return processor_record(row)

    def request_processors(self, request_id: str) -> list[PinnedProcessor]:
        """The request's chain, in order, with the scripts that it was accepted with."""
        statement = (
            select(RequestProcessor, Processor)
            .join(Processor, Processor.id == RequestProcessor.processor_id)
            .where(RequestProcessor.request_id == request_id)
            .order_by(RequestProcessor.number)
        )
        with self._read() as session:
            return [
                PinnedProcessor(
                    pin.number, processor_record(row), pin.parameters, Position(pin.position)
                )
                for pin, row in session.execute(statement)
            ]

    def requests_of_processor(self, processor_id: str, limit: int = 10) -> list[str]:
        """Ids of the requests that pinned a version, the newest first."""
        statement = (
            select(Request.id)
            .join(RequestProcessor, RequestProcessor.request_id == Request.id)
            .where(RequestProcessor.processor_id == processor_id)
            .order_by(Request.created_at.desc(), Request.id)
            .limit(limit)
        )
        with self._read() as session:
            return list(dict.fromkeys(session.scalars(statement)))

    def unneeded_scripts(self) -> list[str]:
        """Storage keys of deleted scripts that neither a version nor a live request needs."""
        other = aliased(Processor)
        kept = select(other.id).where(other.key == Processor.key, other.deleted_at.is_(None))
        pinned = (
            select(RequestProcessor.request_id)
            .join(Request, Request.id == RequestProcessor.request_id)
            .where(RequestProcessor.sha256 == Processor.sha256, Request.status.in_(LIVE_REQUESTS))
        )
        statement = (
            select(Processor.key)
            .where(Processor.deleted_at.is_not(None), ~kept.exists(), ~pinned.exists())
            .distinct()
        )
        with self._read() as session:
            return list(session.scalars(statement))


def pin_processors(session: Session, request_id: str, chain: Sequence[PinnedProcessor]) -> None:
    """Write a request's chain, in the transaction that writes the request.

    Raises:
        NotFound: a processor of the chain was deleted meanwhile.
    """
    for pin in chain:
        statement = select(Processor.id).where(
            Processor.id == pin.processor.id, Processor.deleted_at.is_(None)
        )
        if session.scalar(statement.with_for_update(read=True)) is None:
            raise NotFound(f"The processor {pin.processor.label} was deleted meanwhile.")
    rows: list[dict[str, Any]] = [
        {
            "request_id": request_id,
            "number": pin.number,
            "processor_id": pin.processor.id,
            "sha256": pin.processor.sha256,
            "parameters": pin.parameters,
            "position": str(pin.position),
        }
        for pin in chain
    ]
    if rows:
        session.execute(insert(RequestProcessor), rows)


def processor_record(row: Processor) -> ProcessorRecord:
    """A processor."""
    return ProcessorRecord(
        id=row.id,
        owner=row.owner,
        name=row.name,
        version=row.version,
        sha256=row.sha256,
        size=row.size,
        key=row.key,
        file_name=row.file_name,
        description=row.description,
        parameters=row.parameters,
        parameters_schema=row.parameters_schema,
        contract=row.contract,
        position=Position(row.position),
        limits=row.limits,
        gpu=row.gpu,
        report=row.report,
        status=row.status,
        sharable=row.sharable,
        created_at=row.created_at,
        updated_at=row.updated_at,
        deprecated_at=row.deprecated_at,
        deleted_at=row.deleted_at,
    )


def _visible(viewer: Viewer | None) -> Select[tuple[Processor]]:
    statement = select(Processor).where(Processor.deleted_at.is_(None))
    if viewer is None:
        return statement
    seen = viewer.sees(KIND, owner=Processor.owner, artifact_id=Processor.id)
    return statement.where(or_(seen, Processor.sharable))


def _is_newest(*, offered: bool = False) -> ColumnElement[bool]:
    """Whether no later version of the same owner and name is there (and, if so, offered)."""
    later = aliased(Processor)
    newer = select(later.id).where(
        later.owner == Processor.owner,
        later.name == Processor.name,
        later.version > Processor.version,
        later.deleted_at.is_(None),
    )
    if not offered:
        return ~newer.exists()
    newer = newer.where(later.deprecated_at.is_(None))
    return and_(Processor.deprecated_at.is_(None), ~newer.exists())


def _by_name(session: Session, reference: str, viewer: Viewer | None) -> Processor | None:
    name, _, version = reference.partition("@")
    statement = _visible(viewer).where(Processor.name == name)
    if version.isdecimal() and len(version) < len("1000000000"):
        statement = statement.where(Processor.version == int(version))
    elif version:
        return None
    else:
        statement = statement.where(Processor.deprecated_at.is_(None))
    own = Processor.owner == (viewer.email if viewer else "")
    # What everybody has goes before what somebody shared.
    order = (own.desc(), Processor.sharable.desc(), Processor.version.desc(), Processor.created_at)
    return session.scalar(statement.order_by(*order).limit(1))


def _not_found(session: Session, reference: str, viewer: Viewer | None) -> str:
    statement = _visible(viewer).where(Processor.deprecated_at.is_(None))
    names = session.scalars(statement.with_only_columns(Processor.name).distinct().limit(_SHOWN))
    known = ", ".join(sorted(names))
    hint = f"there are {known}" if known else "none is registered yet"
    return f"There is no processor {reference}; {hint}."


def _lock(session: Session, owner: str, name: str) -> None:
    # Two uploads of the same name count its versions one after the other. SQLite has one writer
    # anyway.
    if session.get_bind().dialect.name == "postgresql":
        key = func.hashtextextended(f"geostudio processor {owner} {name}", 0)
        session.execute(select(func.pg_advisory_xact_lock(key)))


def _is_same(row: Processor, draft: ProcessorDraft) -> bool:
    return all(getattr(row, name) == getattr(draft, name) for name in _DEFINITION)


def _refresh(row: Processor, draft: ProcessorDraft, now: datetime) -> None:
    changed: dict[str, Any] = {"report": dict(draft.report), "deprecated_at": None}
    if draft.description:
        changed["description"] = draft.description
    if any(getattr(row, name) != value for name, value in changed.items()):
        for name, value in changed.items():
            setattr(row, name, value)
        row.updated_at = now


def _row(draft: ProcessorDraft, owner: str, version: int, now: datetime) -> Processor:
    return Processor(
        id=str(uuid4()),
        owner=owner,
        name=draft.name,
        version=version,
        sha256=draft.sha256,
        size=draft.size,
        key=draft.key,
        file_name=draft.file_name,
        description=draft.description,
        parameters=dict(draft.parameters),
        parameters_schema=dict(draft.parameters_schema) if draft.parameters_schema else None,
        contract=draft.contract,
        position=str(draft.position),
        limits=dict(draft.limits),
        gpu=draft.gpu,
        report=dict(draft.report),
        status=FINISHED,
        sharable=draft.sharable,
        created_at=now,
        updated_at=now,
    )


def _share_alike(session: Session, before: str, after: str) -> None:
    grants = session.scalars(
        select(Permission).where(Permission.kind == KIND, Permission.artifact_id == before)
    )
    for grant in list(grants):
        session.add(
            Permission(
                group_id=grant.group_id,
                kind=KIND,
                artifact_id=after,
                granted_by=grant.granted_by,
                granted_at=grant.granted_at,
            )
        )
