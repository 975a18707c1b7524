"""One set of routes under all the addresses that clients use."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/studio-gateway"


class Addresses:
    """ASGI middleware: the routes answer below ``/studio-gateway``, too, and with a slash behind.

    The prefix becomes the scope's root path, so that addresses in answers keep it. Nothing is
    redirected: a client that follows a redirect of a POST may lose its body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on with the path that the routes have."""
        if scope["type"] in ("http", "websocket"):
            path: str = scope["path"]
            if path.endswith("/") and len(path) > 1:
                path = path.rstrip("/") or "/"
            if path == PREFIX or path.startswith(f"{PREFIX}/"):
                scope = {**scope, "root_path": PREFIX}
                path = f"{PREFIX}/" if path == PREFIX else path
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)
