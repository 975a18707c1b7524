"""Tunes: fine-tuned models that users uploaded, each theirs and their groups'."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.api_schema import Tune
from geostudio_dagster.catalog.card_records import TuneRecord
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.pages import Column, Paging
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import NotFound

KIND = "tune"
PENDING, FINISHED = "Pending", "Finished"
NO_TUNE = "Tune not found"
NO_EDIT = "Missing permissions to edit this record."
NO_DELETE = "Missing permissions to delete this record."
_ALPHABET = string.ascii_lowercase + string.digits
_ID_LENGTH = 22
_SORTED_BY: Mapping[str, Column] = {
    "created_at": Tune.created_at,
    "updated_at": Tune.updated_at,
    "name": Tune.name,
    "status": Tune.status,
}


@dataclass(frozen=True, slots=True)
class TuneFilter:
    """Which tunes to list; None is any. ``shared``: those of others that a group shares."""

    name: str | None = None
    status: str | None = None
    shared: bool | None = None


class Tunes(Database):
    """The catalog's tunes."""

    def create_tune(
        self,
        viewer: Viewer,
        name: str,
        description: str,
        *,
        config_url: str,
        checkpoint_url: str,
        details: Mapping[str, Any],
    ) -> TuneRecord:
        """A tune that waits to be fetched."""
        now = utc_now()
        letters = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
        row = Tune(
            id=f"geotune-{letters}",
            name=name,
            description=description,
            status=PENDING,
            details=dict(details),
            config_url=config_url,
            checkpoint_url=checkpoint_url,
            owner=viewer.email,
            created_at=now,
            updated_at=now,
        )
        with self._write() as session:
            session.add(row)
        return tune_record(row)

    def tune(self, viewer: Viewer, tune_id: str) -> TuneRecord:
        """A tune that the viewer may see.

        Raises:
            NotFound: there is none.
        """
        with self._read() as session:
            return tune_record(_found(session, viewer, tune_id))

    def any_tune(self, tune_id: str) -> TuneRecord:
        """A tune, for who has a link to it.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        with self._read() as session:
            row = session.get(Tune, tune_id)
            if row is None or row.deleted_at is not None:
                raise NotFound(NO_TUNE)
            return tune_record(row)

    def tunes(
        self, viewer: Viewer, wanted: TuneFilter, page: Paging
    ) -> tuple[int, list[TuneRecord]]:
        """How many tunes match in all, and those on the page.

        ``page.q`` is looked for in name, description and id.

        Raises:
            InvalidRequest: the page is sorted by an unknown field.
        """
        query = _visible(viewer)
        text = page.contains(Tune.name, Tune.description, Tune.id)
        for condition in (*_conditions(viewer, wanted), *([] if text is None else [text])):
            query = query.where(condition)
        ordered = query.order_by(*page.order(_SORTED_BY, Tune.id))
        counted = select(func.count()).select_from(query.with_only_columns(Tune.id).subquery())
        with self._read() as session:
            total = session.scalar(counted) or 0
            rows = session.scalars(ordered.limit(page.limit).offset(page.skip))
            return total, [tune_record(row) for row in rows]

    def update_tune(
        self, viewer: Viewer, tune_id: str, columns: Mapping[str, str], details: Mapping[str, Any]
    ) -> TuneRecord:
        """Change name or description of a tune of the viewer's, and what is in its details.

        Raises:
            NotFound: there is none, or it is not the viewer's.
        """
        with self._write() as session:
            row = own_tune(session, viewer, tune_id, NO_EDIT)
            row.name = columns.get("name", row.name)
            row.description = columns.get("description", row.description)
            row.details = {**row.details, **details}
            row.updated_at = utc_now()
            return tune_record(row)

    def delete_tune(self, viewer: Viewer, tune_id: str) -> None:
        """Take a tune away from all eyes.

        Raises:
            NotFound: there is none, or it is not the viewer's.
        """
        with self._write() as session:
            row = own_tune(session, viewer, tune_id, NO_DELETE)
            row.deleted_at = row.updated_at = utc_now()


def tune_record(row: Tune) -> TuneRecord:
    """A tune."""
    return TuneRecord(
        id=row.id,
        name=row.name,
        description=row.description,
        status=row.status,
        error=row.error,
        details=row.details,
        config_url=row.config_url,
        checkpoint_url=row.checkpoint_url,
        owner=row.owner,
        model_id=row.model_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def own_tune(session: Session, viewer: Viewer, tune_id: str, refusal: str) -> Tune:
    """A tune that the viewer may change, locked.

    Raises:
        NotFound: there is none that they see; or, in the words of ``refusal``, none of theirs.
    """
    _found(session, viewer, tune_id)
    query = select(Tune).where(
        Tune.id == tune_id, Tune.deleted_at.is_(None), viewer.owns(Tune.owner)
    )
    row = session.scalar(query.with_for_update())
    if row is None:
        raise NotFound(refusal)
    return row


def _visible(viewer: Viewer) -> Select[tuple[Tune]]:
    seen = viewer.sees(KIND, owner=Tune.owner, artifact_id=Tune.id)
    return select(Tune).where(Tune.deleted_at.is_(None), seen)


def _found(session: Session, viewer: Viewer, tune_id: str) -> Tune:
    row = session.scalar(_visible(viewer).where(Tune.id == tune_id))
    if row is None:
        raise NotFound(NO_TUNE)
    return row


def _conditions(viewer: Viewer, wanted: TuneFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.name is not None:
        conditions.append(Tune.name.icontains(wanted.name, autoescape=True))
    if wanted.status is not None:
        conditions.append(Tune.status == wanted.status)
    if wanted.shared is not None:
        own = Tune.owner == viewer.email
        conditions.append(~own if wanted.shared else own)
    return conditions
