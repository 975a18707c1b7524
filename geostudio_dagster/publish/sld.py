"""Styles as SLD 1.0.0, for GeoServer and for clients that pass ``SLD_BODY``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from geostudio_dagster.publish.styles import LayerStyle

MEDIA_TYPE = "application/vnd.ogc.sld+xml"
_CHANNELS = ("RedChannel", "GreenChannel", "BlueChannel")
# Characters that no XML 1.0 document may hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def style_document(style: LayerStyle, layer_name: str, title: str = "") -> str:
    """SLD 1.0.0 text of a style (see ``publish.styles``), with every name escaped."""
    root = ET.Element(
        "StyledLayerDescriptor",
        {
            "version": "1.0.0",
            "xmlns": "http://www.opengis.net/sld",
            "xmlns:ogc": "http://www.opengis.net/ogc",
            "xmlns:xlink": "http://www.w3.org/1999/xlink",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:schemaLocation": "http://www.opengis.net/sld "
            "http://schemas.opengis.net/sld/1.0.0/StyledLayerDescriptor.xsd",
        },
    )
    layer = ET.SubElement(root, "NamedLayer")
    _text(layer, "Name", layer_name)
    user_style = ET.SubElement(layer, "UserStyle")
    _text(user_style, "Name", layer_name)
    _text(user_style, "Title", title or layer_name)
    _text(user_style, "IsDefault", "1")
    rules = ET.SubElement(user_style, "FeatureTypeStyle")
    if style["kind"] == "vector":
        _marks(rules, style)
    else:
        _pixels(ET.SubElement(ET.SubElement(rules, "Rule"), "RasterSymbolizer"), style)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _pixels(symbolizer: ET.Element, style: LayerStyle) -> None:
    _text(symbolizer, "Opacity", "1.0")
    if style["kind"] == "rgb":
        _channels(symbolizer, style)
    elif style["kind"] == "classes":
        _class_colours(symbolizer, style["classes"])
    else:
        _ramp(symbolizer, style["stops"])


def _marks(rules: ET.Element, style: LayerStyle) -> None:
    """One rule for each dimension: a polygon has a centre and an outline, too, which the other
    symbolizers would draw.
    """
    polygon = ET.SubElement(_rule_of_dimension(rules, "Polygons", 2), "PolygonSymbolizer")
    _fill(polygon, style["polygon"])
    _stroke(polygon, style["polygon"])
    line = ET.SubElement(_rule_of_dimension(rules, "Lines", 1), "LineSymbolizer")
    _stroke(line, style["line"])
    point = ET.SubElement(_rule_of_dimension(rules, "Points", 0), "PointSymbolizer")
    graphic = ET.SubElement(point, "Graphic")
    mark = ET.SubElement(graphic, "Mark")
    _text(mark, "WellKnownName", style["point"]["shape"])
    _fill(mark, style["point"])
    _stroke(mark, style["point"])
    _text(graphic, "Size", f"{style['point']['size']:g}")


def _rule_of_dimension(rules: ET.Element, title: str, dimension: int) -> ET.Element:
    rule = ET.SubElement(rules, "Rule")
    _text(rule, "Title", title)
    equal = ET.SubElement(ET.SubElement(rule, "ogc:Filter"), "ogc:PropertyIsEqualTo")
    function = ET.SubElement(equal, "ogc:Function", {"name": "dimension"})
    # GeoServer's word for "the geometry, whatever its attribute is called".
    ET.SubElement(function, "ogc:Function", {"name": "geometry"})
    _text(equal, "ogc:Literal", str(dimension))
    return rule


def _fill(parent: ET.Element, mark: Mapping[str, Any]) -> None:
    fill = ET.SubElement(parent, "Fill")
    _parameter(fill, "fill", mark["fill"])
    _parameter(fill, "fill-opacity", f"{mark['fill_opacity']:g}")


def _stroke(parent: ET.Element, mark: Mapping[str, Any]) -> None:
    stroke = ET.SubElement(parent, "Stroke")
    _parameter(stroke, "stroke", mark["stroke"])
    _parameter(stroke, "stroke-width", f"{mark['stroke_width']:g}")
    _parameter(stroke, "stroke-opacity", f"{mark['stroke_opacity']:g}")


def _parameter(parent: ET.Element, name: str, value: str) -> None:
    ET.SubElement(parent, "CssParameter", {"name": name}).text = xml_text(value)


def _class_colours(symbolizer: ET.Element, classes: list[dict[str, Any]]) -> None:
    # "values" is GeoServer's attribute beside the standard: without it the colours of
    # neighbouring class numbers are interpolated.
    colour_map = ET.SubElement(symbolizer, "ColorMap", {"type": "values"})
    # In ascending order, without which GeoServer takes no colour map.
    for item in sorted(classes, key=lambda item: item["value"]):
        _entry(colour_map, item["value"], item["colour"], item["name"], item["opacity"])


def _ramp(symbolizer: ET.Element, stops: list[dict[str, Any]]) -> None:
    colour_map = ET.SubElement(symbolizer, "ColorMap", {"type": "ramp"})
    for stop in stops:
        _entry(colour_map, stop["value"], stop["colour"], stop["label"], 1.0)


def _entry(parent: ET.Element, value: float, colour: str, label: str, opacity: float) -> None:
    entry = {"color": colour, "quantity": f"{value:.15g}", "opacity": f"{opacity:g}"}
    if label:
        entry["label"] = xml_text(label)
    ET.SubElement(parent, "ColorMapEntry", entry)


def _channels(symbolizer: ET.Element, style: LayerStyle) -> None:
    selection = ET.SubElement(symbolizer, "ChannelSelection")
    for name, band in zip(_CHANNELS, style["channels"], strict=True):
        channel = ET.SubElement(selection, name)
        _text(channel, "SourceChannelName", str(band))
        if (style["minimum"], style["maximum"]) == (0, 255):
            continue  # 8-bit as it is
        normalize = ET.SubElement(ET.SubElement(channel, "ContrastEnhancement"), "Normalize")
        for option, value in (
            ("algorithm", "StretchToMinimumMaximum"),
            ("minValue", f"{style['minimum']:.15g}"),
            ("maxValue", f"{style['maximum']:.15g}"),
        ):
            ET.SubElement(normalize, "VendorOption", {"name": option}).text = value


def _text(parent: ET.Element, name: str, value: str) -> None:
    ET.SubElement(parent, name).text = xml_text(value)


def xml_text(text: str) -> str:
    """The text without characters that XML can't hold, not even escaped."""
    return _NOT_XML.sub("\ufffd", text)
