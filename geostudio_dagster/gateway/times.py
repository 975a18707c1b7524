"""Times as GEOStudio's clients read them: always six digits of a second, and Z."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from pydantic import PlainSerializer, WithJsonSchema

_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def api_time(moment: dt.datetime) -> str:
    """An aware time as ``2026-11-20T17:27:11.738572Z``."""
    return moment.astimezone(dt.UTC).strftime(_FORMAT)


ApiTime = Annotated[
    dt.datetime,
    PlainSerializer(api_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
