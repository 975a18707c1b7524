from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from geostudio_dagster.planning.output_styles import ClassStyle
from geostudio_dagster.publish import sld
from geostudio_dagster.publish.styles import prediction_style, rgb_style
from geostudio_dagster_tests.conftest import shared_or_skip
from geostudio_dagster_tests.publish.rasters import CLASSES, class_manifest, regression_manifest

NS = {"sld": "http://www.opengis.net/sld"}

# Elements that SLD 1.0.0 allows below each element used, in the order of its schema.
CONTENT = {
    "StyledLayerDescriptor": ["Name", "Title", "Abstract", "NamedLayer", "UserLayer"],
    "NamedLayer": ["Name", "LayerFeatureConstraints", "NamedStyle", "UserStyle"],
    "UserStyle": ["Name", "Title", "Abstract", "IsDefault", "FeatureTypeStyle"],
    "FeatureTypeStyle": [
        "Name", "Title", "Abstract", "FeatureTypeName", "SemanticTypeIdentifier", "Rule",
    ],
    "Rule": [
        "Name", "Title", "Abstract", "LegendGraphic", "Filter", "ElseFilter",
        "MinScaleDenominator", "MaxScaleDenominator", "RasterSymbolizer",
    ],
    "RasterSymbolizer": [
        "Geometry", "Opacity", "ChannelSelection", "OverlapBehavior", "ColorMap",
        "ContrastEnhancement", "ShadedRelief", "ImageOutline",
    ],
    "ChannelSelection": ["RedChannel", "GreenChannel", "BlueChannel"],
    "RedChannel": ["SourceChannelName", "ContrastEnhancement"],
    "GreenChannel": ["SourceChannelName", "ContrastEnhancement"],
    "BlueChannel": ["SourceChannelName", "ContrastEnhancement"],
    "ContrastEnhancement": ["Normalize", "Histogram", "GammaValue"],
    "Normalize": ["VendorOption"],  # GeoServer's own, beside the standard
    "ColorMap": ["ColorMapEntry"],
}  # fmt: skip
ENTRY = {"color", "opacity", "quantity", "label"}


def check_structure(element: ET.Element) -> None:
    """Every element is in SLD's namespace, allowed in its place, and in the schema's order."""
    name = element.tag.removeprefix("{http://www.opengis.net/sld}")
    assert not name.startswith("{"), name
    children = [child.tag.removeprefix("{http://www.opengis.net/sld}") for child in element]
    order = [CONTENT.get(name, []).index(child) for child in children]
    assert order == sorted(order), (name, children)
    if name == "ColorMapEntry":
        assert set(element.attrib) <= ENTRY
    for child in element:
        check_structure(child)


def parsed(text: str) -> ET.Element:
    root = ET.fromstring(text.encode())
    assert root.get("version") == "1.0.0"
    check_structure(root)
    return root


def entries(root: ET.Element) -> list[dict[str, str]]:
    return [dict(entry.attrib) for entry in root.iterfind(".//sld:ColorMapEntry", NS)]


def test_classes_keep_their_exact_colours() -> None:
    root = parsed(sld.style_document(prediction_style(class_manifest()), "geofm:x-pred", "Water"))
    colour_map = root.find(".//sld:ColorMap", NS)
    assert colour_map is not None
    assert colour_map.get("type") == "values"  # anything else blends neighbouring classes
    assert entries(root) == [
        {"color": "#d9c27e", "quantity": "0", "opacity": "1", "label": "Land & soil"},
        {"color": "#1f78b4", "quantity": "1", "opacity": "1", "label": "Water <open>"},
        {"color": "#ffffff", "quantity": "2", "opacity": "0", "label": "Cloud"},
    ]
    assert root.findtext("sld:NamedLayer/sld:Name", namespaces=NS) == "geofm:x-pred"
    assert root.findtext(".//sld:UserStyle/sld:Title", namespaces=NS) == "Water"


