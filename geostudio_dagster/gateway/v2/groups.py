"""Groups of people who share artifacts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException, Path
from pydantic import AfterValidator, BaseModel, Field

from geostudio_dagster.catalog.groups import GroupRecord, PermissionRecord
from geostudio_dagster.errors import Conflict
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.times import ApiTime
from geostudio_dagster.gateway.tokens import is_email

router = APIRouter(prefix="/groups", tags=["groups"], responses=responses(403))

NO_NUL = r"^[^\x00]*$"


class Role(StrEnum):
    """What a member may do."""

    owner = "owner"
    member = "member"


class ArtifactType(StrEnum):
    """What can be shared."""

    dataset = "dataset"
    tune = "tune"
    backbone = "backbone"
    model = "model"
    task_template = "task_template"
    inference_run = "inference_run"
    generic_processor = "generic_processor"


def _email(value: str) -> str:
    if not is_email(value):
        raise ValueError("is not an e-mail address")
    return value.lower()


Email = Annotated[str, AfterValidator(_email), Field(max_length=200)]
ArtifactId = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]


class GroupCreate(BaseModel):
    """A new group."""

    name: str = Field(min_length=1, max_length=200, pattern=NO_NUL)
    description: str | None = Field(default=None, max_length=4000, pattern=NO_NUL)


class GroupMemberAdd(BaseModel):
    """Somebody to be taken in."""

    user_email: Email
    role: Role = Role.member


class MemberRoleUpdate(BaseModel):
    """A member's new role."""

    role: Role


class MemberOut(BaseModel):
    """Somebody in a group."""

    user_email: str
    role: Role
    added_at: ApiTime


class GroupOut(BaseModel):
    """A group."""

    id: UUID
    name: str
    description: str | None
    created_by: str
    created_at: ApiTime
    members: list[MemberOut]

    @classmethod
    def of(cls, record: GroupRecord) -> GroupOut:
        """The document of a group."""
        return cls(
            id=UUID(record.id),
            name=record.name,
            description=record.description,
            created_by=record.created_by,
            created_at=record.created_at,
            members=[
                MemberOut(user_email=item.email, role=Role(item.role), added_at=item.added_at)
                for item in record.members
            ],
        )


class ArtifactPermissionGrant(BaseModel):
    """Something to be shared; ids are UUIDs, or texts such as those of tunes."""

    artifact_type: ArtifactType
    artifact_id: ArtifactId


class ArtifactPermissionOut(BaseModel):
    """That something is shared with a group."""

    group_id: UUID
    artifact_type: ArtifactType
    artifact_id: str
    granted_by: str
    granted_at: ApiTime

    @classmethod
    def of(cls, record: PermissionRecord) -> ArtifactPermissionOut:
        """The document of a permission."""
        return cls(
            group_id=UUID(record.group_id),
            artifact_type=ArtifactType(record.kind),
            artifact_id=record.artifact_id,
            granted_by=record.granted_by,
            granted_at=record.granted_at,
        )


@router.post("", operation_id="create_group", status_code=201, responses=responses(400))
def create_group(wish: GroupCreate, caller: Caller, place: Place) -> GroupOut:
    """A new group, owned by the caller."""
    try:
        return GroupOut.of(place.catalog.create_group(caller.viewer, wish.name, wish.description))
    except Conflict as error:
        raise HTTPException(400, str(error)) from error


@router.get("", operation_id="list_groups")
def list_groups(caller: Caller, place: Place) -> list[GroupOut]:
    """The caller's groups, by name."""
    return [GroupOut.of(record) for record in place.catalog.groups(caller.viewer)]


@router.get("/{group_id}", operation_id="get_group", responses=responses(404))
def get_group(group_id: UUID, caller: Caller, place: Place) -> GroupOut:
    """A group that the caller belongs to."""
    return GroupOut.of(place.catalog.group(caller.viewer, str(group_id)))


@router.delete(
    "/{group_id}", operation_id="delete_group", status_code=204, responses=responses(404)
)
def delete_group(group_id: UUID, caller: Caller, place: Place) -> None:
    """Remove a group of the caller's; what it shared is shared no longer."""
    place.catalog.delete_group(caller.viewer, str(group_id))


@router.post(
    "/{group_id}/members",
    operation_id="add_group_member",
    status_code=201,
    responses=responses(400, 404),
)
def add_member(group_id: UUID, wish: GroupMemberAdd, caller: Caller, place: Place) -> GroupOut:
    """Take somebody into a group of the caller's."""
    try:
        return GroupOut.of(
            place.catalog.add_member(caller.viewer, str(group_id), wish.user_email, wish.role)
        )
    except Conflict as error:
        raise HTTPException(400, str(error)) from error


MemberEmail = Annotated[str, Path(max_length=200, description="The member's e-mail address.")]


@router.delete(
    "/{group_id}/members/{user_email}",
    operation_id="remove_group_member",
    status_code=204,
    responses=responses(400, 404),
)
def remove_member(group_id: UUID, user_email: MemberEmail, caller: Caller, place: Place) -> None:
    """Take somebody out of a group: owners anybody, members themselves."""
    try:
        place.catalog.remove_member(caller.viewer, str(group_id), user_email.lower())
    except Conflict as error:
        raise HTTPException(400, str(error)) from error


@router.put(
    "/{group_id}/members/{user_email}/role",
    operation_id="set_group_member_role",
    responses=responses(400, 404),
)
def set_role(
    group_id: UUID,
    user_email: MemberEmail,
    wish: MemberRoleUpdate,
    caller: Caller,
    place: Place,
) -> GroupOut:
    """Make a member an owner, or an owner a member."""
    try:
        return GroupOut.of(
            place.catalog.set_role(caller.viewer, str(group_id), user_email.lower(), wish.role)
        )
    except Conflict as error:
        raise HTTPException(400, str(error)) from error


@router.get("/{group_id}/artifacts", operation_id="list_group_artifacts", responses=responses(404))
def list_artifacts(group_id: UUID, caller: Caller, place: Place) -> list[ArtifactPermissionOut]:
    """What is shared with a group that the caller belongs to."""
    found = place.catalog.shared_artifacts(caller.viewer, str(group_id))
    return [ArtifactPermissionOut.of(record) for record in found]


@router.post(
    "/{group_id}/artifacts",
    operation_id="share_artifact",
    status_code=201,
    responses=responses(400, 404),
)
def share_artifact(
    group_id: UUID, wish: ArtifactPermissionGrant, caller: Caller, place: Place
) -> ArtifactPermissionOut:
    """Share something of the caller's with a group of the caller's."""
    try:
        record = place.catalog.share_artifact(
            caller.viewer, str(group_id), wish.artifact_type, wish.artifact_id
        )
    except Conflict as error:
        raise HTTPException(400, str(error)) from error
    return ArtifactPermissionOut.of(record)


@router.delete(
    "/{group_id}/artifacts/{artifact_type}/{artifact_id}",
    operation_id="unshare_artifact",
    status_code=204,
    responses=responses(404),
)
def unshare_artifact(
    group_id: UUID,
    artifact_type: ArtifactType,
    artifact_id: Annotated[str, Path(max_length=100)],
    caller: Caller,
    place: Place,
) -> None:
    """Take something back from a group."""
    place.catalog.unshare_artifact(caller.viewer, str(group_id), artifact_type, artifact_id)
