"""Coordinate systems that make whoever uses them open files or ask servers; none is taken.

PROJ opens the grid files that a coordinate system names, by any path of the machine, and GDAL asks
the address that a GeoJSON file gives for its own. Both would happen in the platform's processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_NAMES_FILES = re.compile(
    r"nadgrids|geoidgrids|\+grids|\+init|\+file|proj4_grids|parameterfile|proj-based operation"
    r"|extension\s*[\[(]",
    re.IGNORECASE,
)
# WKT 1 has no words for some systems, EPSG:3857 among them, and adds how PROJ writes them. Plain
# names and numbers open nothing, and neither does the grid @null, which is PROJ's word for none.
_PROJ_STRING = re.compile(r'EXTENSION\["PROJ4","([^"]*)"\]')
_HARMLESS_WORD = re.compile(
    r"""\+(
        (proj|datum|ellps|pm|units|axis|sweep|type)=[a-z]\w*
        |((lat|lon)_\w+|[xyk]_0|a|b|f|rf|R|k|h|zone|alpha|gamma|lonc|pm|to_meter)=[-\d.e]+
        |towgs84=[-\d.e,]+
        |nadgrids=@null
        |no_defs|wktext|south|over
    )""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_PLAIN_NAME = re.compile(
    r"(urn:ogc:def:crs:)?(EPSG|OGC)(:[\d.]*)?:(\d{3,6}|CRS84h?)", re.IGNORECASE
)


def names_files(crs: str) -> bool:
    """Whether a coordinate system, as WKT or a PROJ string, refers to something outside of it."""
    return _NAMES_FILES.search(_PROJ_STRING.sub(_unless_harmless, crs)) is not None


def _unless_harmless(extension: re.Match[str]) -> str:
    """All of it, unless each word of the PROJ string within is harmless."""
    return "" if all(map(_HARMLESS_WORD.fullmatch, extension[1].split(" "))) else extension[0]


class CrsMembers:
    """A hook for ``json.loads`` that looks at every ``crs`` of a GeoJSON document.

    Names count as GDAL reads them: in any case, up to a NUL, and each of what is given twice.
    """

    def __init__(self) -> None:
        self.strange = False
        self.name = "EPSG:4326"

    def __call__(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """Look at an object that was read."""
        for key, value in pairs:
            if key.partition("\0")[0].lower() == "crs" and isinstance(value, dict):
                self._look(value)
        return dict(pairs)

    def _look(self, crs: dict[str, Any]) -> None:
        given = crs.get("properties")
        name = given.get("name") if isinstance(given, dict) and len(given) == 1 else None
        plain = isinstance(name, str) and _PLAIN_NAME.fullmatch(name)
        if plain and crs.get("type") == "name" and len(crs) == 2:  # noqa: PLR2004 - type, properties
            self.name = str(name)
        else:
            self.strange = True
