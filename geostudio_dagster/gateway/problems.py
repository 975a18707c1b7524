"""Every error as a problem document (RFC 9457) whose ``detail`` is what GEOStudio's clients read.

They read a text, ``{"msg": ...}`` or, for input that is refused, FastAPI's list of errors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from geostudio_dagster.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable
from geostudio_dagster.gateway import maps
from geostudio_dagster.gateway.headers import SECURITY_HEADERS

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_LONGEST_INPUT = 200
_MOST_ERRORS = 20
_MOST_DIGITS = 9  # of a place in a list
_SERVER_ERROR = 500


class Problem(BaseModel):
    """What went wrong, for programs and for people."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str | dict[str, Any] | list[Any]
    errors: list[dict[str, Any]] | None = None


class ProblemResponse(JSONResponse):
    """A problem document."""

    media_type = MEDIA_TYPE


def problem(
    status: int, detail: object, headers: Mapping[str, str] | None = None
) -> ProblemResponse:
    """The answer for an error."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if isinstance(detail, list):
        document["errors"] = [_pointed(item) for item in detail if isinstance(item, dict)]
    return ProblemResponse(document, status_code=status, headers=dict(headers or {}))


def invalid(location: Sequence[str | int], message: str, kind: str = "value_error") -> Response:
    """The answer for input that is refused at one place."""
    return problem(422, [{"type": kind, "loc": list(location), "msg": message}])


def responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route's errors look like, for its ``responses=``."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        code: {"description": HTTPStatus(code).phrase, "content": {MEDIA_TYPE: schema}}
        for code in codes
    }


def handle_problems(app: FastAPI) -> None:
    """Make every error of the application a problem document."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _refused_input)
    app.add_exception_handler(ValidationError, _refused_input)
    app.add_exception_handler(InvalidRequest, _invalid_request)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(Conflict, _conflict)
    app.add_exception_handler(Forbidden, _forbidden)
    for unavailable in (Unavailable, OperationalError, PoolTimeout, DBAPIError):
        app.add_exception_handler(unavailable, _unavailable)
    app.add_exception_handler(Exception, _unexpected)


def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as registered
    return problem(error.status_code, error.detail, error.headers)


def _refused_input(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | ValidationError)  # noqa: S101
    found = error.errors()[:_MOST_ERRORS]
    return problem(422, [_plain_error(item) for item in found])


def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidRequest)  # noqa: S101 - as registered
    parts = [_part(part) for part in error.field.split(".")]
    source = "query" if error.field in request.query_params or error.field == "sort" else "body"
    return invalid([source, *parts], f"{error.problem}; {error.remedy}")


def _part(text: str) -> str | int:
    """A part of a field's path: a name, or a place in a list."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else text


def _not_found(request: Request, error: Exception) -> Response:
    if request.url.path.removeprefix("/studio-gateway").startswith("/maps/"):
        return HTMLResponse(maps.missing_page(str(error)), status_code=404)
    return problem(404, str(error))


def _conflict(_: Request, error: Exception) -> Response:
    return problem(409, str(error))


def _forbidden(_: Request, error: Exception) -> Response:
    return problem(403, str(error))


def _unavailable(_: Request, error: Exception) -> Response:
    if isinstance(error, DBAPIError) and not isinstance(error, OperationalError):
        raise error  # a mistake of ours, not an outage
    log.error("The catalog or the data folder does not answer.", exc_info=error)
    sentence = "The catalog or the data folder does not answer just now; try again shortly."
    return problem(503, sentence, {"Retry-After": "5"})


def _unexpected(_: Request, error: Exception) -> Response:
    log.error("A mistake of the gateway's.", exc_info=error)
    # This answer is made outside of all middlewares.
    return problem(_SERVER_ERROR, "Internal Server Error", SECURITY_HEADERS)


def _plain_error(item: Mapping[str, Any]) -> dict[str, Any]:
    """One of pydantic's errors as JSON: short input, no exception objects, no infinities."""
    plain = {"type": item["type"], "loc": list(item["loc"]), "msg": item["msg"]}
    given = item.get("input")
    if given is None or isinstance(given, bool | int) or _is_short(given):
        plain["input"] = given
    context = {k: str(v) if isinstance(v, Exception) else v for k, v in _context(item).items()}
    if context:
        plain["ctx"] = jsonable_encoder(context, custom_encoder={float: str})
    return plain


def _context(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return item.get("ctx") or {}


def _is_short(given: object) -> bool:
    if isinstance(given, str):
        return len(given) <= _LONGEST_INPUT and given.isprintable()
    return isinstance(given, float) and math.isfinite(given)


def _pointed(item: Mapping[str, Any]) -> dict[str, Any]:
    """The error with a JSON pointer, as RFC 9457 shows it."""
    location = list(item.get("loc", ()))
    inside = location[1:] if location[:1] == ["body"] else location
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in inside)
    return {"detail": item.get("msg", ""), "pointer": "#/" + "/".join(escaped)}
