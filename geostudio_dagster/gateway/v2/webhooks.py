"""What a receiver of webhooks needs to see that a message is ours."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from geostudio_dagster.errors import Forbidden
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
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


@router.get("/secret", operation_id="webhook_secret", responses=responses(403))
def secret(caller: Caller, place: Place) -> WebhookSecret:
    """The secret that signs the webhooks of one's own requests; nobody else's."""
    if place.settings.webhooks.secret is not None and not caller.admin:
        raise Forbidden(ONE_FOR_ALL)
    return WebhookSecret(secret=secret_of(place.settings, place.signer, caller.email))
