"""Who looks at maps, layers, files and logs: somebody with a key, or with a link that we signed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, HTTPException, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials

from geostudio_dagster.catalog import RequestRecord
from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import (
    Principal,
    bearer_header,
    key_header,
    principal_of,
)
from geostudio_dagster.signing import GRANT, request_scope

REFUSED_LINK = "This link has expired, or is not for what it asks for; ask for a new one."
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Visitor:
    """Either a principal, or the token of a link, which is yet to be checked for what it opens."""

    place: GatewayPlace
    principal: Principal | None
    grant: str = ""

    def may(self, scope: str) -> None:
        """See that the link, if it is one, permits the scope now.

        Raises:
            HTTPException: 403.
        """
        if self.principal is None and not self.place.signer.verify(self.grant, scope):
            raise HTTPException(403, REFUSED_LINK)

    def request(self, request_id: str) -> RequestRecord:
        """The request that is to be looked at.

        Raises:
            HTTPException: 403, the link is not for this request, or not any more.
            NotFound: there is none, it was deleted, or it is somebody else's.
        """
        if self.principal is not None:
            return self.place.catalog.visible_request(request_id, self.principal.viewer)
        self.may(request_scope(request_id))
        record = self.place.catalog.request(request_id)
        if record.deleted_at is not None:
            raise NotFound(f"There is no request {request_id}.")
        return record

    @property
    def query(self) -> str:
        """What addresses in answers carry on, so that who follows them is let in."""
        return f"{GRANT}={self.grant}" if self.principal is None else ""


def visitor_of(
    request: Request,
    place: Place,
    key: Annotated[str | None, Security(key_header)] = None,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(bearer_header)] = None,
    grant: Annotated[
        str, Query(max_length=_LONGEST, description="The token of a signed link.")
    ] = "",
) -> Visitor:
    """Who looks. A key counts more than a link.

    Raises:
        HTTPException: 401, neither a link nor valid credentials.
    """
    if grant and not key and bearer is None and place.settings.gateway.auth == "on":
        return Visitor(place, None, grant)
    return Visitor(place, principal_of(request, place, key, bearer.credentials if bearer else None))


Guest = Annotated[Visitor, Depends(visitor_of)]


def link_life(place: GatewayPlace) -> timedelta:
    """How long a link to outputs, logs and maps works."""
    return timedelta(hours=place.settings.gateway.link_hours)
