"""What is written to the audit log: a line for each call that may change something.

Of what callers send nothing is written, no key and no signed link: only who asked, how that was
proved, for which address and with what outcome. Calls of strangers, who are refused with 401, are
counted by :mod:`gateway.metrics` alone, so that nobody can fill the disk with them.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geostudio_dagster.audit_log import AuditLog

if TYPE_CHECKING:
    from geostudio_dagster.gateway.principal import Principal

_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_MADE = (200, 201)
_LONGEST_ANSWER = 64 * 1024


class Audit:
    """ASGI middleware, within all that refuses a call before it is known who asks."""

    def __init__(self, app: ASGIApp, audit_log: AuditLog) -> None:
        self._app = app
        self._log = audit_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, and note what came of it."""
        if scope["type"] != "http" or scope["method"] not in _CHANGING:
            await self._app(scope, receive, send)
            return
        status, made = 500, None
        creates = scope["method"] == "POST"

        async def look(message: Message) -> None:
            nonlocal status, made
            if message["type"] == "http.response.start":
                status = message["status"]
            elif creates and status in _MADE and made is None and not message.get("more_body"):
                made = _made(message.get("body", b""))
            await send(message)

        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, look)
        finally:
            principal: Principal | None = scope["state"].get("principal")
            if principal is not None:
                self._log.write(dt.datetime.now(dt.UTC), **_entry(scope, principal, status, made))


def _entry(scope: Scope, principal: Principal, status: int, made: str | None) -> dict[str, Any]:
    client = scope.get("client")
    return {
        "who": principal.email,
        "how": principal.how,
        "from": client[0] if client else None,
        "method": scope["method"],
        # Without the query, which may hold a signed link.
        "path": scope["path"].removeprefix(scope.get("root_path", "")),
        "status": status,
        **({"id": made} if made else {}),
    }


def _made(body: bytes) -> str | None:
    """The id of what was created, as the answer tells it."""
    if len(body) > _LONGEST_ANSWER:
        return None
    try:
        document = json.loads(body)
    except ValueError:
        return None
    found = document.get("id") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None