def test_classes_ascend_as_geoserver_wants_them() -> None:
    wished = {"kind": "classes", "classes": [CLASSES[2], CLASSES[0], CLASSES[1]]}
    style = ClassStyle.model_validate(wished).model_dump()
    entries = parsed(sld.style_document(style, "pred")).findall(".//sld:ColorMapEntry", NS)
    assert [entry.get("quantity") for entry in entries] == ["0", "1", "2"]
    assert [entry.get("label") for entry in entries] == [item["name"] for item in CLASSES]


def test_a_regression_is_a_ramp_in_ascending_order() -> None:
    root = parsed(sld.style_document(prediction_style(regression_manifest()), "x"))
    colour_map = root.find(".//sld:ColorMap", NS)
    assert colour_map is not None
    assert colour_map.get("type") == "ramp"
    assert [entry["quantity"] for entry in entries(root)] == ["0", "40", "100"]
    assert [entry.get("label") for entry in entries(root)] == ["none", None, "much"]


def test_a_regression_without_a_ramp_gets_one_over_its_values() -> None:
    manifest = regression_manifest(ramp=[])
    found = entries(parsed(sld.style_document(prediction_style(manifest, (-2.0, 6.0)), "x")))
    assert (found[0]["quantity"], found[-1]["quantity"]) == ("-2", "6")
    assert (found[0]["color"], found[-1]["color"]) == ("#440154", "#fde725")
    flat = entries(parsed(sld.style_document(prediction_style(manifest, (3.0, 3.0)), "x")))
    assert (flat[0]["quantity"], flat[-1]["quantity"]) == ("3", "4")


def test_pictures_name_their_channels() -> None:
    root = parsed(sld.style_document(rgb_style(), "x"))
    channels = [item.text for item in root.iterfind(".//sld:SourceChannelName", NS)]
    assert channels == ["1", "2", "3"]
    assert root.find(".//sld:Normalize", NS) is None
    stretched = parsed(sld.style_document(rgb_style((4, 3, 2), 0, 2000), "x"))
    options = {
        item.get("name"): item.text
        for item in stretched.findall(".//sld:RedChannel//sld:VendorOption", NS)
    }
    assert options == {
        "algorithm": "StretchToMinimumMaximum",
        "minValue": "0",
        "maxValue": "2000",
    }


# A bundle refuses NUL and halves of surrogate pairs in a name; titles are any text.
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40
)


@given(NAMES, st.text(max_size=40))
def test_any_name_gives_xml_that_parses_to_it(name: str, title: str) -> None:
    manifest = class_manifest(classes=[{**CLASSES[0], "name": name}, CLASSES[1]])
    root = parsed(sld.style_document(prediction_style(manifest), "layer", title))
    assert entries(root)[0]["label"] == sld.xml_text(name)
    assert len(entries(root)) == 2


def test_the_classes_and_colours_of_a_known_server_are_kept() -> None:
    """The entries that the reference's own style text has, with exact colours besides."""
    answer: dict[str, Any] = json.loads(
        shared_or_skip("golden/inference_get_completed.json").read_text("utf-8")
    )
    layers = answer["geoserver_layers"]["predicted_layers"]
    reference = ET.fromstring(layers[1]["sld_body"].encode())
    classes = [
        {"value": 0, "name": "no", "colour": "#808080", "opacity": 0},
        {"value": 1, "name": "Flood", "colour": "#FA4D56"},
    ]
    ours = parsed(
        sld.style_document(prediction_style(class_manifest(classes=classes)), layers[1]["uri"])
    )
    wanted = [{**entry, "color": entry["color"].lower()} for entry in entries(reference)]
    assert entries(ours) == wanted
    name = "sld:NamedLayer/sld:Name"
    assert ours.findtext(name, namespaces=NS) == reference.findtext(name, namespaces=NS)


def test_styles_are_plain_json() -> None:
    for style in (prediction_style(class_manifest()), prediction_style(regression_manifest())):
        assert json.loads(json.dumps(style)) == style
