"""Registered models and their versions."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import ColumnElement, bindparam, exists, func, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.api_schema import ModelCard, Tune
from geostudio_dagster.catalog.cards import card_of_model, lock_name
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.records import ModelRecord
from geostudio_dagster.catalog.rows import columns, model_record
from geostudio_dagster.catalog.schema import Model
from geostudio_dagster.errors import NotFound

if TYPE_CHECKING:
    from geostudio_dagster.models.bundle import Bundle


_BY_ID = select(*columns(Model, ModelRecord)).where(Model.id == bindparam("id"))


class Registry(Database):
    """The catalog's models."""

    def register_model(
        self, bundle: Bundle, *, uri: str, owner: str, listed: bool = True
    ) -> ModelRecord:
        """Record a bundle that lies at ``uri``.

        The same name and digest give the version that is there; other content under a known
        name becomes its next version.

        Args:
            listed: whether it gets a card of its own, which everybody sees.
        """
        name = bundle.manifest.name
        with self._write() as session:
            lock_name(session, f"model {name}")
            versions = session.scalars(select(Model).where(Model.name == name)).all()
            same = next((row for row in versions if row.digest == bundle.digest), None)
            if same is not None:
                if listed:
                    card_of_model(session, same)
                return model_record(same)
            row = Model(
                id=str(uuid4()),
                name=name,
                version=max((row.version for row in versions), default=0) + 1,
                digest=bundle.digest,
                uri=uri,
                manifest=bundle.manifest.model_dump(mode="json"),
                owner=owner,
                created_at=utc_now(),
            )
            session.add(row)
            if listed:
                session.flush()
                card_of_model(session, row)
            return model_record(row)

    def model(self, reference: str) -> ModelRecord:
        """The model of an id, of ``name@version``, or the newest of a name.

        A model that was deleted is found by its id only: requests go on to name it.

        Raises:
            NotFound: there is none; the sentence names what comes close.
        """
        found = self._rows(_BY_ID, id=reference)
        if found:
            return model_record(found[0])
        name, _, version = reference.partition("@")
        row = None
        with self._read() as session:
            if version.isdecimal() and len(version) < len("1000000000"):
                query = select(Model).where(Model.name == name, Model.version == int(version))
                row = session.scalar(query.where(_offered()))
            elif not version:
                query = select(Model).where(Model.name == name, _offered())
                row = session.scalar(query.order_by(Model.version.desc()).limit(1))
            if row is None:
                raise NotFound(_not_found(session, reference, name))
            return model_record(row)

    def manifests(self, model_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """The manifests of registered bundles, by the models' ids."""
        query = select(Model.id, Model.manifest).where(Model.id.in_(sorted(model_ids)))
        with self._read() as session:
            return dict(session.execute(query).tuples().all())

    def models(self) -> list[ModelRecord]:
        """All models, by name, the newest version first."""
        with self._read() as session:
            query = select(Model).where(_offered())
            rows = session.scalars(query.order_by(Model.name, Model.version.desc()))
            return [model_record(row) for row in rows]


def _offered() -> ColumnElement[bool]:
    """That not all cards and tunes of a model were deleted."""
    deleted = [
        exists().where(table.model_id == Model.id, table.deleted_at.is_not(None))
        for table in (ModelCard, Tune)
    ]
    alive = [
        exists().where(table.model_id == Model.id, table.deleted_at.is_(None))
        for table in (ModelCard, Tune)
    ]
    return ~(deleted[0] | deleted[1]) | alive[0] | alive[1]


def _not_found(session: Session, reference: str, name: str) -> str:
    query = select(Model.name, func.max(Model.version)).where(_offered())
    query = query.group_by(Model.name).order_by(Model.name)
    newest = dict(session.execute(query).tuples().all())
    if not newest:
        return (
            f"There is no model {reference}: none is registered yet; "
            "add one with: geostudio-dagster models add FOLDER."
        )
    if name in newest:
        return (
            f"There is no model {reference}: the newest version of {name} is {newest[name]}; "
            f"use {name}@{newest[name]}."
        )
    lowered = {found.lower(): found for found in newest}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)
    if close:
        names = ", ".join(lowered[match] for match in close)
        return f"There is no model {reference}; did you mean {names}?"
    return f"There is no model {reference}; registered are {', '.join(list(newest)[:5])}."
