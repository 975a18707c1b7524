"""What is taken of an output folder: pixels, places, names and facts."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import Point

from geostudio_dagster.errors import TaskError
from geostudio_dagster.processors.inspection import inspect
from geostudio_dagster.processors.outputs import CollectedOutput, collect, safe_name
from geostudio_dagster.processors.sandbox import Sandbox
from geostudio_dagster.settings import ScriptLimits
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.processors.attacks.test_attacks import isolated_or_skip
from geostudio_dagster_tests.raster.test_checksums import hole


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return isolated_or_skip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path, "scene.tif", size=60, bands=("class",))


WEB_MERCATOR = {"crs": "EPSG:3857", "transform": from_origin(900_000, 6_000_000, 10, 10)}


def take(folder: Path, scene: Path, sandbox: Sandbox) -> dict[str, CollectedOutput]:
    found = collect(folder, scene, folder.parent / "taken", ScriptLimits(), sandbox)
    return {output.name: output for output in found}


def write(path: Path, pixels: np.ndarray, *, place: bool = True, **more: object) -> None:
    where = {"crs": "EPSG:4326", "transform": from_origin(8, 47, 0.1, 0.1)} if place else {}
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=count,
        dtype=pixels.dtype,
        **where,
        **more,
    ) as file:
        file.write(pixels)
        file.set_band_description(1, "water")
        file.update_tags(made_by="me")
        if pixels.dtype == np.uint8 and count == 1:
            file.write_colormap(1, {1: (255, 0, 0, 255)})


def test_rasters_become_cogs_with_the_same_pixels(
    folder: Path, scene: Path, sandbox: Sandbox
) -> None:
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 4, (1, 700, 1100), dtype=np.uint8)
    heights = rng.normal(0, 1, (2, 90, 80)).astype(np.float32)
    write(folder / "classes.tif", classes, nodata=255)
    write(folder / "Heights.TIFF", heights, nodata=float("nan"))
    taken = take(folder, scene, sandbox)
    assert sorted(taken) == ["Heights.tif", "classes.tif"]
    for name, pixels in {"classes.tif": classes, "Heights.tif": heights}.items():
        assert taken[name].kind == "raster"
        assert cog_validate(taken[name].path, quiet=True)[0]
        with rasterio.open(taken[name].path) as file:
            np.testing.assert_array_equal(file.read(), pixels)
            assert file.crs == "EPSG:4326"
            assert file.transform == from_origin(8, 47, 0.1, 0.1)
            assert file.descriptions[0] == "water"
            assert file.tags()["made_by"] == "me"
    with rasterio.open(taken["classes.tif"].path) as file:
        assert file.nodata == 255
        assert file.colormap(1)[1] == (255, 0, 0, 255)
    facts = taken["classes.tif"].metadata
    assert (facts["width"], facts["height"], facts["place"]) == (1100, 700, "own")
    assert taken["Heights.tif"].metadata["nodata"] == "nan"
    assert taken["Heights.tif"].metadata["written_as"] == "Heights.TIFF"


def test_a_raster_without_a_place_gets_the_inputs(
    folder: Path, scene: Path, sandbox: Sandbox
) -> None:
    write(folder / "x.tif", np.ones((1, 60, 60), np.uint8), place=False)
    taken = take(folder, scene, sandbox)["x.tif"]
    with rasterio.open(taken.path) as file, rasterio.open(scene) as given:
        assert (file.crs, file.transform) == (given.crs, given.transform)
    assert taken.metadata["place"] == "input"


def test_a_raster_in_web_mercator_stays_there(folder: Path, scene: Path, sandbox: Sandbox) -> None:
    pixels = np.full((1, 10, 20), 7, np.uint8)
    write(folder / "x.tif", pixels, place=False, **WEB_MERCATOR)
    taken = take(folder, scene, sandbox)["x.tif"]
    assert (taken.metadata["crs"], taken.metadata["place"]) == ("EPSG:3857", "own")
    with rasterio.open(taken.path) as file:
        assert (file.crs, file.transform) == ("EPSG:3857", WEB_MERCATOR["transform"])
        np.testing.assert_array_equal(file.read(), pixels)


# The second is of weather satellites: WKT 1 gives it as a PROJ string, which could name files.
@pytest.mark.parametrize("crs", ["EPSG:3857", "+proj=geos +h=35786023 +sweep=x +ellps=GRS80"])
def test_vectors_in_systems_that_name_no_files(
    folder: Path, scene: Path, sandbox: Sandbox, crs: str
) -> None:
    points = gpd.GeoDataFrame({"n": [1]}, geometry=[Point(900_000, 6_000_000)], crs=crs)
    points.to_file(folder / "p.gpkg", driver="GPKG")
    points.to_file(folder / "p.fgb", driver="FlatGeobuf")
    taken = take(folder, scene, sandbox)
    assert {name: output.kind for name, output in taken.items()} == {
        "p.fgb": "vector",
        "p.gpkg": "vector",
    }


@pytest.mark.parametrize("driver", ["GPKG", "FlatGeobuf"])
def test_a_file_of_many_features_is_read_once(folder: Path, driver: str) -> None:
    path = folder / {"GPKG": "p.gpkg", "FlatGeobuf": "p.fgb"}[driver]
    count = 12 * 10_000 + 1
    points = gpd.points_from_xy(np.arange(count) / 1e4, np.zeros(count))
    gpd.GeoDataFrame({"n": np.arange(count)}, geometry=points, crs=4326).to_file(
        path, driver=driver, spatial_index=False
    )
    before = bytes_read()
    entry = inspect(path, folder, folder, 0)
    assert bytes_read() - before < 2 * path.stat().st_size
    assert entry["metadata"]["features"] == count


def bytes_read() -> int:
    """What this process has read of any file so far."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line)
    return int(line.split()[1])


