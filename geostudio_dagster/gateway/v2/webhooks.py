"""Webhooks: what was told, what was not, and what a receiver needs to see that it is ours."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field

from geostudio_dagster.catalog.deliveries import DeliveryRecord, DeliveryState
from geostudio_dagster.errors import Forbidden
from geostudio_dagster.gateway.paging import Envelope, Page
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.times import ApiTime
from geostudio_dagster.webhooks import EVENT_TYPE, secret_of

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

ONE_FOR_ALL = (
    "This installation signs all webhooks with one secret, which its operator gives to receivers."
)


class WebhookSecret(BaseModel):
    """How messages to the webhooks of one's requests are signed."""

    secret: str = Field(description="whsec_ and base64, for libraries of Standard Webhooks.")
    scheme: Literal["standard-webhooks"] = "standard-webhooks"
    signature: Literal["v1"] = Field(
        default="v1", description="HMAC-SHA256 of webhook-id.webhook-timestamp.body."
    )
    types: list[str] = [EVENT_TYPE]


class DeliveryOut(BaseModel):
    """One change of a request, told or to be told to its webhook.

    ``id`` is the message's ``webhook-id``, ``sequence`` its ``data.sequence``, ``status`` what
    the request became; ``error`` is why the last attempt failed.
    """

    id: str
    inference_id: UUID
    url: str
    sequence: int
    status: str | None
    state: DeliveryState
    attempts: int
    created_at: ApiTime
    next_at: ApiTime | None
    delivered_at: ApiTime | None
    error: str | None


@router.get("/deliveries", operation_id="list_webhook_deliveries")
def deliveries(
    page: Page,
    caller: Caller,
    place: Place,
    inference_id: UUID | None = None,
    state: DeliveryState | None = None,
) -> Envelope[DeliveryOut]:
    """What the webhooks of one's own requests were told, the latest first; ``q``: in addresses."""
    total, found = place.catalog.deliveries(
        caller.viewer,
        page,
        attempts=place.settings.webhooks.attempts,
        request_id=str(inference_id) if inference_id else None,
        state=state,
    )
    return Envelope[DeliveryOut].of(total, [_out(record) for record in found])


def _out(record: DeliveryRecord) -> DeliveryOut:
    document = asdict(record)
    return DeliveryOut(inference_id=UUID(document.pop("request_id")), **document)


@router.get("/secret", operation_id="webhook_secret", responses=responses(403))
def secret(caller: Caller, place: Place) -> WebhookSecret:
    """The secret that signs the webhooks of one's own requests; nobody else's."""
    if place.settings.webhooks.secret is not None and not caller.admin:
        raise Forbidden(ONE_FOR_ALL)
    return WebhookSecret(secret=secret_of(place.settings, place.signer, caller.email))
