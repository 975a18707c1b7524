"""Joins the features of many vector files in one GeoPackage, EPSG:4326; runs isolated.

The files are users', and whatever GDAL, PROJ or GEOS make of them is made of them here. Run as a
program with a listing (see :func:`main`), the folder of the files and the folder to fill; writes
``joined.gpkg``, where there is a feature, and ``report.json`` with the bounds of each file's.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import geopandas as gpd

log = logging.getLogger(__name__)

Bounds = tuple[float, float, float, float]

JOINED, REPORT = "joined.gpkg", "report.json"
_READABLE = frozenset({".geojson", ".json", ".gpkg", ".fgb"})
_MOST_FEATURES = 1_000_000  # of one file
_PACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
_PACKAGE_ID_AT = 68
_FLATGEOBUF = b"fgb\x03fgb"
_INDEX = re.compile(r'CREATE VIRTUAL TABLE "?[\w-]+"? USING rtree\(')
GEOMETRY = "geom"
_ROW, _TASK = "fid", "task_id"
_SHAPE = "geometry"  # what geopandas calls it while features are in memory
_DECIMALS = 7  # of a degree: about a centimetre
# A GeoPackage says when it was written; equal features are to be equal bytes.
_ANY_DATE = "2000-01-01T00:00:00.000Z"


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A vector file and the task that it was made for."""

    task_id: str
    path: Path


def join_features(
    files: Sequence[TaskFile], target: Path, layer_name: str
) -> tuple[Bounds | None, ...]:
    """Write all features of the files into a new GeoPackage, in EPSG:4326, as one table.

    A column ``task_id`` says where each comes from. Features without a place on the globe are
    left out, and so is what cannot be read or written, with a warning. Equal files give equal
    bytes.

    Args:
        files: GeoJSON, GeoPackage (its first layer) or FlatGeobuf.
        target: the file to be written; it is not, where there is no feature.
        layer_name: the table's name.

    Returns:
        West, south, east, north of each file's features, degrees; None where it has none.
    """
    import pandas as pd

    frames = [_features(file) for file in files]
    filled = [frame for frame in frames if len(frame)]
    if filled:
        try:
            _write(_storable(pd.concat(filled, ignore_index=True)), target, layer_name)
        except Exception as error:  # what users' columns may do to SQLite has no end
            log.warning("the layer cannot be written: %s", error)
            target.unlink(missing_ok=True)
            return (None,) * len(files)
    return tuple(_bounds(frame) for frame in frames)


def _write(features: gpd.GeoDataFrame, target: Path, layer_name: str) -> None:
    import pyogrio

    target.unlink(missing_ok=True)
    with _dated():
        pyogrio.write_dataframe(
            features,
            target,
            driver="GPKG",
            layer=layer_name,
            geometry_type="Unknown",
            layer_options={"FID": _ROW, "GEOMETRY_NAME": GEOMETRY},
        )


def _features(file: TaskFile) -> gpd.GeoDataFrame:
    """The file's features that have a place on the globe, two-dimensional, EPSG:4326."""
    import geopandas as gpd
    import pyogrio
    import shapely

    nothing = gpd.GeoDataFrame({_TASK: []}, geometry=[], crs="EPSG:4326")
    if file.path.suffix.lower() not in _READABLE:
        log.warning("%s is left out: only GeoJSON, GPKG and FlatGeobuf are shown", file.path.name)
        return nothing
    try:
        source = _source(file.path)
        layer = str(pyogrio.list_layers(source)[0][0])
        found = pyogrio.read_dataframe(
            source, layer=layer, force_2d=True, max_features=_MOST_FEATURES
        )
        if len(found) == _MOST_FEATURES:
            log.warning("of %s only %d features are taken", file.path.name, _MOST_FEATURES)
        if not isinstance(found, gpd.GeoDataFrame):
            return nothing
        found = found.to_crs("EPSG:4326") if found.crs else found.set_crs("EPSG:4326")
    except Exception as error:  # GDAL's, PROJ's and GEOS' errors have no base of their own
        log.warning("%s is left out: %s", file.path.name, error)
        return nothing
    west, south, east, north = shapely.bounds(found.geometry.to_numpy()).T
    on_globe = (west >= -180) & (east <= 180) & (south >= -90) & (north <= 90)  # noqa: PLR2004
    if not on_globe.all():
        count = int((~on_globe).sum())
        log.warning("%d features of %s are left out: no place on the globe", count, file.path.name)
    kept = found[on_globe].copy()
    kept[_TASK] = file.task_id
    return kept


def _source(path: Path) -> str | Path:
    """The file as GDAL is to be given it, so that no other of its formats may read it.

    GDAL goes by what is in a file, not by its name, and text with ``<OGRVRTDataSource`` in it is
    an OGR VRT to it, which has it read any other file of this machine.

    Raises:
        ValueError: the file is not what its name says.
    """
    suffix = path.suffix.lower()
    if suffix in (".geojson", ".json"):
        return f"GeoJSON:{path}"
    if suffix == ".gpkg":
        check_package(path)
        return path
    with path.open("rb") as stream:
        if stream.read(len(_FLATGEOBUF)) != _FLATGEOBUF:
            raise ValueError("it is no FlatGeobuf")
    return path


def check_package(path: Path) -> None:
    """See that tables are all that the file has: a view or virtual table can be a program.

    Raises:
        ValueError: it has others, or is another kind of SQLite file, which GDAL reads differently.
    """
    with path.open("rb") as stream:
        stream.seek(_PACKAGE_ID_AT)
        if stream.read(4) not in _PACKAGE_IDS:
            raise ValueError("it is no GeoPackage")
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as database:
        rows = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND rootpage = 0"
        ).fetchall()
    for name, sql in rows:
        if not _INDEX.match(sql or ""):
            raise ValueError(f"it has a view or virtual table, {name}")


def _storable(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Columns as a GeoPackage takes them: names that differ by more than case, one type each."""
    names: dict[str, str] = {}
    taken = {GEOMETRY, _ROW}
    for column in [_TASK, *(name for name in frame.columns if name not in (_TASK, _SHAPE))]:
        name, number = str(column), 2
        while name.casefold() in taken:
            name, number = f"{column}_{number}", number + 1
        taken.add(name.casefold())
        names[column] = name
    made = frame[[*names, _SHAPE]].rename(columns=names)
    for name in names.values():
        if made[name].dtype == object:
            made[name] = [_text(value) for value in made[name]]
    return made


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    plain = value.tolist() if hasattr(value, "tolist") else value  # a list comes as an array
    return plain if isinstance(plain, str) else json.dumps(plain, default=str)


def _bounds(frame: gpd.GeoDataFrame) -> Bounds | None:
    if not len(frame):
        return None
    west, south, east, north = (round(float(value), _DECIMALS) for value in frame.total_bounds)
    return west, south, east, north


@contextmanager
def _dated() -> Iterator[None]:
    import pyogrio

    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _ANY_DATE})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def main(listing: str, files: str, made: str) -> None:
    """Join the files of a JSON listing: the layer's name, and pairs of task and file name."""
    layer_name, pairs = json.loads(Path(listing).read_text("utf-8"))
    given = [TaskFile(task, Path(files) / name) for task, name in pairs]
    bounds = join_features(given, Path(made) / JOINED, layer_name)
    (Path(made) / REPORT).write_text(json.dumps(bounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
