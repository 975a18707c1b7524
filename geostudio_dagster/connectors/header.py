"""What a scene says of itself, and whether it may be used as one.

GDAL is let near GeoTIFFs only (a COG is one), and reads nothing beside the file itself: no
``.aux.xml``, ``.ovr``, ``.msk`` or world file, which could point elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # what rasterio.warp lets through, and no other name
from rasterio.env import Env
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as transform_points
from shapely.geometry import Polygon, box

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.scene import Scene

_GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
}
_BLOCK_BYTES = 1 << 30
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF
_EDGE_POINTS = 16
_HALF_TURN = 180
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class SceneHeader:
    """A scene's grid and bands.

    Attributes:
        width: columns in pixels. height: rows in pixels.
        crs: coordinate reference system as WKT.
        transform: the six coefficients a, b, c, d, e, f from pixel to CRS coordinates.
        bands: one name per band, empty where the file names none.
        dtype: numpy name of the pixel type.
        nodata: value of missing pixels, if declared.
        footprint: outline as a GeoJSON polygon in EPSG:4326, its edges densified; None where
            the CRS cannot be related to EPSG:4326.
        bounds: west, south, east, north of the footprint.
    """

    width: int
    height: int
    crs: str
    transform: tuple[float, float, float, float, float, float]
    bands: tuple[str, ...]
    dtype: str
    nodata: float | None
    footprint: dict[str, Any] | None
    bounds: tuple[float, float, float, float] | None


def check_scene(path: Path, shown: str, manifest: BundleManifest | None = None) -> SceneHeader:
    """Open a scene and check that a model can be run on it.

    Args:
        path: the file. shown: how error messages name it.
        manifest: the model whose bands must be there; None checks the file alone.

    Raises:
        TaskError: ``not_a_raster``, ``not_georeferenced``, ``too_large`` (one block would not
            fit in memory), ``too_few_bands``, or whatever else the prediction would refuse.
    """
    with _opened(path, shown) as scene:
        _check_pixels(scene, shown)
        _check_georeference(scene, shown)
        header = _header(scene)
        if header.bounds is None:
            raise TaskError(
                "not_georeferenced",
                f"{shown} has edges that its coordinate reference system does not place on the "
                "globe; cut them off, or reproject it.",
            )
        if manifest is not None:
            _check_as_model_input(path, manifest, shown)
        return header


def read_header(path: Path, shown: str) -> SceneHeader:
    """The header alone, for planning: as :func:`check_scene`, but pixels may still be missing.

    Raises:
        TaskError: ``not_a_raster`` or ``not_georeferenced``.
    """
    with _opened(path, shown) as scene:
        _check_georeference(scene, shown)
        return _header(scene)


def window_footprint(header: SceneHeader, window: tuple[int, int, int, int]) -> dict[str, Any]:
    """Outline of a window of a scene as a GeoJSON polygon in EPSG:4326.

    Raises:
        ValueError: the scene's CRS cannot be related to EPSG:4326.
    """
    footprint = _footprint(header.crs, header.transform, window)
    if footprint is None:
        raise ValueError("the CRS of the scene cannot be related to EPSG:4326")
    return footprint


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[Any]:
    with Env(**_GDAL):
        try:
            scene = rasterio.open(path, driver="GTiff")
        except RasterioError:
            raise TaskError("not_a_raster", _why_not_opened(path, shown)) from None
        with scene:
            yield scene


def _why_not_opened(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        return f"{shown} cannot be read ({error.strerror})."
    if start in _TIFF_STARTS:
        return f"{shown} is a damaged GeoTIFF, perhaps cut short; upload it again."
    return f"{shown} is not a GeoTIFF; give a GeoTIFF or a COG."


def _check_pixels(scene: Any, shown: str) -> None:
    if len(set(scene.dtypes)) > 1 or scene.dtypes[0].startswith("complex"):
        raise TaskError(
            "not_a_raster",
            f"{shown} holds complex or mixed pixel types; give bands of one real type.",
        )
    rows, columns = scene.block_shapes[0]
    planes = scene.count if scene.profile.get("interleave") == "pixel" else 1
    size = rows * columns * planes * _itemsize(scene.dtypes[0])
    if size > _BLOCK_BYTES:
        raise TaskError(
            "too_large",
            f"{shown} stores blocks of {rows} x {columns} pixels, {size / 2**30:.1f} GiB each; "
            "write it again with tiles of 512 x 512, as a COG has.",
        )
    _check_complete(scene, shown)


def _check_complete(scene: Any, shown: str) -> None:
    """A file cut short opens well; its last block of pixels shows that it lies past the end."""
    rows, columns = scene.block_shapes[0]
    last = f"{math.ceil(scene.width / columns) - 1}_{math.ceil(scene.height / rows) - 1}"
    size = Path(scene.name).stat().st_size
    for name in ("0_0", last):
        offset = scene.get_tag_item(f"BLOCK_OFFSET_{name}", "TIFF", bidx=scene.count)
        length = scene.get_tag_item(f"BLOCK_SIZE_{name}", "TIFF", bidx=scene.count)
        if offset and length and int(offset) + int(length) > size:
            raise TaskError(
                "not_a_raster", f"{shown} is cut short: pixels are missing; upload it again."
            )


def _check_georeference(scene: Any, shown: str) -> None:
    transform = scene.transform
    finite = all(math.isfinite(value) for value in transform[:6])
    if scene.crs and finite and not transform.is_identity and abs(transform.determinant) > 0:
        return
    if scene.gcps[0] or scene.rpcs:
        kind = "ground control points" if scene.gcps[0] else "rational polynomials (RPC)"
        problem = f"has only {kind} instead of a grid; rectify it, for instance with gdalwarp"
    else:
        missing = "coordinate reference system" if not scene.crs else "position (geotransform)"
        problem = (
            f"has no {missing} inside the file (side files are not read); "
            "set it, for instance with gdal_edit"
        )
    raise TaskError("not_georeferenced", f"{shown} {problem}.")


def _check_as_model_input(path: Path, manifest: BundleManifest, shown: str) -> None:
    """Open the scene as the prediction will, so that what it refuses is refused here."""
    try:
        with Scene(path, manifest.model_copy(update={"dates": 1})):
            pass
    except TaskError as error:
        # The file of a remote scene is named by a digest; people know it by its address.
        message = str(error).replace(path.name, shown)
        raise TaskError(error.code, message, retryable=error.retryable) from error


def _header(scene: Any) -> SceneHeader:
    crs = scene.crs.to_wkt()
    coefficients = tuple(float(value) for value in scene.transform[:6])
    a, b, c, d, e, f = coefficients
    footprint = _footprint(crs, (a, b, c, d, e, f), (0, 0, scene.width, scene.height))
    return SceneHeader(
        width=scene.width,
        height=scene.height,
        crs=crs,
        transform=(a, b, c, d, e, f),
        bands=tuple(name or "" for name in scene.descriptions),
        dtype=scene.dtypes[0],
        nodata=scene.nodata,
        footprint=footprint,
        bounds=_bounds(footprint),
    )


def _footprint(
    crs: str, transform: tuple[float, ...], window: tuple[int, int, int, int]
) -> dict[str, Any] | None:
    """Counter-clockwise rings (RFC 7946), 16 points an edge, rounded to 1e-7 degree (1 cm)."""
    left, top, width, height = window
    steps = [step / _EDGE_POINTS for step in range(_EDGE_POINTS)]
    ring: list[tuple[float, float]] = [(left, top + height * t) for t in steps]
    ring += [(left + width * t, top + height) for t in steps]
    ring += [(left + width, top + height * (1 - t)) for t in steps]
    ring += [(left + width * (1 - t), top) for t in steps]
    a, b, c, d, e, f = transform
    xs = [a * column + b * row + c for column, row in ring]
    ys = [d * column + e * row + f for column, row in ring]
    try:
        longitudes, latitudes = transform_points(crs, "EPSG:4326", xs, ys)
    except (RasterioError, CRSError, CPLE_BaseError):
        return None
    if not all(math.isfinite(value) for value in (*longitudes, *latitudes)):
        return None
    if max(longitudes) > _HALF_TURN + _SLACK:  # a grid that counts from 0 to 360
        return _cut_at_date_line(longitudes, latitudes)
    if any(abs(x - y) > _HALF_TURN for x, y in pairwise(longitudes)):
        east_of_it = [x + 2 * _HALF_TURN if x < 0 else x for x in longitudes]
        return _cut_at_date_line(east_of_it, latitudes)
    return {"type": "Polygon", "coordinates": [_closed_ring(longitudes, latitudes)]}


def _cut_at_date_line(longitudes: list[float], latitudes: list[float]) -> dict[str, Any]:
    """A scene that crosses 180 degrees, as two halves (RFC 7946, section 3.1.9)."""
    ring = Polygon(zip(longitudes, latitudes, strict=True))
    halves = []
    for west in (-_HALF_TURN, _HALF_TURN):
        half = ring.intersection(box(west, -90, west + 2 * _HALF_TURN, 90))
        if half.geom_type == "Polygon" and not half.is_empty:
            xs, ys = zip(*half.exterior.coords[:-1], strict=True)
            offset = 0 if west < 0 else 2 * _HALF_TURN
            halves.append([_closed_ring([x - offset for x in xs], ys)])
    return {"type": "MultiPolygon", "coordinates": halves}


def _closed_ring(longitudes: Sequence[float], latitudes: Sequence[float]) -> list[list[float]]:
    points = [
        [round(min(max(x, -180.0), 180.0), 7), round(min(max(y, -90.0), 90.0), 7)]
        for x, y in zip(longitudes, latitudes, strict=True)
    ]
    if _signed_area(points) < 0:
        points.reverse()
    return [*points, points[0]]


def _signed_area(points: list[list[float]]) -> float:
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return sum(p[0] * q[1] - q[0] * p[1] for p, q in pairs) / 2


def _bounds(footprint: dict[str, Any] | None) -> tuple[float, float, float, float] | None:
    """West, south, east, north; west lies above east where the scene crosses 180 degrees."""
    if footprint is None:
        return None
    crosses = footprint["type"] == "MultiPolygon"
    rings = [part[0] for part in footprint["coordinates"]] if crosses else footprint["coordinates"]
    latitudes = [point[1] for ring in rings for point in ring]
    west = min(point[0] for point in rings[0])
    east = max(point[0] for point in rings[-1])
    return west, min(latitudes), east, max(latitudes)


def _itemsize(dtype: str) -> int:
    return int(np.dtype(dtype).itemsize)
