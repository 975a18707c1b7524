"""Links that work without a key, for one thing and for a time."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from geostudio_dagster.settings import Settings

GRANT = "grant"  # the query parameter that carries a token
_SECRET_BYTES = 32
_LONGEST_TOKEN = 100
_STEPS = 24  # of a link's life; that of a day ends on a full hour


@dataclass(frozen=True)
class Signer:
    """HMAC-SHA256 over a scope and the time at which the permission ends.

    A scope names what is permitted, such as ``request:<id>`` or ``upload:<id>``. The token does
    not hold it: whoever verifies says what the token must permit.
    """

    secret: bytes = field(repr=False)
    clock: Callable[[], float] = time.time

    @classmethod
    def open(cls, settings: Settings) -> Signer:
        """The installation's signer; its secret is made the first time (readable by us alone)."""
        given = settings.gateway.secret
        if given is not None:
            return cls(given.get_secret_value().encode())
        return cls(_secret_of(settings.data_folder / "gateway.secret"))

    def sign(self, scope: str, life: timedelta) -> str:
        """A token, safe in URLs, that permits ``scope`` for ``life``, or a little less.

        Its end is on a grid of time, so that what is asked for again comes back the same: a
        polled document does not differ by its links, and browsers keep a map's tiles.
        """
        step = max(1, int(life.total_seconds()) // _STEPS)
        end = int(self.clock() + life.total_seconds()) // step * step
        until = format(end, "x")
        return f"{until}.{self._seal(scope, until)}"

    def verify(self, token: str, scope: str) -> bool:
        """Whether the token permits ``scope`` now."""
        until, _, seal = token.partition(".")
        if len(token) > _LONGEST_TOKEN or not token.isascii():
            return False
        if not hmac.compare_digest(seal, self._seal(scope, until)):
            return False
        return int(until, 16) > self.clock()  # ours, so it is a number

    def derive(self, purpose: str) -> bytes:
        """A secret of its own for another purpose, such as the signatures of webhooks."""
        return hmac.digest(self.secret, f"purpose {purpose}".encode(), hashlib.sha256)

    def _seal(self, scope: str, until: str) -> str:
        message = f"link {until}\n{scope}".encode(errors="surrogatepass")
        seal = hmac.digest(self.secret, message, hashlib.sha256)
        return urlsafe_b64encode(seal).rstrip(b"=").decode()


def request_scope(request_id: str) -> str:
    """What a link to a request's map, layers and files permits."""
    return f"request:{request_id}"


def map_link(settings: Settings, request_id: str) -> str:
    """Address of a request's map page, for a browser without a key; it expires."""
    address = f"{settings.gateway_url.rstrip('/')}/maps/{request_id}"
    if settings.gateway.auth == "off":
        return address
    life = timedelta(hours=settings.gateway.link_hours)
    return f"{address}?{GRANT}={Signer.open(settings).sign(request_scope(request_id), life)}"


def _secret_of(path: Path) -> bytes:
    """The file's secret; of several processes that start together one makes it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_SECRET_BYTES))
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text("ascii").strip().encode()
