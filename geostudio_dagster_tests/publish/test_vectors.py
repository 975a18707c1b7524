"""Vector files joined into one GeoPackage, read back as GeoJSON, and drawn by an SLD."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import pyogrio
from shapely.geometry import LineString, Point, box, mapping

from geostudio_dagster.planning.output_styles import VectorStyle
from geostudio_dagster.processors.features import TaskFile, join_features
from geostudio_dagster.publish.sld import style_document
from geostudio_dagster.publish.vectors import geojson_of

SLD = "{http://www.opengis.net/sld}"
OGC = "{http://www.opengis.net/ogc}"


def geojson(path: Path, *features: tuple[Any, dict[str, Any]]) -> Path:
    rows = [
        {"type": "Feature", "properties": properties, "geometry": shape and mapping(shape)}
        for shape, properties in features
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": rows}))
    return path


def files(folder: Path) -> list[TaskFile]:
    """Three formats in two CRSs, with columns that do not agree."""
    points = geojson(
        folder / "a.geojson", (Point(14, 48, 300), {"Area": 1.5, "fid": "x", "geom": [1]})
    )
    metres = gpd.GeoDataFrame(
        {"area": ["large"]}, geometry=[box(500_000, 0, 500_100, 100)], crs="EPSG:32633"
    )
    metres.to_file(folder / "b.gpkg", driver="GPKG")
    lines = gpd.GeoDataFrame({"Area": [7]}, geometry=[LineString([(1, 2), (3, 4)])], crs=4326)
    lines.to_file(folder / "c.fgb", driver="FlatGeobuf")
    nothing = geojson(folder / "d.geojson", (None, {}), (Point(500_000, 4_000_000), {}))
    (folder / "e.gpkg").write_bytes(b"SQLite format 3\0 and no more")
    paths = [points, folder / "b.gpkg", folder / "c.fgb", nothing, folder / "e.gpkg"]
    return [TaskFile(f"task_{number}", path) for number, path in enumerate(paths)]


def test_files_of_all_formats_are_one_table_in_degrees(tmp_path: Path) -> None:
    target = tmp_path / "joined.gpkg"
    bounds = join_features(files(tmp_path), target, "request-fields")
    assert bounds[0] == (14, 48, 14, 48)
    assert bounds[1] == (15, 0, 15.0008987, 0.0009047)
    assert bounds[2] == (1, 2, 3, 4)
    assert bounds[3:] == (None, None), "no geometry, off the globe, or no GeoPackage"

    assert [name for name, _ in pyogrio.list_layers(target)] == ["request-fields"]
    joined = pyogrio.read_dataframe(target)
    assert joined.crs == "EPSG:4326"
    assert list(joined["task_id"]) == ["task_0", "task_1", "task_2"]
    assert list(joined.geom_type) == ["Point", "Polygon", "LineString"]
    assert not joined.has_z.any()
    assert list(joined["Area"].fillna(-1)) == [1.5, -1, 7]
    assert list(joined["area_2"].fillna("")) == ["", "large", ""]
    assert list(joined["fid_2"].fillna("")) == ["x", "", ""]
    assert list(joined["geom_2"].fillna("")) == ["[1]", "", ""]


def test_a_file_is_read_as_what_its_name_says_and_by_nothing_else(tmp_path: Path) -> None:
    """GDAL takes any text with <OGRVRTDataSource in it for a list of other files to read."""
    secret = tmp_path / "secret.csv"
    secret.write_text("x,y,password\n1,2,hunter2\n")
    virtual = (
        f"<OGRVRTDataSource><OGRVRTLayer name='secret'><SrcDataSource>{secret}</SrcDataSource>"
        "<GeometryType>wkbPoint</GeometryType><LayerSRS>EPSG:4326</LayerSRS><GeometryField"
        " encoding='PointFromColumns' x='x' y='y'/></OGRVRTLayer></OGRVRTDataSource>"
    )
    contents = {
        "plain.geojson": virtual,
        "plain.fgb": virtual,
        "both.geojson": json.dumps({"type": "FeatureCollection", "is": virtual, "features": []}),
        "both.json": json.dumps({"type": "FeatureCollection", "is": virtual, "features": []}),
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    honest = geojson(tmp_path / "honest.geojson", (Point(5, 6), {"is": virtual}))
    found = [TaskFile(name, tmp_path / name) for name in (*contents, honest.name)]
    target = tmp_path / "joined.gpkg"
    assert join_features(found, target, "features") == (None, None, None, None, (5, 6, 5, 6))
    joined = pyogrio.read_dataframe(target)
    assert list(joined.columns) == ["task_id", "is", "geometry"]
    assert list(joined["task_id"]) == ["honest.geojson"]


def test_a_package_with_a_view_is_left_out(tmp_path: Path) -> None:
    harmless, clever = tmp_path / "a.gpkg", tmp_path / "b.gpkg"
    frame = gpd.GeoDataFrame({"x": [1]}, geometry=[Point(1, 2)], crs=4326)
    for path in (harmless, clever):
        frame.to_file(path, driver="GPKG")
    with closing(sqlite3.connect(clever)) as database:
        database.execute(
            "CREATE VIEW endless AS WITH RECURSIVE n(x) AS"
            " (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
        )
        database.commit()
    given = [TaskFile("good", harmless), TaskFile("bad", clever)]
    assert join_features(given, tmp_path / "j.gpkg", "x") == ((1, 2, 1, 2), None)


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    given = files(tmp_path)
    made = []
    for name in ("once.gpkg", "again.gpkg"):
        (tmp_path / name).write_text("left by a killed run")
        join_features(given, tmp_path / name, "fields")
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_without_features_there_is_no_file(tmp_path: Path) -> None:
    empty = geojson(tmp_path / "empty.geojson")
    assert join_features([TaskFile("t", empty)], tmp_path / "j.gpkg", "x") == (None,)
    assert not (tmp_path / "j.gpkg").exists()


def test_geojson_says_where_it_is_cut(tmp_path: Path) -> None:
    many = [(Point(n / 1000, 1), {"number": n, "half": n / 2}) for n in range(2500)]
    target = tmp_path / "joined.gpkg"
    join_features([TaskFile("t", geojson(tmp_path / "many.geojson", *many))], target, "x")
    whole = json.loads(b"".join(geojson_of(target, 2500)))
    assert (whole["numberMatched"], whole["numberReturned"]) == (2500, 2500)
    assert "cut" not in whole
    assert [feature["properties"]["number"] for feature in whole["features"]] == [*range(2500)]
    part = json.loads(b"".join(geojson_of(target, 1200)))
    assert part["cut"] == "These are the first 1200 of 2500 features."
    assert len(part["features"]) == part["numberReturned"] == 1200
    assert part["features"][3] == {
        "type": "Feature",
        "properties": {"task_id": "t", "number": 3, "half": 1.5},
        "geometry": {"type": "Point", "coordinates": [0.003, 1.0]},
    }


def test_the_sld_has_a_rule_for_each_kind_of_geometry_and_escapes_names() -> None:
    style = VectorStyle.model_validate(
        {
            "kind": "vector",
            "point": {"shape": "star", "size": 12},
            "polygon": {"fill": "#00ff00", "fill_opacity": 0.5},
        }
    ).model_dump()
    text = style_document(style, "request-fields", "Fields <1> & more")
    root = ET.fromstring(text)
    assert root.findtext(f".//{SLD}UserStyle/{SLD}Title") == "Fields <1> & more"
    rules = {rule.findtext(f".//{OGC}Literal"): rule for rule in root.iter(f"{SLD}Rule")}
    assert list(rules) == ["2", "1", "0"]
    fill = rules["2"].find(f"{SLD}PolygonSymbolizer/{SLD}Fill")
    assert fill is not None
    assert [(item.get("name"), item.text) for item in fill] == [
        ("fill", "#00ff00"),
        ("fill-opacity", "0.5"),
    ]
    assert rules["1"].find(f"{SLD}LineSymbolizer/{SLD}Stroke") is not None
    graphic = rules["0"].find(f"{SLD}PointSymbolizer/{SLD}Graphic")
    assert graphic is not None
    assert graphic.findtext(f"{SLD}Mark/{SLD}WellKnownName") == "star"
    assert graphic.findtext(f"{SLD}Size") == "12"
