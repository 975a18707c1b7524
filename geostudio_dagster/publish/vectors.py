"""The joined features of a vector layer: where they are kept, and as GeoJSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geostudio_dagster.processors.features import GEOMETRY

MEDIA_TYPE = "application/geopackage+sqlite3"
_BATCH = 1000


def package_role(layer: str) -> str:
    """The name under which a request keeps the joined features of a layer."""
    return f"vectors-{layer}"


def feature_count(path: Path) -> int:
    """Features of a package of ``join_features``."""
    import pyogrio

    return int(pyogrio.read_info(path)["features"])


def geojson_of(path: Path, limit: int) -> Iterator[bytes]:
    """A package's features as one GeoJSON FeatureCollection, in pieces.

    ``numberMatched`` and ``numberReturned`` count them; where there are more than ``limit``,
    ``cut`` says so in a sentence.
    """
    import pyogrio

    total = feature_count(path)
    head: dict[str, Any] = {
        "type": "FeatureCollection",
        "numberMatched": total,
        "numberReturned": min(total, limit),
    }
    if total > limit:
        head["cut"] = f"These are the first {limit} of {total} features."
    yield json.dumps(head)[:-1].encode() + b', "features": ['
    begin = b""
    left = limit
    with pyogrio.open_arrow(path, batch_size=_BATCH, use_pyarrow=True) as (_, reader):
        for batch in reader:
            rows = batch.slice(0, left).to_pylist()
            left -= len(rows)
            for row in rows:
                yield begin + _feature(row)
                begin = b",\n"
            if left <= 0:
                break
    yield b"]}"


def _feature(row: dict[str, Any]) -> bytes:
    import shapely

    geometry = shapely.to_geojson(shapely.from_wkb(row.pop(GEOMETRY)))
    properties = {name: _number(value) for name, value in row.items()}
    text = json.dumps(properties, default=str, ensure_ascii=False)
    return f'{{"type": "Feature", "properties": {text}, "geometry": {geometry}}}'.encode()


def _number(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
