"""Tiles and point values, drawn from a layer's granules by rio-tiler (TiTiler's engine).

Only paths that the catalog names are ever opened; nothing of a web request becomes a path.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from morecantile import Tile
from numpy.typing import NDArray
from rasterio.errors import RasterioIOError
from rio_tiler.constants import WEB_MERCATOR_TMS
from rio_tiler.errors import EmptyMosaicError, PointOutsideBounds, TileOutsideBounds
from rio_tiler.io import Reader
from rio_tiler.mosaic import mosaic_reader
from rio_tiler.utils import render

from geostudio_dagster.gateway.shelf import ShownLayer
from geostudio_dagster.publish.styles import LayerStyle

log = logging.getLogger(__name__)

TILE_SIZE = 256
_SKIPPED = (TileOutsideBounds, PointOutsideBounds, RasterioIOError)
# No sidecar files, no listing of folders: what is drawn is the committed file alone.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


@cache
def empty_tile() -> bytes:
    """A transparent PNG."""
    nothing = np.zeros((3, TILE_SIZE, TILE_SIZE), np.uint8)
    return bytes(render(nothing, nothing[0], img_format="PNG"))


def tile_png(layer: ShownLayer, z: int, x: int, y: int) -> bytes:
    """A 256 x 256 RGBA PNG of the layer's Web Mercator tile; transparent where is no data.

    Classes are sampled by nearest neighbour in their exact colours; where granules overlap, the
    first one's valid pixels are on top.
    """
    if z < layer.minzoom:
        return empty_tile()
    places = layer.granules_in(WEB_MERCATOR_TMS.bounds(Tile(x, y, z)))
    if not places:
        return empty_tile()
    style = layer.record.style
    indexes = tuple(style["channels"]) if style["kind"] == "rgb" else (1,)
    method = "nearest" if style["kind"] == "classes" else "bilinear"

    def read(path: Path, *tile: int) -> Any:
        with Reader(str(path)) as reader:
            return reader.tile(
                *tile,
                tilesize=TILE_SIZE,
                indexes=indexes,
                resampling_method=method,
                reproject_method=method,
            )

    with rasterio.Env(**_GDAL):
        try:
            image, _ = mosaic_reader(
                [layer.paths[place] for place in places],
                read,
                x,
                y,
                z,
                threads=0,
                allowed_exceptions=_SKIPPED,
            )
        except EmptyMosaicError:
            return empty_tile()
    colours, alpha = paint(style, image.array)
    if not alpha.any():
        return empty_tile()
    return bytes(render(colours, alpha, img_format="PNG"))


def paint(
    style: LayerStyle, pixels: np.ma.MaskedArray[Any, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Colours (3, H, W) and opacity (H, W), both uint8, of masked pixel values (bands, H, W)."""
    invalid: NDArray[np.bool_] = np.ma.getmaskarray(pixels)
    valid = np.asarray(~invalid.any(axis=0), np.bool_)
    data = np.ma.getdata(pixels)
    if style["kind"] == "classes":
        colours = _class_colours(style, data[0])
        alpha = np.where(valid, colours[..., 3], 0)
        return np.moveaxis(colours[..., :3], -1, 0), alpha.astype(np.uint8)
    if style["kind"] == "ramp":
        values = data[0].astype(np.float64)
        valid = valid & np.isfinite(values)
        return _ramp_colours(style, np.where(valid, values, 0.0)), _opaque(valid)
    low, high = float(style["minimum"]), float(style["maximum"])
    if data.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return data, _opaque(valid)
    scaled = (data.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8), _opaque(valid)


def point_value(layer: ShownLayer, longitude: float, latitude: float) -> dict[str, Any] | None:
    """Value of the topmost valid pixel at a place (degrees); None where is no data.

    Returns:
        ``task_id``, ``value`` (list of numbers, one per shown band), and ``label`` and
        ``colour`` where the layer shows classes.
    """
    style = layer.record.style
    indexes = tuple(style["channels"]) if style["kind"] == "rgb" else (1,)
    here = (longitude, latitude, longitude, latitude)
    with rasterio.Env(**_GDAL):
        for place in layer.granules_in(here):
            try:
                with Reader(str(layer.paths[place])) as reader:
                    point = reader.point(longitude, latitude, indexes=indexes)
            except _SKIPPED:
                continue
            if np.ma.getmaskarray(point.array).any():
                continue
            values = [item.item() for item in np.ma.getdata(point.array)]
            task_id = layer.record.granules[place]["task_id"]
            return {"task_id": task_id, "value": values, **_labelled(style, values[0])}
    return None


def _labelled(style: LayerStyle, value: float) -> dict[str, Any]:
    if style["kind"] == "ramp":
        return {"unit": style["unit"]}
    if style["kind"] == "classes":
        for item in style["classes"]:
            if item["value"] == value:
                return {"label": item["name"], "colour": item["colour"]}
    return {}


def _class_colours(style: LayerStyle, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour and opacity (H, W, 4) of class values (H, W); what is no class is transparent.

    Looked up among the classes' own values: a client's may be negative, or large.
    """
    entries = sorted(style["classes"], key=lambda item: item["value"])
    known = np.array([item["value"] for item in entries], np.float64)
    table = np.array(
        [(*_rgb(item["colour"]), round(255 * item["opacity"])) for item in entries]
        + [(0, 0, 0, 0)],
        np.uint8,
    )
    wanted = values.astype(np.float64)
    # The first of several classes of one value: whose label a point has.
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return table[np.where(known[places] == wanted, places, len(known))]


def _ramp_colours(style: LayerStyle, values: NDArray[np.float64]) -> NDArray[np.uint8]:
    stops = [float(stop["value"]) for stop in style["stops"]]
    colours = np.array([_rgb(stop["colour"]) for stop in style["stops"]], np.float64)
    channels = [np.interp(values, stops, colours[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels)).astype(np.uint8)


def _opaque(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(valid, 255, 0).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
