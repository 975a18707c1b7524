"""Data sources that users described, beside those that the platform brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError

from geostudio_dagster.catalog.api_schema import DataSource
from geostudio_dagster.catalog.card_records import SourceRecord
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import Conflict, NotFound

NO_DELETE = "Missing permissions to delete this record."
_FOR_ALL = "for_all"


class Sources(Database):
    """The catalog's data sources: each user's own, and those of administrators for all."""

    def create_source(
        self, viewer: Viewer, connector: str, collection: str, document: Mapping[str, Any]
    ) -> SourceRecord:
        """Describe a data source; an administrator's is seen by everybody.

        Raises:
            Conflict: the viewer has described it already.
        """
        row = DataSource(
            id=str(uuid4()),
            connector=connector,
            collection=collection,
            document={"entry": dict(document), _FOR_ALL: viewer.admin},
            owner=viewer.email,
            created_at=utc_now(),
        )
        try:
            with self._write() as session:
                session.add(row)
        except IntegrityError as error:
            raise Conflict(
                f"The data source {connector} {collection} is described already; delete it first."
            ) from error
        return _record(row)

    def sources(self, viewer: Viewer) -> list[SourceRecord]:
        """All that the viewer sees, by connector and collection."""
        seen = or_(
            viewer.owns(DataSource.owner), DataSource.document[_FOR_ALL].as_boolean().is_(True)
        )
        query = select(DataSource).where(seen)
        order = (DataSource.connector, DataSource.collection, DataSource.created_at, DataSource.id)
        with self._read() as session:
            return [_record(row) for row in session.scalars(query.order_by(*order))]

    def sources_for_all(self) -> list[SourceRecord]:
        """Those that administrators described, in the order that they did."""
        query = (
            select(DataSource)
            .where(DataSource.document[_FOR_ALL].as_boolean().is_(True))
            .order_by(DataSource.created_at, DataSource.id)
        )
        with self._read() as session:
            return [_record(row) for row in session.scalars(query)]

    def delete_source(self, viewer: Viewer, source_id: str) -> None:
        """Forget a data source of the viewer's.

        Raises:
            NotFound: there is none.
        """
        query = select(DataSource).where(DataSource.id == source_id, viewer.owns(DataSource.owner))
        with self._write() as session:
            row = session.scalar(query.with_for_update())
            if row is None:
                raise NotFound(NO_DELETE)
            session.delete(row)


def _record(row: DataSource) -> SourceRecord:
    return SourceRecord(
        id=row.id,
        connector=row.connector,
        collection=row.collection,
        document=row.document["entry"],
        owner=row.owner,
        created_at=row.created_at,
        for_all=bool(row.document.get(_FOR_ALL)),
    )
