"""Registered models and their versions."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.records import ModelRecord
from geostudio_dagster.catalog.rows import model_record
from geostudio_dagster.catalog.schema import Model
from geostudio_dagster.errors import NotFound

if TYPE_CHECKING:
    from geostudio_dagster.models.bundle import Bundle


class Registry(Database):
    """The catalog's models."""

    def register_model(self, bundle: Bundle, *, uri: str, owner: str) -> ModelRecord:
        """Record a bundle that lies at ``uri``.

        The same name and digest give the version that is there; other content under a known
        name becomes its next version.
        """
        name = bundle.manifest.name
        with self._write() as session:
            _lock_name(session, name)
            versions = session.scalars(select(Model).where(Model.name == name)).all()
            same = next((row for row in versions if row.digest == bundle.digest), None)
            if same is not None:
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
            return model_record(row)

    def model(self, reference: str) -> ModelRecord:
        """The model of an id, of ``name@version``, or the newest of a name.

        Raises:
            NotFound: there is none; the sentence names what comes close.
        """
        name, _, version = reference.partition("@")
        with self._read() as session:
            row = session.get(Model, reference)
            if row is None and version.isdecimal() and len(version) < len("1000000000"):
                query = select(Model).where(Model.name == name, Model.version == int(version))
                row = session.scalar(query)
            elif row is None and not version:
                query = select(Model).where(Model.name == name).order_by(Model.version.desc())
                row = session.scalar(query.limit(1))
            if row is None:
                raise NotFound(_not_found(session, reference, name))
            return model_record(row)

    def models(self) -> list[ModelRecord]:
        """All models, by name, the newest version first."""
        with self._read() as session:
            rows = session.scalars(select(Model).order_by(Model.name, Model.version.desc()))
            return [model_record(row) for row in rows]


def _lock_name(session: Session, name: str) -> None:
    # Two processes that register the same name count its versions one after the other. SQLite
    # has one writer anyway.
    if session.get_bind().dialect.name == "postgresql":
        key = func.hashtextextended(f"geostudio model {name}", 0)
        session.execute(select(func.pg_advisory_xact_lock(key)))


def _not_found(session: Session, reference: str, name: str) -> str:
    query = select(Model.name, func.max(Model.version)).group_by(Model.name).order_by(Model.name)
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
