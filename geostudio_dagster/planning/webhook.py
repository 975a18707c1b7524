"""Which addresses a request's webhook may have."""

from __future__ import annotations

from geostudio_dagster.connectors.addresses import (
    UnacceptableAddressError,
    http_url,
    refuse_closed_number,
    shown,
)
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.settings import Settings


def check_webhook(address: str, settings: Settings) -> None:
    """See that a webhook's address may be told anything.

    Raises:
        InvalidRequest: not https (http only to hosts that the operator allows), with
            credentials in it, or no public address.
    """
    try:
        url = http_url(address)
        refuse_closed_number(url.host, address, settings)
    except UnacceptableAddressError as error:
        raise InvalidRequest("webhook", error.problem, error.remedy) from error
    if url.scheme != "https" and url.host not in settings.fetch.allowed_hosts:
        raise InvalidRequest("webhook", f"{shown(address)} is not https", "use an https address")
