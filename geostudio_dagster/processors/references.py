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
_PLAIN_NAME = re.compile(
    r"(urn:ogc:def:crs:)?(EPSG|OGC)(:[\d.]*)?:(\d{3,6}|CRS84h?)", re.IGNORECASE
)


def names_files(crs: str) -> bool:
    """Whether a coordinate system, as WKT or a PROJ string, refers to something outside of it."""
    return _NAMES_FILES.search(crs) is not None


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
