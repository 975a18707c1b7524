"""Webhooks of requests: each change of status is told, signed as Standard Webhooks describes.

At least once: a receiver knows a repetition by its ``webhook-id``, and a later change by
``data.sequence``, which grows. https://www.standardwebhooks.com has libraries that verify.
"""

from __future__ import annotations

import binascii
import datetime as dt
import hashlib
import hmac
import json
import logging
import time
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor

import httpcore
import httpx

from geostudio_dagster import __version__
from geostudio_dagster.catalog.deliveries import Delivery
from geostudio_dagster.connectors.addresses import http_url, shown
from geostudio_dagster.connectors.exchange import network_errors
from geostudio_dagster.connectors.guard import GuardedPool
from geostudio_dagster.errors import GeostudioError, InvalidRequest, TaskError
from geostudio_dagster.installation import Installation
from geostudio_dagster.planning.webhook import check_webhook
from geostudio_dagster.settings import Settings
from geostudio_dagster.signing import Signer

log = logging.getLogger(__name__)

EVENT_TYPE = "inference.status"
_PREFIX = "whsec_"
_AT_A_TIME = 10
_GONE = 410  # by which a receiver says that it wants no more


def secret_of(settings: Settings, signer: Signer, owner: str) -> str:
    """The secret that webhooks of this user's requests are signed with, ``whsec_<base64>``."""
    if settings.webhooks.secret is not None:
        return settings.webhooks.secret.get_secret_value()
    return _PREFIX + b64encode(signer.derive(f"webhooks of {owner}")).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` of a message: HMAC-SHA256 of id, time and body.

    Raises:
        InvalidRequest: the secret is not base64, with or without ``whsec_`` before it.
    """
    try:
        key = b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "webhooks.secret", "is not base64", "use whsec_ and 24 to 64 bytes as base64"
        ) from None
    signed = f"{message_id}.{timestamp}.".encode() + body
    return f"v1,{b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def deliver_due(installation: Installation, now: dt.datetime, limit: int) -> list[str]:
    """Tell what is due, several receivers at a time; one sentence for each delivery.

    A receiver that fails is asked again later, and in the end given up. One that dies with this
    process is asked again, too.
    """
    settings = installation.settings.webhooks
    taken = installation.catalog.take_deliveries(
        now, limit, attempts=settings.attempts, delay_s=settings.retry_delay_s
    )
    if not taken:
        return []
    signer = Signer.open(installation.settings)
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="webhook") as pool:
        return list(pool.map(lambda delivery: _attempt(installation, signer, delivery), taken))


def _attempt(installation: Installation, signer: Signer, delivery: Delivery) -> str:
    catalog = installation.catalog
    what = f"webhook {delivery.id} of request {delivery.request_id}, attempt {delivery.attempt}"
    try:
        _post(installation.settings, signer, delivery)
    except GeostudioError as error:
        passing = isinstance(error, TaskError) and error.retryable
        final = delivery.last or not passing
        limit = installation.settings.webhooks.attempts if final else None
        catalog.not_delivered(delivery.id, str(error), _now(), give_up_after=limit)
        return f"{what}: {error}{' Given up.' if final else ''}"
    catalog.delivered(delivery.id, _now())
    return f"{what}: delivered"


def _post(settings: Settings, signer: Signer, delivery: Delivery) -> None:
    """Send one message.

    Raises:
        TaskError: it was not taken; retryable where a later try may be.
        InvalidRequest: the address is not allowed (any more).
    """
    check_webhook(delivery.url, settings)
    url = http_url(delivery.url)
    body = message(settings, delivery)
    timestamp = int(time.time())
    secret = secret_of(settings, signer, delivery.owner)
    headers = {
        "Host": url.netloc.decode("ascii"),
        "User-Agent": f"geostudio-dagster/{__version__}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "webhook-id": delivery.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, delivery.id, timestamp, body),
    }
    status = _exchange(settings, url, headers, body)
    if 200 <= status < 300:  # noqa: PLR2004
        return
    # A redirect is no delivery: what is signed for one host is not handed to another.
    raise TaskError(
        "webhook", f"{shown(delivery.url)} answered HTTP {status}.", retryable=status != _GONE
    )


def message(settings: Settings, delivery: Delivery) -> bytes:
    """The body, the same at every attempt."""
    request = delivery.request_id
    document = {
        "type": EVENT_TYPE,
        "timestamp": delivery.at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "data": {
            "inference_id": request,
            "sequence": delivery.sequence,
            "status": delivery.detail.get("after"),
            "previous_status": delivery.detail.get("before"),
            "url": f"{settings.gateway_url.rstrip('/')}/v2/inference/{request}",
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _exchange(settings: Settings, url: httpx.URL, headers: dict[str, str], body: bytes) -> int:
    timeout = settings.webhooks.timeout_s
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout)}
    sent = list(headers.items())
    with (
        network_errors(shown(str(url))),
        GuardedPool(settings.fetch, time.monotonic() + timeout) as pool,
        pool.stream("POST", target, headers=sent, content=body, extensions=limits) as response,
    ):
        # What it says besides is of no interest, however long.
        return response.status


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
