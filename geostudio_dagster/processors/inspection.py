"""Judges files that a script left, and makes COGs of its rasters; runs isolated like the script.

Files that were made to break their readers break this process. Run as a program with the folder
of files, the input raster, the folder to fill and the most bytes of pixels; writes ``report.json``
into the folder to fill: one entry per file with its kind, media type and facts, or a ``problem``.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geostudio_dagster.processors.references import CrsMembers, names_files

REPORT = "report.json"
_MOST_JSON_BYTES = 64 * 1024**2
_MOST_TAGS = 50
_MOST_TEXT = 1000
_MOST_BANDS = 4096
_BATCH = 10_000
_ELSEWHERE = "has a coordinate system that refers to files or addresses: use a plain EPSG code"
# What rasterio and pyogrio import when they can, and need for nothing here: it is most of the time
# that a small file takes.
_IDLE = ("boto3", "geopandas", "pandas", "pyarrow", "pyproj")


class Unreadable(Exception):
    """Why a file is not taken, as a clause."""


@contextmanager
def _without_idle_imports() -> Iterator[None]:
    """Within, optional imports of ``_IDLE`` fail, as where they are not installed."""
    held = [name for name in _IDLE if name not in sys.modules]
    sys.modules.update(dict.fromkeys(held))  # type: ignore[arg-type]  # None: not to be found
    try:
        yield
    finally:
        for name in held:
            sys.modules.pop(name, None)


def inspect(path: Path, grid: Path, made: Path, most_bytes: int) -> dict[str, Any]:
    """The entry of one file."""
    kind, media_type, check = _KINDS.get(path.suffix.lower(), ("file", "", None))
    entry: dict[str, Any] = {"name": path.name, "kind": kind, "media_type": media_type}
    try:
        if kind == "raster":
            entry["metadata"] = _raster(path, grid, made, most_bytes)
        elif check is not None:
            entry["metadata"] = check(path)
    except Unreadable as problem:
        entry["problem"] = str(problem)
    except MemoryError:
        entry["problem"] = "needs more memory to be read than the processor may use"
    except Exception as error:  # whatever a reader makes of a hostile file
        entry["problem"] = f"cannot be read ({type(error).__name__}: {error})"[:_MOST_TEXT]
    if entry.get("metadata", {}).pop("is_vector", False):
        entry["kind"] = "vector"
    return entry


def _raster(path: Path, grid: Path, made: Path, most_bytes: int) -> dict[str, Any]:
    import numpy as np

    with _without_idle_imports():
        import rasterio
        from rasterio.env import Env

    # Only the file itself is read: no neighbours, no side-car files, no other formats.
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
    with Env(**options), rasterio.open(path, driver="GTiff") as source:
        if any(name.upper() == "OVERVIEWS" for name in source.tag_namespaces()):
            raise Unreadable("refers to overviews in another file")
        if [Path(name).name for name in source.files] not in ([path.name], []):
            raise Unreadable("refers to other files")
        if source.count > _MOST_BANDS:
            raise Unreadable(f"has more than {_MOST_BANDS} bands")
        if len({*source.dtypes}) > 1 or np.dtype(source.dtypes[0]).kind not in "iuf":
            raise Unreadable("has bands that are no plain numbers of one type")
        pixels = source.width * source.height * source.count
        if pixels * np.dtype(source.dtypes[0]).itemsize > most_bytes:
            raise Unreadable(f"has more than {most_bytes} bytes of pixels")
        crs, transform, place = _place(source, grid)
        _convert(path, source, made / f"{path.stem}.tif", crs, transform)
        return {
            "width": source.width,
            "height": source.height,
            "bands": source.count,
            "dtype": source.dtypes[0],
            "nodata": source.nodata if math.isfinite(source.nodata or 0) else str(source.nodata),
            "crs": crs.to_string(),
            "transform": list(transform)[:6],
            "place": place,
        }


def _place(source: Any, grid: Path) -> tuple[Any, Any, str]:
    """CRS and transform: the raster's own, or the input's where it has the input's size."""
    import rasterio

    if not all(map(math.isfinite, source.transform)):
        raise Unreadable("has a place that is no number")
    if source.crs and not source.transform.is_identity:
        if names_files(source.crs.to_wkt()) or names_files(source.crs.to_wkt(version="WKT2_2019")):
            raise Unreadable(_ELSEWHERE)
        return source.crs, source.transform, "own"
    with rasterio.open(grid) as given:
        if given.crs and (given.width, given.height) == (source.width, source.height):
            return given.crs, given.transform, "input"
        raise Unreadable(
            f"has no place on earth and, being {source.width} x {source.height}, not the grid of "
            f"the input ({given.width} x {given.height})"
        )


