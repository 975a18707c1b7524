"""The date of a scene, where only its name tells it."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

# Four, two and two digits with the same separator or none, not inside a longer number. What
# follows may be a time (20240630T101112).
_DATE = re.compile(r"(?<!\d)(\d{4})([-_.]?)(\d{2})\2(\d{2})(?!\d)")
_EARLIEST, _LATEST = 1972, 2099  # the first Landsat; as far as any archive here will go


def date_in_name(address: str) -> str | None:
    """The first date in the last part of a path or URL, as YYYY-MM-DD; None where there is none.

    ``2019-08-15``, ``2019_08_15``, ``2019.08.15`` and ``20190815`` count; numbers that are no
    day of the calendar, or lie outside 1972 to 2099, do not.
    """
    path = urlsplit(address).path if "://" in address else address
    # Searched from every start, since a number that is no date may overlap one that is.
    name = PurePosixPath(unquote(path)).name
    start = 0
    while match := _DATE.search(name, start):
        year, _, month, day = match.groups()
        start = match.start() + 1
        try:
            date = dt.date(int(year), int(month), int(day))
        except ValueError:
            continue
        if _EARLIEST <= date.year <= _LATEST:
            return date.isoformat()
    return None
