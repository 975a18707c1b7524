"""The JSON object that a script prints for whoever called it."""

from __future__ import annotations

import json
from typing import Any

_MOST_BYTES = 65_536
_MOST_TRIES = 50


def printed_json(text: str) -> dict[str, Any]:
    """All of ``text`` if it is a JSON object, else the last one in it that starts a line; or {}."""
    whole = _object(text.strip())
    if whole is not None:
        return whole
    lines = text.rstrip().splitlines()
    tries = 0
    for place in range(len(lines) - 1, -1, -1):
        if not lines[place].startswith("{"):
            continue
        for candidate in (lines[place], "\n".join(lines[place:])):
            found = _object(candidate.strip())
            if found is not None:
                return found
        tries += 1
        if tries == _MOST_TRIES:
            break
    return {}


def _object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{") or len(text) > _MOST_BYTES:
        return None
    try:
        # Not a number has no place in JSON, nor in a database that keeps it.
        found = json.loads(text, parse_constant=lambda _: None)
        json.dumps(found).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