def _convert(path: Path, source: Any, target: Path, crs: Any, transform: Any) -> None:
    """Write the pixels into a COG of its own; of what else the file holds, only plain words."""
    import numpy as np

    from geostudio_dagster.raster.checksums import checking
    from geostudio_dagster.raster.cog import ScratchRaster, write_cog
    from geostudio_dagster.raster.patches import Box

    scratch = Path(f"{target.stem}.scratch.tif").resolve()
    size = (source.width, source.height)
    kind = np.dtype(source.dtypes[0]).kind
    with (
        checking(path, source) as checksums,
        ScratchRaster(
            scratch,
            size=size,
            bands=source.count,
            dtype=source.dtypes[0],
            nodata=source.nodata,
            crs=crs,
            transform=transform,
        ) as raster,
    ):
        for window in _windows(*size):
            raster.write(Box(*window), _read(source, checksums, Box(*window)))
        raster.describe(
            tags=_tags(source), descriptions=_descriptions(source), colours=_colours(source)
        )
    write_cog(scratch, target, "average" if kind == "f" else "nearest")
    scratch.unlink()


def _windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    side = 1024
    return [
        (col, row, min(side, width - col), min(side, height - row))
        for row in range(0, height, side)
        for col in range(0, width, side)
    ]


def _read(source: Any, checksums: Any, box: tuple[int, int, int, int]) -> Any:
    from rasterio.windows import Window

    from geostudio_dagster.raster.checksums import DamagedBlockError

    try:
        checksums.check(range(1, source.count + 1), box)
    except DamagedBlockError as error:
        raise Unreadable(f"cannot be read: {error}") from error
    return source.read(window=Window(*box))


def _tags(source: Any) -> dict[str, str]:
    tags = list(source.tags().items())[:_MOST_TAGS]
    return {name[:100]: value[:_MOST_TEXT] for name, value in tags}


def _descriptions(source: Any) -> list[str]:
    return [(text or "")[:_MOST_TEXT] for text in source.descriptions]


def _colours(source: Any) -> Any:
    try:
        return source.colormap(1) if source.dtypes[0] in {"uint8", "uint16"} else None
    except ValueError:
        return None


def _starts(path: Path, *signs: bytes) -> None:
    with path.open("rb") as stream:
        begin = stream.read(64)
    if not begin.startswith(signs):
        raise Unreadable("is not what its name says")


def _vector(*signs: bytes) -> Callable[[Path], dict[str, Any]]:
    def check(path: Path) -> dict[str, Any]:
        # The sign decides which of GDAL's formats reads the file, so it is looked at first.
        _starts(path, *signs)
        with _without_idle_imports():
            import pyogrio

        layers = [str(layer[0]) for layer in pyogrio.list_layers(path)]
        if not layers:
            raise Unreadable("has no layer")
        infos = [pyogrio.read_info(path, layer=layer, force_feature_count=True) for layer in layers]
        if any(names_files(info["crs"] or "") for info in infos):
            raise Unreadable(_ELSEWHERE)
        features = [
            _features(path, layer, info["features"])
            for layer, info in zip(layers, infos, strict=True)
        ]
        return {
            "layers": [layer[:200] for layer in layers[:20]],
            "features": features[0],
            "crs": infos[0]["crs"],
        }

    return check


