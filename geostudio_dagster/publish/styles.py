"""How a layer looks, as plain data: what the legend, the tiles and the SLD are all made from.

A style is one of::

    {"kind": "classes", "nodata": 255,
     "classes": [{"value": 0, "name": "land", "colour": "#d9c27e", "opacity": 1.0}, ...]}
    {"kind": "ramp", "nodata": -9999.0, "unit": "t/ha",
     "stops": [{"value": 0.0, "colour": "#440154", "label": "0"}, ...]}
    {"kind": "rgb", "channels": [1, 2, 3], "minimum": 0, "maximum": 255}
    {"kind": "vector",
     "point": {"shape": "circle", "fill": "#e4572e", "fill_opacity": 0.9, "stroke": "#ffffff",
               "stroke_width": 1.0, "stroke_opacity": 1.0, "size": 9.0},
     "line": {"stroke": ..., "stroke_width": ..., "stroke_opacity": ...},
     "polygon": {"fill": ..., "fill_opacity": ..., "stroke": ..., ...}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.planning.masks import MASKED_CLASSES, NODATA

CLASS_NODATA = 255
FLOAT_NODATA = -9999.0
# Nine samples of the perceptually uniform viridis map, for regressions that bring no ramp.
_VIRIDIS = (
    "#440154",
    "#472d7b",
    "#3b528b",
    "#2c728e",
    "#21918c",
    "#28ae80",
    "#5ec962",
    "#addc30",
    "#fde725",
)

LayerStyle = dict[str, Any]


def prediction_style(
    manifest: BundleManifest, value_range: tuple[float, float] | None = None
) -> LayerStyle:
    """Style of a model's output.

    Args:
        manifest: the model's manifest, whose classes or ramp it is drawn by.
        value_range: lowest and highest predicted value, for a regression without a ramp.
    """
    if manifest.task == "segmentation":
        return {
            "kind": "classes",
            "nodata": CLASS_NODATA,
            "classes": [
                {
                    "value": item.value,
                    "name": item.name,
                    "colour": item.colour,
                    "opacity": item.opacity,
                }
                for item in manifest.classes
            ],
        }
    stops = [
        {"value": stop.value, "colour": stop.colour, "label": stop.label}
        for stop in sorted(manifest.ramp, key=lambda stop: stop.value)
    ]
    return {
        "kind": "ramp",
        "nodata": FLOAT_NODATA,
        "unit": manifest.unit,
        "stops": stops or ramp_stops(value_range),
    }


def masked_style(style: LayerStyle, kinds: Sequence[str]) -> LayerStyle:
    """The style of a prediction in which these kinds of pixels were masked."""
    if style["kind"] != "classes":
        return style
    masked = [
        {"value": item.value, "name": item.name, "colour": item.colour, "opacity": 1.0}
        for kind, item in MASKED_CLASSES.items()
        if kind in kinds
    ]
    if not masked:
        return style
    return {**style, "nodata": NODATA, "classes": [*style["classes"], *masked]}


def rgb_style(
    channels: tuple[int, int, int] = (1, 2, 3), minimum: float = 0, maximum: float = 255
) -> LayerStyle:
    """Style of a colour picture: band numbers (1-based) and the values of black and white."""
    return {"kind": "rgb", "channels": list(channels), "minimum": minimum, "maximum": maximum}


def ramp_stops(value_range: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Stops of the default colours over a range of values; 0 to 1 where it is not known."""
    low, high = value_range or (0.0, 1.0)
    if not low < high:
        high = low + 1.0
    last = len(_VIRIDIS) - 1
    values = [low + (high - low) * place / last for place in range(last + 1)]
    return [
        {"value": value, "colour": colour, "label": ""}
        for value, colour in zip(values, _VIRIDIS, strict=True)
    ]
