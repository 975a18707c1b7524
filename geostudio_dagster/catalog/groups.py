"""Groups of people, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.api_schema import Group, GroupMember, ModelCard, Permission, Tune
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.processor_schema import Processor
from geostudio_dagster.catalog.schema import Request
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import Conflict, Forbidden, NotFound

OWNER, MEMBER = "owner", "member"


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """Who belongs to a group, as ``owner`` or ``member``."""

    email: str
    role: str
    added_at: datetime


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A group with its members."""

    id: str
    name: str
    description: str | None
    created_by: str
    created_at: datetime
    members: tuple[MemberRecord, ...]


@dataclass(frozen=True, slots=True)
class PermissionRecord:
    """That a group may see an artifact."""

    group_id: str
    kind: str
    artifact_id: str
    granted_by: str
    granted_at: datetime


class Groups(Database):
    """The catalog's groups. Each method takes the viewer who asks."""

    def create_group(self, viewer: Viewer, name: str, description: str | None) -> GroupRecord:
        """A new group, owned by the viewer.

        Raises:
            Conflict: the name is taken.
        """
        now = utc_now()
        row = Group(
            id=str(uuid4()),
            name=name,
            description=description,
            created_by=viewer.email,
            created_at=now,
        )
        owner = GroupMember(group_id=row.id, email=viewer.email, role=OWNER, added_at=now)
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                session.add(owner)
        except IntegrityError as error:
            raise Conflict(f"Group with name '{name}' already exists") from error
        return _group_record(row, [owner])

    def groups(self, viewer: Viewer) -> list[GroupRecord]:
        """The viewer's groups, by name; all of them for an administrator."""
        query = select(Group).order_by(Group.name)
        if not viewer.admin:
            query = query.where(Group.id.in_(_groups_of(viewer.email)))
        with self._read() as session:
            rows = session.scalars(query).all()
            members = _members(session, [row.id for row in rows])
            return [_group_record(row, members.get(row.id, ())) for row in rows]

    def group(self, viewer: Viewer, group_id: str) -> GroupRecord:
        """One of the viewer's groups.

        Raises:
            NotFound: there is no such group. Forbidden: the viewer is no member of it.
        """
        with self._read() as session:
            row = _of_member(session, viewer, group_id)
            return _group_record(row, _members(session, [group_id]).get(group_id, ()))

    def delete_group(self, viewer: Viewer, group_id: str) -> None:
        """Remove a group; what was shared through it is no longer shared.

        Raises:
            NotFound: there is no such group. Forbidden: the viewer does not own it.
        """
        with self._write() as session:
            session.delete(_of_owner(session, viewer, group_id))

    def add_member(self, viewer: Viewer, group_id: str, email: str, role: str) -> GroupRecord:
        """Take somebody into a group.

        Raises:
            NotFound: there is no such group. Forbidden: the viewer does not own it.
            Conflict: they are in it already.
        """
        with self._write() as session:
            row = _of_owner(session, viewer, group_id)
            if session.get(GroupMember, (group_id, email)) is not None:
                raise Conflict("User is already a member of this group")
            session.add(GroupMember(group_id=group_id, email=email, role=role, added_at=utc_now()))
            session.flush()
            return _group_record(row, _members(session, [group_id])[group_id])

    def remove_member(self, viewer: Viewer, group_id: str, email: str) -> None:
        """Take somebody out of a group: owners anybody, members themselves.

        Raises:
            NotFound: there is no such group or member. Forbidden: the viewer may not.
            Conflict: it is the last owner; the group would belong to nobody.
        """
        with self._write() as session:
            if email == viewer.email:
                _of_member(session, viewer, group_id, lock=True)
            else:
                _of_owner(session, viewer, group_id)
            member = _member(session, group_id, email)
            if member.role == OWNER and _owners(session, group_id) == 1:
                raise Conflict("Cannot remove the last owner of the group")
            session.delete(member)

    def set_role(self, viewer: Viewer, group_id: str, email: str, role: str) -> GroupRecord:
        """Make a member an owner, or an owner a member.

        Raises:
            NotFound: there is no such group or member. Forbidden: the viewer does not own it.
            Conflict: it is the last owner.
        """
        with self._write() as session:
            row = _of_owner(session, viewer, group_id)
            member = _member(session, group_id, email)
            if member.role == OWNER != role and _owners(session, group_id) == 1:
                raise Conflict("Cannot demote the last owner of the group")
            member.role = role
            session.flush()
            return _group_record(row, _members(session, [group_id])[group_id])

    def shared_artifacts(self, viewer: Viewer, group_id: str) -> list[PermissionRecord]:
        """What is shared with a group, the newest first.

        Raises:
            NotFound: there is no such group. Forbidden: the viewer is no member of it.
        """
        query = (
            select(Permission)
            .where(Permission.group_id == group_id)
            .order_by(Permission.granted_at.desc(), Permission.kind, Permission.artifact_id)
        )
        with self._read() as session:
            _of_member(session, viewer, group_id)
            return [_permission_record(row) for row in session.scalars(query)]

    def share_artifact(
        self, viewer: Viewer, group_id: str, kind: str, artifact_id: str
    ) -> PermissionRecord:
        """Share an artifact of the viewer's with a group that they own.

        Raises:
            NotFound: there is no such group. Forbidden: group or artifact is not the viewer's.
            Conflict: it is shared with the group already.
        """
        with self._write() as session:
            _of_owner(session, viewer, group_id)
            if not _owns_artifact(session, viewer, kind, artifact_id):
                raise Forbidden("You can only share artifacts that you own")
            if session.get(Permission, (group_id, kind, artifact_id)) is not None:
                raise Conflict("Artifact is already shared with this group")
            row = Permission(
                group_id=group_id,
                kind=kind,
                artifact_id=artifact_id,
                granted_by=viewer.email,
                granted_at=utc_now(),
            )
            session.add(row)
            return _permission_record(row)

    def unshare_artifact(self, viewer: Viewer, group_id: str, kind: str, artifact_id: str) -> None:
        """Take an artifact back from a group.

        Raises:
            NotFound: there is no such group, or it does not have the artifact.
            Forbidden: the viewer does not own the group.
        """
        with self._write() as session:
            _of_owner(session, viewer, group_id)
            row = session.get(Permission, (group_id, kind, artifact_id))
            if row is None:
                raise NotFound("Artifact permission not found")
            session.delete(row)


