"""Which names of this machine clients may use, so that no page elsewhere can pose as it."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from geostudio_dagster.gateway.problems import problem


class TrustedHosts:
    """ASGI middleware: 400 for a ``Host`` that is none of those allowed.

    A page elsewhere whose name is made to resolve to this machine must read nothing here.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        hosts = [host.strip("[]").lower() for host in allowed_hosts]
        self._allowed = frozenset(hosts)
        self._endings = tuple(host[1:] for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer 400."""
        if scope["type"] == "http" and not self._knows(Headers(scope=scope).get("host", "")):
            sentence = (
                "Invalid host header: this gateway is not known by that name. Use one it has, or "
                "add it to GEOSTUDIO_GATEWAY__ALLOWED_HOSTS."
            )
            await problem(400, sentence)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        if "*" in self._allowed:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._allowed or name.endswith(self._endings)