def test_vectors_and_tables(folder: Path, scene: Path, sandbox: Sandbox) -> None:
    points = gpd.GeoDataFrame({"n": [1, 2]}, geometry=[Point(1, 2), Point(3, 4)], crs=4326)
    points.to_file(folder / "p.gpkg", driver="GPKG", layer="points")
    points.to_file(folder / "p.fgb", driver="FlatGeobuf")
    points.to_file(folder / "p.geojson", driver="GeoJSON")
    points.to_parquet(folder / "p.parquet")
    (folder / "q.json").write_text(points.to_json())
    (folder / "t.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "t.json").write_text('{"a": [1]}')
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("hello")
    taken = take(folder, scene, sandbox)
    assert {name: output.kind for name, output in taken.items()} == {
        "p.gpkg": "vector",
        "p.fgb": "vector",
        "p.geojson": "vector",
        "p.parquet": "vector",
        "q.json": "vector",
        "t.csv": "table",
        "t.json": "table",
        "sub_notes.txt": "file",
    }
    assert {taken[name].metadata["features"] for name in ("p.gpkg", "p.fgb", "p.geojson")} == {2}
    assert taken["p.gpkg"].metadata["layers"] == ["points"]
    assert taken["t.csv"].metadata == {"columns": ["a", "b"], "rows": 2}
    assert taken["sub_notes.txt"].path.read_text() == "hello"
    json.dumps([output.metadata for output in taken.values()])


def test_one_bad_file_is_named(folder: Path, scene: Path, sandbox: Sandbox) -> None:
    (folder / "good.csv").write_text("a\n1\n")
    (folder / "bad.tif").write_text("no raster")
    with pytest.raises(TaskError, match=r"output bad\.tif cannot be read") as caught:
        take(folder, scene, sandbox)
    assert caught.value.code == "processor_output"


def test_a_raster_with_a_hole_is_refused(folder: Path, scene: Path, sandbox: Sandbox) -> None:
    # As a full disk may leave it, without an error for the script; GDAL takes it for pixels.
    pixels = np.random.default_rng(0).integers(-20, 21, (1, 200, 300)).cumsum(axis=2)
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    write(folder / "x.tif", pixels.astype(np.int16), predictor=2, **tiles)
    hole(folder / "x.tif", 1, 2)
    with pytest.raises(TaskError) as caught:
        take(folder, scene, sandbox)
    assert caught.value.code == "processor_output"
    assert str(caught.value) == (
        "The processor's output x.tif cannot be read: the block of 64 x 64 pixels at column 128, "
        "row 64 is damaged or cut short, by its checksum."
    )


def test_nothing_is_fine(folder: Path, scene: Path, sandbox: Sandbox) -> None:
    assert take(folder, scene, sandbox) == {}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.tif", "a.tif"),
        ("A B.TIF", "A_B.tif"),
        ("sub/a.tif", "sub_a.tif"),
        ("../../etc/passwd", "etc_passwd"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("a\nb\x1b.csv", "a_b.csv"),
        ("Größe.csv", "Groe.csv"),
        ("東京.tif", "file.tif"),
        ("\udcff.tif", "file.tif"),
        ("...", "file"),
        ("x" * 300 + ".tif", "x" * 120 + ".tif"),
    ],
)
def test_names_are_made_plain(given: str, expected: str) -> None:
    assert safe_name(given, set()) == expected


def test_names_that_fall_together_stay_apart() -> None:
    assert safe_name("A.tif", {"a.tif"}) == "A-2.tif"
    assert safe_name("a.tiff", {"a.tif", "a-2.tif"}) == "a-3.tif"