# Tables whose rows can be shared. What has no table of its own here is owned by nobody.
_ARTIFACTS: dict[str, type[Request | ModelCard | Tune | Processor]] = {
    "generic_processor": Processor,
    "inference_run": Request,
    "model": ModelCard,
    "tune": Tune,
}


def _owns_artifact(session: Session, viewer: Viewer, kind: str, artifact_id: str) -> bool:
    table = _ARTIFACTS.get(kind)
    if table is None:
        return False
    query = select(table.id).where(
        table.id == artifact_id, table.deleted_at.is_(None), viewer.owns(table.owner)
    )
    return session.scalar(query) is not None


def _groups_of(email: str) -> Any:
    return select(GroupMember.group_id).where(GroupMember.email == email)


def _group(session: Session, group_id: str, *, lock: bool) -> Group:
    row = session.get(Group, group_id, with_for_update=lock)
    if row is None:
        raise NotFound("Group not found")
    return row


def _of_member(session: Session, viewer: Viewer, group_id: str, *, lock: bool = False) -> Group:
    row = _group(session, group_id, lock=lock)
    if not viewer.admin and session.get(GroupMember, (group_id, viewer.email)) is None:
        raise Forbidden("You must be a member of this group to perform this action")
    return row


def _of_owner(session: Session, viewer: Viewer, group_id: str) -> Group:
    row = _group(session, group_id, lock=True)
    member = session.get(GroupMember, (group_id, viewer.email))
    if not viewer.admin and (member is None or member.role != OWNER):
        raise Forbidden("Only group owners can perform this action")
    return row


def _member(session: Session, group_id: str, email: str) -> GroupMember:
    member = session.get(GroupMember, (group_id, email))
    if member is None:
        raise NotFound("Member not found in this group")
    return member


def _owners(session: Session, group_id: str) -> int:
    query = select(func.count()).where(GroupMember.group_id == group_id, GroupMember.role == OWNER)
    return session.scalar(query) or 0


def _members(session: Session, group_ids: Sequence[str]) -> dict[str, list[GroupMember]]:
    query = (
        select(GroupMember)
        .where(GroupMember.group_id.in_(group_ids))
        .order_by(GroupMember.added_at, GroupMember.email)
    )
    found: dict[str, list[GroupMember]] = {}
    for row in session.scalars(query):
        found.setdefault(row.group_id, []).append(row)
    return found


def _group_record(row: Group, members: Sequence[GroupMember]) -> GroupRecord:
    return GroupRecord(
        id=row.id,
        name=row.name,
        description=row.description,
        created_by=row.created_by,
        created_at=row.created_at,
        members=tuple(MemberRecord(item.email, item.role, item.added_at) for item in members),
    )


def _permission_record(row: Permission) -> PermissionRecord:
    return PermissionRecord(
        group_id=row.group_id,
        kind=row.kind,
        artifact_id=row.artifact_id,
        granted_by=row.granted_by,
        granted_at=row.granted_at,
    )
