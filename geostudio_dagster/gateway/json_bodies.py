"""JSON that is refused before it is understood: too deep, ambiguous, or not to be stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from starlette.responses import Response

from geostudio_dagster.gateway.problems import invalid

Place = tuple[str | int, ...]

# Possessive, so that no text makes the search slow; an unclosed string reaches to the end.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_NUMBER = re.compile(rb"NaN|Infinity")
_HUGE_NUMBER = re.compile(rb"[eE]\+?0*[1-9]\d{2,}|\d{300,}")
_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_MOST_DIGITS = 300  # of a whole number that a float can be made of
_NOT_A_NUMBER = "has NaN or Infinity, which JSON does not know"
_TOO_LARGE = "has a number that is too large to be held"
_NOT_TEXT = "has a character that cannot be stored (NUL or half a surrogate pair)"


class _TwiceError(ValueError):
    """A name that an object has twice."""


def refused_json(
    body: bytes, deepest: int, place: Sequence[str | int] = ("body",)
) -> Response | None:
    """What is wrong with a JSON text whatever it is for; None where nothing is.

    A text that is no JSON at all is left to whoever reads it.

    Args:
        deepest: how deep arrays and objects may be nested.
        place: where the text stands in the request, as errors name it.
    """
    odd = _odd_byte(body)
    if odd is not None:
        return invalid(place, f"is not UTF-8: byte {odd} is no part of it", "json_invalid")
    bare = _STRINGS.sub(b'""', body)
    if _depth(bare) > deepest:
        return invalid(place, f"is nested more than {deepest} levels deep", "json_too_deep")
    try:
        document = _read(body)
    except _TwiceError as error:
        return invalid([*place, str(error)], "is there twice; keep one", "json_invalid")
    except ValueError:
        return None
    for found, message, kind in _findings(document, body, bare):
        return invalid([*place, *found], message, kind)
    return None


def _odd_byte(body: bytes) -> int | None:
    """The place of a byte that no JSON in UTF-8 has; None where there is none.

    NUL is one: by it json.loads knows UTF-16 and UTF-32, which nothing here would look through.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    nul = body.find(b"\0")
    return None if nul < 0 else nul


def _read(body: bytes) -> Any:
    # A byte order mark is no part of the text.
    text = body.decode("utf-8-sig")
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _TwiceError(_shown(name))
            seen.add(name)
    return found


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


def _depth(bare: bytes) -> int:
    """How deep arrays and objects are nested."""
    letters = np.frombuffer(bare, np.uint8)
    opened = (letters == ord("[")) | (letters == ord("{"))
    closed = (letters == ord("]")) | (letters == ord("}"))
    steps = opened.astype(np.int32) - closed
    return int(steps.cumsum().max(initial=0))


def _findings(document: object, body: bytes, bare: bytes) -> Iterator[tuple[Place, str, str]]:
    """What no database or JSON takes, with its place; looked for where the text gives cause."""
    if _NO_NUMBER.search(bare) or _HUGE_NUMBER.search(bare):
        for place, value in _leaves(document, ()):
            if isinstance(value, float) and not math.isfinite(value):
                message = _NOT_A_NUMBER if _NO_NUMBER.search(bare) else _TOO_LARGE
                yield place, message, "json_invalid"
    if _SUSPICIOUS.search(body):
        for place, value in _leaves(document, ()):
            if isinstance(value, str) and _is_odd(value):
                yield place, _NOT_TEXT, "string_unicode"


def _is_odd(text: str) -> bool:
    return "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)


def _leaves(value: object, place: Place) -> Iterator[tuple[Place, object]]:
    """Values that hold no others, and names of objects, each with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*place, _shown(key)), key
            yield from _leaves(item, (*place, _shown(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, (*place, number))
    else:
        yield place, value


def _shown(key: str) -> str:
    return key[:100].encode(errors="replace").decode().replace("\0", "?")
