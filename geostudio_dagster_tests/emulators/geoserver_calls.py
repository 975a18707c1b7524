"""Calls, answers and routes of the GeoServer emulator."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

_XML = {"text/xml", "application/xml"}
_JSON = {"application/json", "text/json"}


@dataclass(frozen=True)
class Recorded:
    """One request as it came in; ``body`` is its size in bytes."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    body: int
    status: int


class RefusedError(Exception):
    def __init__(self, status: int, message: str, content_type: str = "text/plain") -> None:
        super().__init__(message)
        self.status, self.message, self.content_type = status, message, content_type


@dataclass
class Call:
    """A parsed request on its way to a handler."""

    query: dict[str, str]
    content_type: str
    body: bytes

    @property
    def recurse(self) -> bool:
        return self.query.get("recurse") == "true"

    def document(self) -> ET.Element:
        """The body as XML; JSON bodies are turned into the same shape."""
        if self.content_type in _XML:
            try:
                return ET.fromstring(self.body)
            except ET.ParseError as error:
                raise RefusedError(500, f"Could not parse: {error}") from error
        if self.content_type in _JSON:
            ((name, value),) = json.loads(self.body).items()
            return _element(name, value)
        raise RefusedError(415, f"Content-Type {self.content_type!r} is not supported")


Answer = tuple[int, Any]
Handler = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        expression = re.sub(r"<(\w+)>", r"(?P<\1>[^/]+?)", pattern)
        ROUTES.append((method, re.compile(expression + r"(?:\.json)?$"), handler))
        return handler

    return add


def _element(name: str, value: Any) -> ET.Element:
    made = ET.Element(name)
    if isinstance(value, dict):
        made.extend(_element(key, item) for key, item in value.items())
    elif value is not None:
        made.text = str(value)
    return made
