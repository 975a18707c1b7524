"""API keys of whoever asks. A key's value is in the answer that makes it, and nowhere else."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from geostudio_dagster.catalog.accounts import KeyRecord
from geostudio_dagster.catalog.pages import Paging
from geostudio_dagster.errors import Conflict, InvalidRequest
from geostudio_dagster.gateway.paging import Envelope, Page
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.times import ApiTime

router = APIRouter(prefix="/auth/api-keys", tags=["auth"])

# Fields of the answer, and what they are called in a record.
_SORTED_BY = {"created_at": "created_at", "expires_on": "expires_at", "label": "label"}

KeyId = Annotated[UUID, Query(description="The key's id.")]


class NewKey(BaseModel):
    """What a key is for, and for how long; all of it may be left out."""

    model_config = ConfigDict(extra="ignore")

    label: str = Field(default="", max_length=200, pattern=r"^[^\x00]*$")
    days: int | None = Field(default=None, ge=1, le=365, description="Life, days.")


class KeyChange(BaseModel):
    """A key switched on or off."""

    active: StrictBool


class Key(BaseModel):
    """A key; ``value`` is masked but in the answer that makes it."""

    id: UUID
    value: str
    expires_on: ApiTime
    active: bool
    label: str
    created_at: ApiTime
    last_used_at: ApiTime | None

    @classmethod
    def of(cls, record: KeyRecord, value: str | None = None) -> Key:
        """The document of a key."""
        return cls(
            id=UUID(record.id),
            value=value or record.masked,
            expires_on=record.expires_at,
            active=record.active,
            label=record.label,
            created_at=record.created_at,
            last_used_at=record.last_used_at,
        )


@router.get("", operation_id="list_api_keys")
def list_keys(caller: Caller, place: Place, page: Page) -> Envelope[Key]:
    """The caller's keys, masked; ``q`` looks into labels."""
    found = _sorted(place.catalog.keys(caller.email), page)
    shown = found[page.skip : page.skip + page.limit]
    return Envelope[Key].of(len(found), [Key.of(record) for record in shown])


@router.post("", operation_id="create_api_key", responses=responses(412))
def create_key(caller: Caller, place: Place, wish: Annotated[NewKey | None, Body()] = None) -> Key:
    """A new key of the caller; note its value, which is shown only now."""
    wish = wish or NewKey()
    limits = place.settings.gateway
    days = min(wish.days or limits.key_days, 365)
    try:
        record, value = place.catalog.create_key(
            caller.email, days=days, limit=limits.keys_per_user, label=wish.label
        )
    except Conflict as error:
        raise HTTPException(412, str(error)) from error
    return Key.of(record, value)


@router.patch("", operation_id="update_api_key", responses=responses(404))
def update_key(apikey_id: KeyId, change: KeyChange, caller: Caller, place: Place) -> Key:
    """Switch a key off, or on again; in force at once."""
    return Key.of(place.catalog.set_key_active(str(apikey_id), change.active, caller.email))


@router.delete("", operation_id="delete_api_key", status_code=204, responses=responses(404))
def delete_key(apikey_id: KeyId, caller: Caller, place: Place) -> None:
    """Revoke a key; in force at once."""
    place.catalog.revoke_key(str(apikey_id), caller.email)


def _sorted(records: list[KeyRecord], page: Paging) -> list[KeyRecord]:
    """Keys whose label has ``q`` in it, in the order of ``sort``."""
    name = page.sort.removeprefix("-")
    if name not in _SORTED_BY:
        known = ", ".join(_SORTED_BY)
        raise InvalidRequest(
            "sort", "is not a field that this list is sorted by", f"use one of {known}"
        )
    field = _SORTED_BY[name]
    found = [record for record in records if (page.q or "").lower() in record.label.lower()]
    return sorted(
        found,
        key=lambda record: (getattr(record, field), record.id),
        reverse=page.sort.startswith("-"),
    )
