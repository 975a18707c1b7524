"""Vector files of users' scripts as layers: in the catalog, on the layer server, on GeoServer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pyogrio
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway.v2.documents import geoserver_layers
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import GeoServerSettings, Settings
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, submit, tasks_of
from geostudio_dagster_tests.emulators.geoserver import GeoServerEmulator, serving
from geostudio_dagster_tests.scripts import upload

# The box of each scene in degrees.
OUTLINE = """
import json
import sys
from pathlib import Path

import rasterio
from rasterio.warp import transform_bounds


def main():
    source, target = sys.argv[1], Path(sys.argv[2])
    with rasterio.open(source) as dataset:
        west, south, east, north = transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
        pixels = dataset.width * dataset.height
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    feature = {
        "type": "Feature",
        "properties": {"pixels": pixels},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    document = {"type": "FeatureCollection", "features": [feature]}
    target.with_name("outline.geojson").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
"""
LAYER = {
    "suffix": "_outline.geojson",
    "name": "outlines",
    "title": "Outlines <&>",
    "style": {"kind": "vector", "polygon": {"fill": "#123456"}},
}


@pytest.fixture
def emulator() -> Iterator[GeoServerEmulator]:
    with serving() as running:
        yield running


@pytest.fixture
def settings(
    settings: Settings, emulator: GeoServerEmulator, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """The usual settings with a GeoServer, and layers that may be seen without a key."""
    monkeypatch.setenv("GEOSTUDIO_GEOSERVER__URL", emulator.url)
    monkeypatch.setenv("GEOSTUDIO_GEOSERVER__PASSWORD", emulator.password)
    geoserver = GeoServerSettings(url=emulator.url, password=SecretStr(emulator.password))
    gateway = GatewaySettings(auth="off")
    return settings.model_copy(update={"geoserver": geoserver, "gateway": gateway})


def test_vectors_become_a_layer_everywhere(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    upload(installation, "outline", OUTLINE)
    scenes = [make_scene(f"s{n}.tif", size=64, seed=n) for n in (1, 2)]
    request = submit(
        installation,
        scenes,
        model,
        processors=[{"processor": "outline"}],
        output_layers=[LAYER],
    )
    assert driver.until_over(request) == "COMPLETED"
    ids = [task.id for task in tasks_of(installation, request)]

    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert list(layers) == ["input_rgb", "pred", "outlines"]
    outlines, pred = layers["outlines"], layers["pred"]
    assert (outlines.kind, pred.kind) == ("vector", "raster")
    assert outlines.bounds == pytest.approx(pred.bounds, abs=1e-4)
    assert [granule["task_id"] for granule in outlines.granules] == ids
    assert outlines.style["polygon"]["fill"] == "#123456"
    assert outlines.style["line"]["stroke_width"] == 2

    name = f"{request}-outlines"
    check_geoserver(emulator, name, ids)
    feature_type = emulator.workspaces["geofm"].data_stores[name].feature_types[name]
    assert feature_type.title.startswith("Outlines <&> · ")
    assert feature_type.abstract.endswith(outlines.digest)
    assert feature_type.bounds == pytest.approx(outlines.bounds)
    check_publishing_again_changes_nothing(driver, emulator, request)
    check_layer_server(installation.settings, request, ids)

    answer = geoserver_layers(installation.catalog.layers(request))
    assert answer is not None
    shown = answer["predicted_layers"][-1]
    assert shown["uri"] == f"geofm:{name}"
    ET.fromstring(shown["sld_body"])
    assert "PolygonSymbolizer" in shown["sld_body"] and "#123456" in shown["sld_body"]


def check_geoserver(emulator: GeoServerEmulator, name: str, ids: list[str]) -> None:
    workspace = emulator.workspaces["geofm"]
    assert workspace.layers[name] == ("geofm", name)
    assert b"PolygonSymbolizer" in workspace.styles[name].body
    features = pyogrio.read_dataframe(workspace.data_stores[name].package, layer=name)
    assert features.crs == "EPSG:4326"
    assert list(features["task_id"]) == ids
    assert list(features["pixels"]) == [64 * 64] * 2


def check_publishing_again_changes_nothing(
    driver: Driver, emulator: GeoServerEmulator, request: str
) -> None:
    start = len(emulator.requests)
    assert driver.launch("publish_job", partition=request).success
    assert {method for method, _ in emulator.since(start)} == {"GET"}


def check_layer_server(settings: Settings, request: str, ids: list[str]) -> None:
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        document = client.get(f"/layers/{request}").json()
        described = document["layers"][-1]
        assert (described["name"], described["kind"]) == ("outlines", "vector")
        assert "tiles" not in described
        assert len(document["footprints"]["features"]) == 2

        answer = client.get(described["features"])
        assert answer.headers["content-type"] == "application/geo+json"
        assert "immutable" in answer.headers["cache-control"]
        found = answer.json()
        assert found["numberReturned"] == found["numberMatched"] == 2
        assert [item["properties"] for item in found["features"]] == [
            {"task_id": task, "pixels": 64 * 64} for task in ids
        ]
        west, south = described["bounds"][:2]
        assert found["features"][0]["geometry"]["coordinates"][0][0] == pytest.approx([west, south])
        known = {"If-None-Match": answer.headers["etag"]}
        assert client.get(described["features"], headers=known).status_code == 304

        base = f"/layers/{request}/outlines"
        for path in ("tiles/3/4/2.png", "tilejson.json", "point?lon=0&lat=0"):
            refusal = client.get(f"{base}/{path}")
            assert refusal.status_code == 404
            assert "is a vector layer" in refusal.json()["detail"]
        refusal = client.get(f"/layers/{request}/pred/features.geojson")
        assert refusal.status_code == 404
        assert "is a raster layer" in refusal.json()["detail"]
        (listed,) = [
            layer
            for layer in client.get(f"/v2/inference/{request}/layers").json()["layers"]
            if layer["kind"] == "vector"
        ]
        assert (listed["tiles"], listed["tilejson"]) == ([], None)
        assert client.get(listed["features"]).json() == json.loads(answer.content)
