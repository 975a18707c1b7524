from __future__ import annotations

import datetime as dt
import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer
from titiler.core.models.mapbox import TileJSON

from geostudio_dagster.catalog import ArtifactRecord
from geostudio_dagster.publish import styles
from geostudio_dagster_tests.gateway.conftest import (
    PIXELS,
    REQUEST,
    World,
    class_map,
    statistics,
)
from geostudio_dagster_tests.publish.rasters import (
    UTM33N,
    class_manifest,
    halves,
    regression_manifest,
)

LAND, WATER = (217, 194, 126, 255), (31, 120, 180, 255)
LEFT, TOP, METRES = 600_000.0, 5_340_000.0, 10.0
ZOOM = 14


def place(column: float, row: float) -> tuple[float, float]:
    """Longitude and latitude of a pixel position of the test rasters."""
    to_degrees = Transformer.from_crs(UTM33N, "EPSG:4326", always_xy=True)
    return to_degrees.transform(LEFT + METRES * column, TOP - METRES * row)


def tile_of(lon: float, lat: float, zoom: int) -> tuple[int, int, int, int]:
    """Tile x and y, and the pixel's column and row in it, of a place."""
    size = 256 * 2**zoom
    x = (lon + 180) / 360 * size
    y = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * size
    return int(x // 256), int(y // 256), int(x % 256), int(y % 256)


def rgba(response: Any) -> NDArray[np.uint8]:
    """The picture of a tile, (256, 256, 4)."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(response.content)).convert("RGBA"))


def colour_at(
    client: TestClient, column: float, row: float, layer: str = "pred", zoom: int = ZOOM
) -> tuple[int, ...]:
    """What the tiles show at a pixel position of the test rasters."""
    x, y, tile_column, tile_row = tile_of(*place(column, row), zoom)
    picture = rgba(client.get(f"/layers/{REQUEST}/{layer}/tiles/{zoom}/{x}/{y}.png"))
    return tuple(int(value) for value in picture[tile_row, tile_column])


@pytest.mark.parametrize("zoom", [12, 14, 16])
def test_tiles_have_exactly_the_classes_colours_at_the_right_place(
    published: World, client: TestClient, zoom: int
) -> None:
    assert colour_at(client, 70.5, 100.5, zoom=zoom) == LAND
    assert colour_at(client, 190.5, 100.5, zoom=zoom) == WATER
    assert colour_at(client, 70.5, 240.5, zoom=zoom)[3] == 0  # cloud has opacity 0
    assert colour_at(client, 10.5, 10.5, zoom=zoom)[3] == 0  # nodata
    assert colour_at(client, -20.5, 100.5, zoom=zoom)[3] == 0  # outside


def test_class_edges_lie_where_they_are_to_the_pixel(published: World, client: TestClient) -> None:
    # At zoom 16 a screen pixel is 1.6 m here: half a raster pixel off would show.
    assert colour_at(client, PIXELS / 2 - 0.4, 100.5, zoom=16) == LAND
    assert colour_at(client, PIXELS / 2 + 0.4, 100.5, zoom=16) == WATER


def test_no_colours_but_the_classes_are_ever_drawn(published: World, client: TestClient) -> None:
    found = set()
    for zoom in (11, 13, 15):
        x, y, *_ = tile_of(*place(128, 128), zoom)
        picture = rgba(client.get(f"/layers/{REQUEST}/pred/tiles/{zoom}/{x}/{y}.png"))
        found |= {tuple(map(int, pixel)) for pixel in picture.reshape(-1, 4) if pixel[3]}
    assert found == {LAND, WATER}


def test_the_input_is_shown_as_it_is(published: World, client: TestClient) -> None:
    assert colour_at(client, 60.5, 150.5, layer="input_rgb") == (90, 140, 60, 255)
    assert colour_at(client, 200.5, 150.5, layer="input_rgb") == (20, 40, 80, 255)
    assert colour_at(client, 10.5, 10.5, layer="input_rgb")[3] == 0


def test_a_tile_outside_the_data_is_a_transparent_picture(
    published: World, client: TestClient
) -> None:
    picture = rgba(client.get(f"/layers/{REQUEST}/pred/tiles/14/0/0.png"))
    assert picture.shape == (256, 256, 4)
    assert not picture[..., 3].any()


def test_granules_join_into_one_layer_and_the_first_is_on_top(
    world: World, client: TestClient
) -> None:
    left = world.raster("a", "pred", halves(128, 0, 0))
    right = world.raster("b", "pred", halves(128, 1, 1), origin=(LEFT + 1280, TOP))
    over = world.raster("c", "pred", halves(128, 1, 1))
    style = styles.prediction_style(class_manifest())
    world.publish(world.layer("pred", "Water", style, [left, right, over]))
    assert colour_at(client, 64, 64) == LAND
    assert colour_at(client, 192, 64) == WATER
    assert colour_at(client, 127.8, 64, zoom=17) == LAND
    assert colour_at(client, 128.2, 64, zoom=17) == WATER


def test_a_regression_is_drawn_by_its_ramp(world: World, client: TestClient) -> None:
    pixels = np.full((1, 128, 128), 40.0, np.float32)
    pixels[:, :, :32] = -9999
    pixels[:, :, 96:] = 100
    pixels[:, 100:, 64:] = 20
    key = world.raster("a", "pred", pixels, nodata=-9999)
    style = styles.prediction_style(regression_manifest())
    world.publish(world.layer("pred", "Biomass", style, [key]))
    assert colour_at(client, 50, 50) == (0x74, 0xC4, 0x76, 255)
    assert colour_at(client, 110, 50) == (0x00, 0x44, 0x1B, 255)
    assert colour_at(client, 10, 50)[3] == 0
    halfway = [(0xF7 + 0x74) / 2, (0xFC + 0xC4) / 2, (0xF5 + 0x76) / 2]
    assert colour_at(client, 80, 115)[:3] == tuple(round(value) for value in halfway)
    lon, lat = place(50.5, 50.5)
    found = client.get(f"/layers/{REQUEST}/pred/point", params={"lon": lon, "lat": lat}).json()
    assert (found["value"], found["unit"]) == ([40.0], "t/ha")


def test_a_layer_across_the_antimeridian_is_found_from_both_sides(
    world: World, client: TestClient
) -> None:
    # UTM zone 1 south around Fiji, over the 180th meridian.
    origin = (160_000.0, 8_020_000.0)
    key = world.raster(
        "a", "pred", halves(128, 0, 1), crs="EPSG:32701", origin=origin, resolution=1000.0
    )
    layer = world.layer("pred", "Water", styles.prediction_style(class_manifest()), [key])
    world.publish(layer)
    west, _, east, _ = layer.bounds
    assert west > 170
    assert east < -170
    for lon, colour in ((179.9, LAND), (-179.2, WATER)):
        found = client.get(f"/layers/{REQUEST}/pred/point", params={"lon": lon, "lat": -18.3})
        assert found.json()["colour"] == "#{:02x}{:02x}{:02x}".format(*colour[:3]), lon
        x, y, column, row = tile_of(lon, -18.3, 9)
        tile = rgba(client.get(f"/layers/{REQUEST}/pred/tiles/9/{x}/{y}.png"))
        assert tuple(map(int, tile[row, column])) == colour, lon


def test_tiles_answer_conditional_requests(published: World, client: TestClient) -> None:
    x, y, *_ = tile_of(*place(128, 128), ZOOM)
    url = f"/layers/{REQUEST}/pred/tiles/{ZOOM}/{x}/{y}.png"
    first = client.get(url)
    assert first.headers["cache-control"] == "private, no-cache"
    again = client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_versioned_tiles_may_be_kept_forever_and_a_new_version_has_new_addresses(
    published: World, client: TestClient
) -> None:
    before = client.get(f"/layers/{REQUEST}").json()["layers"][1]
    x, y, *_ = tile_of(*place(128, 128), ZOOM)
    url = before["tiles"][0].format(z=ZOOM, x=x, y=y)
    assert client.get(url).headers["cache-control"].endswith("immutable")

    layers = published.catalog.layers(REQUEST)
    published.publish(layers[0], replace(layers[1], digest="2" * 64))
    with TestClient(client.app, base_url="http://127.0.0.1") as fresh:
        after = fresh.get(f"/layers/{REQUEST}").json()["layers"][1]
        assert after["tiles"] != before["tiles"]
        assert fresh.get(url).headers["cache-control"] == "private, no-cache"


def test_a_point_has_its_class(published: World, client: TestClient) -> None:
    lon, lat = place(190.5, 100.5)
    answer = client.get(f"/layers/{REQUEST}/pred/point", params={"lon": lon, "lat": lat})
    assert answer.json() == {
        "lon": lon,
        "lat": lat,
        "task_id": f"{REQUEST}-task_0",
        "value": [1],
        "label": "Water <open>",
        "colour": "#1f78b4",
    }


@pytest.mark.parametrize(("column", "row"), [(10.5, 10.5), (-50, 10)])
def test_a_point_without_data_has_no_value(
    published: World, client: TestClient, column: float, row: float
) -> None:
    lon, lat = place(column, row)
    answer = client.get(f"/layers/{REQUEST}/pred/point", params={"lon": lon, "lat": lat})
    assert answer.json() == {"lon": lon, "lat": lat, "value": None}


@pytest.mark.parametrize(
    "query", ["lon=nan&lat=0", "lon=181&lat=0", "lon=0&lat=91", "lon=x&lat=0", "lat=0"]
)
def test_a_malformed_place_is_refused(published: World, client: TestClient, query: str) -> None:
    assert client.get(f"/layers/{REQUEST}/pred/point?{query}").status_code == 422


@pytest.mark.parametrize(
    ("tile", "status"),
    [("14/16384/0", 404), ("25/0/0", 422), ("-1/0/0", 422), ("a/0/0", 422), ("0/0/1", 404)],
)
def test_a_tile_that_does_not_exist_is_refused(
    published: World, client: TestClient, tile: str, status: int
) -> None:
    assert client.get(f"/layers/{REQUEST}/pred/tiles/{tile}.png").status_code == status


def test_unknown_layers_and_requests_say_what_there_is(
    published: World, client: TestClient
) -> None:
    answer = client.get(f"/layers/{REQUEST}/nothing/tiles/0/0/0.png")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == (
        f"Request {REQUEST} has no layer nothing (its layers: input_rgb, pred)."
    )
    missing = client.get("/layers/no-such-request")
    assert missing.status_code == 404
    assert "no-such-request" in missing.json()["detail"]


def test_the_description_is_what_a_map_needs(published: World, client: TestClient) -> None:
    document = client.get(f"/layers/{REQUEST}").json()
    assert document["request"]["status"] == "SUBMITTED"
    assert document["request"]["model"]["title"] == "Demo water"
    assert document["request"]["tasks"] == {"READY": 1}
    west, south, east, north = document["bounds"]
    assert (round(west, 2), round(south, 2)) == (16.35, 48.18)
    assert (round(east, 2), round(north, 2)) == (16.38, 48.21)
    rgb, prediction = document["layers"]
    assert (rgb["name"], prediction["name"]) == ("input_rgb", "pred")
    assert prediction["tiles"][0].startswith(f"http://127.0.0.1/layers/{REQUEST}/pred/tiles/")
    assert prediction["maxzoom"] >= 14
    water = prediction["style"]["classes"][1]
    assert water == {
        "value": 1,
        "name": "Water <open>",
        "colour": "#1f78b4",
        "opacity": 1.0,
        "pixels": 28672,
        "share": 28672 / (65536 - 1024),
        "area_ha": 286.72,
    }
    assert len(document["footprints"]["features"]) == 1


def test_tilejson_is_valid_tilejson(published: World, client: TestClient) -> None:
    document = client.get(f"/layers/{REQUEST}/pred/tilejson.json").json()
    model = TileJSON.model_validate(document)
    assert model.tiles == client.get(f"/layers/{REQUEST}").json()["layers"][1]["tiles"]
    assert model.name == "Water"


def test_a_request_without_layers_is_described_too(world: World, client: TestClient) -> None:
    document = client.get(f"/layers/{REQUEST}").json()
    assert (document["layers"], document["bounds"]) == ([], None)
    assert document["footprints"]["features"] == []


def test_a_granule_that_is_gone_leaves_a_hole_not_an_error(
    published: World, client: TestClient
) -> None:
    (layer,) = [item for item in published.catalog.layers(REQUEST) if item.name == "pred"]
    published.storage.delete(layer.granules[0]["key"])
    assert colour_at(client, 70.5, 100.5)[3] == 0


def test_many_granules_are_not_drawn_from_afar(world: World, client: TestClient) -> None:
    key = world.raster("a", "pred", halves(64))
    layer = world.layer("pred", "Water", styles.prediction_style(class_manifest()), [key])
    west, south, east, north = layer.bounds
    granules = tuple(
        {**layer.granules[0], "bounds": [west + place * 0.01, south, east + place * 0.01, north]}
        for place in range(1000)
    )
    world.publish(replace(layer, granules=granules, bounds=(west, south, east + 10, north)))
    described = client.get(f"/layers/{REQUEST}").json()["layers"][0]
    assert described["minzoom"] > 4
    low = described["minzoom"] - 1
    x, y, *_ = tile_of(west, north, low)
    assert not rgba(client.get(f"/layers/{REQUEST}/pred/tiles/{low}/{x}/{y}.png")).any()


def test_finished_tasks_are_on_the_map_before_the_request_is_published(
    world: World, client: TestClient
) -> None:
    """Every step but the last is done, as a shard run leaves a task."""
    task_id = f"{REQUEST}-task_0"
    key = world.raster(task_id, "pred", class_map())
    bounds = list(world.layer("pred", "", {}, [key]).bounds)
    figures = statistics(class_manifest(), class_map())
    now = dt.datetime.now(dt.UTC)
    world.catalog.mark_submitted([f"{REQUEST}/00000"], now)
    world.catalog.begin_shard_run(f"{REQUEST}/00000", "run")
    for process_id in ("url-connector", "terratorch-inference", "postprocess-generic"):
        world.catalog.claim(f"{REQUEST}/00000", process_id, "run", 60, now)
        world.catalog.start_step(task_id, process_id, "run")
        artifacts = [
            ArtifactRecord(task_id, "prediction", key, "image/tiff", 1, "ab", {"bounds": bounds}),
            ArtifactRecord(task_id, "stats", "x", "application/json", 1, "cd", figures),
        ]
        assert client.get(f"/layers/{REQUEST}").json()["layers"] == []
        world.catalog.finish_step(task_id, process_id, "run", artifacts, {})
    with TestClient(client.app, base_url="http://127.0.0.1") as fresh:
        (layer,) = fresh.get(f"/layers/{REQUEST}").json()["layers"]
        assert (layer["name"], layer["title"]) == ("pred", "Demo water")
        assert layer["style"]["classes"][1]["area_ha"] == 286.72
        assert colour_at(fresh, 190.5, 100.5) == WATER
        world.publish(world.layer("pred", "Published", layer["style"], [key]))
    with TestClient(client.app, base_url="http://127.0.0.1") as fresh:
        (layer,) = fresh.get(f"/layers/{REQUEST}").json()["layers"]
        assert layer["title"] == "Published"