def _features(path: Path, layer: str, told: int) -> int:
    """Read every feature of a layer, so that a damaged one is found now; how many there are.

    ``told`` is how many the file says; GDAL ends without an error where a GeoPackage breaks off.
    """
    import pyarrow
    from pyogrio.raw import open_arrow

    with open_arrow(path, layer=layer, batch_size=_BATCH) as (_, stream):
        found = sum(map(len, pyarrow.RecordBatchReader.from_stream(stream)))
    if found < told:
        raise Unreadable(f"is damaged: of {told} features {found} can be read")
    return found


def _loaded(path: Path, hook: Any = None) -> Any:
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise Unreadable(f"is larger than {_MOST_JSON_BYTES} bytes")
    return json.loads(path.read_text("utf-8-sig"), object_pairs_hook=hook)


def _json(path: Path) -> dict[str, Any]:
    document = _loaded(path)
    if isinstance(document, dict) and document.get("type") in {"FeatureCollection", "Feature"}:
        return _geojson(path)
    return {}


def _geojson(path: Path) -> dict[str, Any]:
    from shapely.geometry import shape

    members = CrsMembers()
    document = _loaded(path, members)
    if members.strange:
        raise Unreadable(_ELSEWHERE)
    whole = isinstance(document, dict) and document.get("type") == "FeatureCollection"
    features = document.get("features") if whole else [document]
    if not isinstance(features, list):
        raise Unreadable("has no list of features")
    for number, feature in enumerate(features):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise Unreadable(f"has something else than a feature at place {number}")
        if feature.get("geometry") is not None:
            shape(feature["geometry"])
    return {"features": len(features), "crs": members.name, "is_vector": True}


def _csv(path: Path) -> dict[str, Any]:
    rows = 0
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        header = next(reader, None)
        if not header:
            raise Unreadable("has no header")
        for row in reader:
            if row and len(row) != len(header):
                place = f"line {reader.line_num}"
                raise Unreadable(f"has {len(row)} values in {place}, not {len(header)}")
            rows += 1
    return {"columns": [name[:200] for name in header[:200]], "rows": rows}


def _parquet(path: Path) -> dict[str, Any]:
    _starts(path, b"PAR1")
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    names = [str(name)[:200] for name in file.schema_arrow.names[:200]]
    is_vector = b"geo" in (file.schema_arrow.metadata or {})
    for _ in file.iter_batches(_BATCH):  # a damaged part is found now
        pass
    return {"columns": names, "rows": file.metadata.num_rows, "is_vector": is_vector}


def _picture(*signs: bytes) -> Callable[[Path], dict[str, Any]]:
    def check(path: Path) -> dict[str, Any]:
        _starts(path, *signs)
        return {}

    return check


_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_JPEG = _picture(b"\xff\xd8\xff")
_KINDS: dict[str, tuple[str, str, Callable[[Path], dict[str, Any]] | None]] = {
    ".tif": ("raster", _COG, None),
    ".tiff": ("raster", _COG, None),
    ".geojson": ("vector", "application/geo+json", _geojson),
    ".gpkg": ("vector", "application/geopackage+sqlite3", _vector(b"SQLite format 3\0")),
    ".fgb": ("vector", "application/vnd.flatgeobuf", _vector(b"fgb\x03fgb")),
    ".csv": ("table", "text/csv", _csv),
    ".json": ("table", "application/json", _json),
    ".parquet": ("table", "application/vnd.apache.parquet", _parquet),
    ".png": ("image", "image/png", _picture(b"\x89PNG\r\n\x1a\n")),
    ".jpg": ("image", "image/jpeg", _JPEG),
    ".jpeg": ("image", "image/jpeg", _JPEG),
}


def main(files: str, grid: str, made: str, most_bytes: str) -> None:
    """Inspect every file of the folder ``files``."""
    paths = sorted(Path(files).iterdir())
    entries = []
    for path in paths:
        sys.stderr.write(f"{path.name}\n")  # the last one is what broke this process, if any
        entries.append(inspect(path, Path(grid), Path(made), int(most_bytes)))
    (Path(made) / REPORT).write_text(json.dumps(entries))


if __name__ == "__main__":
    main(*sys.argv[1:])
