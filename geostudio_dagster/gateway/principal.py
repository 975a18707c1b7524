"""Who asks: by API key, by a verified bearer token, or everybody where that is switched off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, HTTPException, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param

from geostudio_dagster.catalog import Viewer
from geostudio_dagster.catalog.accounts import PREFIX
from geostudio_dagster.gateway.place import GatewayPlace
from geostudio_dagster.gateway.tokens import RefusedTokenError
from geostudio_dagster.gateway_settings import LOOPBACK

key_header = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="A key from POST /v2/auth/api-keys."
)
bearer_header = HTTPBearer(
    auto_error=False, description="A JWT of the configured issuer, or a key."
)

NO_CREDENTIALS = "Provide a valid Authorization or X-Api-Key header."
BAD_KEY = "x-api-key provided is invalid or inactive."
BAD_TOKEN = "Authorization token is invalid or expired."  # noqa: S105 - a sentence
EXPOSED = "Authentication is switched off, which is possible on the loopback address only."


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and how that was proved."""

    viewer: Viewer
    how: Literal["key", "token", "open"]

    @property
    def email(self) -> str:
        """Whose the things are that this request makes."""
        return self.viewer.email

    @property
    def admin(self) -> bool:
        """Whether everything may be seen."""
        return self.viewer.admin


def principal_of(
    request: Request, place: GatewayPlace, key: str | None, bearer: str | None
) -> Principal:
    """Who asks.

    Args:
        key: what ``X-API-Key`` says. bearer: what ``Authorization`` says, a token or a key.

    Raises:
        HTTPException: 401, without credentials or with wrong ones; 403 where authentication is
            off and the request did not come over loopback.
    """
    if place.settings.gateway.auth == "off":
        return _anybody(request, place)
    if bearer is not None and not bearer.startswith(PREFIX):
        try:
            email = place.tokens.email_of(bearer)
        except RefusedTokenError as error:
            raise _refused(BAD_TOKEN) from error
        return Principal(place.catalog.viewer(email), "token")
    value = bearer if bearer is not None else key
    if not value:
        raise _refused(NO_CREDENTIALS)
    viewer = place.catalog.viewer_of_key(value)
    if viewer is None:
        raise _refused(BAD_KEY)
    return Principal(viewer, "key")


class _Identify(SecurityBase):
    """See who asks, before anything else of a route: :data:`Caller` is who that was.

    One dependency that reads both headers, as each costs every call some of its time. FastAPI
    takes it for the key's scheme; :mod:`gateway.documentation` adds the other one.
    """

    model = key_header.model
    scheme_name = key_header.scheme_name

    def __call__(self, request: Request) -> None:
        scheme, credentials = get_authorization_scheme_param(request.headers.get("Authorization"))
        bearer = credentials if credentials and scheme.lower() == "bearer" else None
        key = request.headers.get(key_header.model.name)
        request.state.principal = principal_of(request, request.app.state.place, key, bearer)


identify = _Identify()


async def _identified(request: Request) -> Principal:
    # FastAPI resolves what a dependency depends on each time that the dependency is named, so
    # naming principal_of twice would do much of its work twice.
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_identified)]


async def administrator(caller: Caller) -> Principal:
    """Who asks, if that is an administrator.

    Raises:
        HTTPException: 403.
    """
    if not caller.admin:
        raise HTTPException(403, "Only administrators can perform this action")
    return caller


Administrator = Annotated[Principal, Depends(administrator)]


def _refused(detail: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _anybody(request: Request, place: GatewayPlace) -> Principal:
    # The socket's own address: whatever way this process was started, it must not be exposed.
    server = request.scope.get("server")
    if server is not None and server[0] not in LOOPBACK and not server[0].startswith("/"):
        raise HTTPException(403, EXPOSED)
    return Principal(Viewer(place.settings.gateway.default_user, admin=True), "open")
