"""Files that users upload to hand on, or to name in a request."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import String, cast, func, select, update

from geostudio_dagster.catalog.api_schema import Share
from geostudio_dagster.catalog.changes import chunks, rows_changed
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.schema import Request
from geostudio_dagster.catalog.states import LIVE_REQUESTS
from geostudio_dagster.errors import Conflict, NotFound

_MOST_WAITING = 1000


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """A place for one file; ``uploaded_at`` is None until the file is there.

    ``key`` is its storage key, ``expires_at`` when the file goes.
    """

    id: str
    owner: str
    name: str
    key: str
    size: int | None
    media_type: str
    created_at: dt.datetime
    uploaded_at: dt.datetime | None
    expires_at: dt.datetime


class Shares(Database):
    """The catalog's shared files."""

    def create_share(
        self, owner: str, name: str, file_name: str, life: dt.timedelta, media_type: str
    ) -> ShareRecord:
        """A new place for a file, nobody else's, for as long as ``life`` unless it is filled.

        Args:
            name: as the user gave it. file_name: what it is called in storage.

        Raises:
            Conflict: the owner has too many places without a file.
        """
        now = utc_now()
        identifier = str(uuid4())
        row = Share(
            id=identifier,
            owner=owner,
            name=name,
            key=f"shares/{identifier}/{file_name}",
            size=None,
            media_type=media_type,
            created_at=now,
            uploaded_at=None,
            expires_at=now + life,
        )
        waiting = select(func.count()).where(
            Share.owner == owner, Share.uploaded_at.is_(None), Share.expires_at > now
        )
        with self._write() as session:
            if (session.scalar(waiting) or 0) >= _MOST_WAITING:
                raise Conflict(
                    f"You asked for {_MOST_WAITING} upload links that are not used yet; use "
                    "those, or wait until they expire."
                )
            session.add(row)
            return _record(row)

    def share(self, share_id: str) -> ShareRecord:
        """The place of that id.

        Raises:
            NotFound: there is none.
        """
        with self._read() as session:
            row = session.get(Share, share_id)
            if row is None:
                raise NotFound("There is no such shared file.")
            return _record(row)

    def shares(self, share_ids: Sequence[str]) -> dict[str, ShareRecord]:
        """Those of the places that there are, by id."""
        found: dict[str, ShareRecord] = {}
        with self._read() as session:
            for part in chunks(share_ids):
                rows = session.scalars(select(Share).where(Share.id.in_(part)))
                found |= {row.id: _record(row) for row in rows}
        return found

    def finish_upload(self, share_id: str, size: int, media_type: str, life: dt.timedelta) -> bool:
        """Note that the file is there, for ``life`` from now on; False if it was noted before."""
        now = utc_now()
        statement = (
            update(Share)
            .where(Share.id == share_id, Share.uploaded_at.is_(None))
            .values(size=size, media_type=media_type, uploaded_at=now, expires_at=now + life)
        )
        with self._write() as session:
            return rows_changed(session.execute(statement)) == 1

    def keep_shares(self, share_ids: Sequence[str], life: dt.timedelta) -> set[str]:
        """Keep the files at least for ``life`` from now on: a request names them.

        Returns:
            those whose files are there, and stay.
        """
        until = utc_now() + life
        kept: set[str] = set()
        with self._write() as session:
            for part in chunks(share_ids):
                there = (Share.id.in_(part), Share.uploaded_at.is_not(None))
                session.execute(
                    update(Share).where(*there, Share.expires_at < until).values(expires_at=until)
                )
                kept |= set(session.scalars(select(Share.id).where(*there)))
        return kept

    def close_share(self, share_id: str, now: dt.datetime) -> bool:
        """Promise an expired file to nobody from now on, so that it can go; False if it is kept."""
        closed = (
            update(Share)
            .where(Share.id == share_id, Share.expires_at <= now)
            .values(uploaded_at=None)
        )
        with self._write() as session:
            return rows_changed(session.execute(closed)) == 1

    def expired_shares(self, now: dt.datetime, limit: int) -> list[ShareRecord]:
        """Places whose time is over and whose file no live request names, the oldest first."""
        named = (
            select(Request.id)
            .where(
                Request.status.in_(LIVE_REQUESTS),
                cast(Request.spec, String).contains(Share.id),
            )
            .exists()
        )
        query = (
            select(Share)
            .where(Share.expires_at <= now, ~named)
            .order_by(Share.expires_at)
            .limit(limit)
        )
        with self._read() as session:
            return [_record(row) for row in session.scalars(query)]

    def forget_share(self, share_id: str) -> None:
        """Remove the row, once the file is gone."""
        with self._write() as session:
            row = session.get(Share, share_id)
            if row is not None:
                session.delete(row)


def _record(row: Share) -> ShareRecord:
    return ShareRecord(
        id=row.id,
        owner=row.owner,
        name=row.name,
        key=row.key,
        size=row.size,
        media_type=row.media_type,
        created_at=row.created_at,
        uploaded_at=row.uploaded_at,
        expires_at=row.expires_at,
    )
