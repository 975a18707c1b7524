"""Users and their API keys, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import secrets
import string
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.api_schema import ApiKey, GroupMember, User
from geostudio_dagster.catalog.changes import insert_into
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.rows import columns
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import Conflict, NotFound

PREFIX = "pak-"
_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 32
_SHOWN = 8
_USE_NOTED_EVERY = timedelta(minutes=10)


_OF_KEY = (
    select(ApiKey.id, ApiKey.email, ApiKey.last_used_at, User.admin, GroupMember.group_id)
    .join(User, User.email == ApiKey.email)
    .outerjoin(GroupMember, GroupMember.email == ApiKey.email)
    .where(
        ApiKey.hashed_key == bindparam("hashed"),
        ApiKey.active,
        ApiKey.revoked_at.is_(None),
        ApiKey.expires_at > bindparam("now"),
    )
)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key without its value; ``shown`` is the beginning of it."""

    id: str
    email: str
    label: str
    shown: str
    active: bool
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None

    @property
    def masked(self) -> str:
        """As lists show the key."""
        return self.shown + "*" * (len(PREFIX) + _LENGTH - len(self.shown))


_KEYS = (
    select(*columns(ApiKey, KeyRecord))
    .where(ApiKey.revoked_at.is_(None))
    .order_by(ApiKey.created_at.desc(), ApiKey.id)
)
_KEYS_OF = _KEYS.where(ApiKey.email == bindparam("email"))


class Accounts(Database):
    """The catalog's users and keys."""

    def create_key(
        self,
        email: str,
        *,
        days: float,
        limit: int | None = None,
        label: str = "",
        admin: bool | None = None,
    ) -> tuple[KeyRecord, str]:
        """A new key of a user, who is made where there is none; its value is told only here.

        Args:
            email: whose. days: until it expires. limit: how many live keys a user may have.
            label: what it is for. admin: makes the user an administrator, or no longer one.

        Raises:
            Conflict: the user has ``limit`` keys already.
        """
        now = utc_now()
        with self._write() as session:
            _ensure_user(session, email, now)
            user = session.get_one(User, email, with_for_update=True)
            if admin is not None:
                user.admin = admin
            if limit is not None and session.scalar(_live_keys(email, now)) >= limit:
                raise Conflict(
                    f"You already have {limit} API Keys registered. Delete one and try again."
                )
            return _add_key(session, email, label, now, now + timedelta(days=days))

    def first_key(self, email: str, *, days: float) -> str | None:
        """The value of a new administrator's key if there is no key at all; otherwise None."""
        now = utc_now()
        with self._read() as session:
            if session.scalar(select(ApiKey.id).limit(1)) is not None:
                return None
        with self._write() as session:
            _ensure_user(session, email, now)
            user = session.get_one(User, email, with_for_update=True)
            if session.scalar(select(ApiKey.id).limit(1)) is not None:
                return None
            user.admin = True
            return _add_key(session, email, "first start", now, now + timedelta(days=days))[1]

    def keys(self, email: str | None = None) -> list[KeyRecord]:
        """The keys that are not revoked, of one user or of all, the newest first."""
        rows = self._rows(_KEYS) if email is None else self._rows(_KEYS_OF, email=email)
        return [_key_record(row) for row in rows]

    def set_key_active(self, key_id: str, active: bool, email: str | None = None) -> KeyRecord:
        """Switch a key (of ``email``, if given) on or off.

        Raises:
            NotFound: there is no such key.
        """
        with self._write() as session:
            row = _key(session, key_id, email)
            row.active = active
            return _key_record(row)

    def revoke_key(self, key_id: str, email: str | None = None) -> None:
        """End a key (of ``email``, if given) for good; it is refused from now on.

        Raises:
            NotFound: there is no such key.
        """
        with self._write() as session:
            row = _key(session, key_id, email)
            row.revoked_at, row.active = utc_now(), False

    def viewer_of_key(self, value: str) -> Viewer | None:
        """Whose key it is; None if it is none, expired, switched off or revoked."""
        now = utc_now()
        rows = self._rows(_OF_KEY, hashed=_hash(value), now=now)
        if not rows:
            return None
        first = rows[0]
        if first.last_used_at is None or now - first.last_used_at > _USE_NOTED_EVERY:
            with suppress(OperationalError, PoolTimeout):  # nobody is refused because of this
                self._note_use(first.id, now)
        return _viewer(first.email, first.admin, [row.group_id for row in rows])

    def viewer(self, email: str) -> Viewer:
        """Somebody who proved otherwise who they are; they become a user the first time."""
        query = (
            select(User.admin, GroupMember.group_id)
            .outerjoin(GroupMember, GroupMember.email == User.email)
            .where(User.email == email)
        )
        with self._read() as session:
            rows = session.execute(query).all()
        if not rows:
            with self._write() as session:
                _ensure_user(session, email, utc_now())
            return Viewer(email)
        return _viewer(email, rows[0].admin, [row.group_id for row in rows])

    def _note_use(self, key_id: str, now: datetime) -> None:
        with self._write() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))


def _viewer(email: str, admin: bool, groups: Sequence[str | None]) -> Viewer:
    return Viewer(email, admin, frozenset(group for group in groups if group is not None))


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()


def _live_keys(email: str, now: datetime) -> Any:
    return select(func.count()).where(
        ApiKey.email == email, ApiKey.revoked_at.is_(None), ApiKey.expires_at > now
    )


def _ensure_user(session: Session, email: str, now: datetime) -> None:
    row = {"email": email, "admin": False, "created_at": now}
    session.execute(insert_into(session, User.__table__).values(row).on_conflict_do_nothing())


def _add_key(
    session: Session, email: str, label: str, now: datetime, until: datetime
) -> tuple[KeyRecord, str]:
    value = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    row = ApiKey(
        id=str(uuid4()),
        email=email,
        hashed_key=_hash(value),
        shown=value[:_SHOWN],
        label=label,
        created_at=now,
        expires_at=until,
        active=True,
    )
    session.add(row)
    return _key_record(row), value


def _key(session: Session, key_id: str, email: str | None) -> ApiKey:
    row = session.get(ApiKey, key_id, with_for_update=True)
    if row is None or row.revoked_at is not None or email not in (None, row.email):
        raise NotFound("APIKey not found")
    return row


def _key_record(row: ApiKey | Row[Any]) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        email=row.email,
        label=row.label,
        shown=row.shown,
        active=row.active,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
