"""A vector layer on the map page, in headless Chromium, let in by a signed link alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser

from geostudio_dagster.catalog import ArtifactRecord
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.planning.output_styles import PolygonMark, VectorStyle
from geostudio_dagster.processors.features import TaskFile, join_features
from geostudio_dagster.publish.vectors import MEDIA_TYPE, package_role
from geostudio_dagster.signing import map_link
from geostudio_dagster_tests.gateway.conftest import REQUEST, World, publish_both
from geostudio_dagster_tests.gateway.test_browser import MapPage, near, serving
from geostudio_dagster_tests.gateway.test_browser import browser as browser  # noqa: PLC0414  a fixture
from geostudio_dagster_tests.gateway.test_layers import place

MAGENTA = (255, 0, 255)


@pytest.fixture
def fields(world: World) -> World:
    """The request with its input, its prediction, and a field over its left half."""
    publish_both(world)
    package = join(world.folder)
    key = world.storage.commit(package, f"{REQUEST}/{package.name}").key
    artifact = ArtifactRecord(REQUEST, package_role("fields"), key, MEDIA_TYPE, None, None)
    world.catalog.put_artifacts([artifact])
    below = world.catalog.layers(REQUEST)
    style = VectorStyle(polygon=PolygonMark(fill="#ff00ff", fill_opacity=1)).model_dump()
    layer = dataclasses.replace(
        below[-1], name="fields", title="Fields", kind="vector", style=style, digest="5" * 64
    )
    world.publish(*below, layer)
    guarded = world.settings.model_copy(update={"gateway": GatewaySettings()})
    return dataclasses.replace(world, settings=guarded)


def join(folder: Path) -> Path:
    """A package of one field: rows 50 to 200, columns 40 to 120 of the test rasters."""
    corners = [(40, 50), (120, 50), (120, 200), (40, 200), (40, 50)]
    ring = [place(*corner) for corner in corners]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {"crop": "rye"}, "geometry": geometry}
    source = folder / "fields.geojson"
    source.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    join_features([TaskFile(f"{REQUEST}-task_0", source)], folder / "fields.gpkg", "fields")
    return folder / "fields.gpkg"


def test_a_link_opens_the_features_of_its_request_only(fields: World) -> None:
    link = urlsplit(map_link(fields.settings, REQUEST))
    (grant,) = parse_qs(link.query)["grant"]
    with TestClient(create_app(fields.settings), base_url="http://127.0.0.1") as client:
        assert client.get(f"/layers/{REQUEST}/fields/features.geojson").status_code == 401
        document = client.get(f"/layers/{REQUEST}", params={"grant": grant}).json()
        address = document["layers"][-1]["features"]
        assert parse_qs(urlsplit(address).query)["grant"] == [grant]
        (feature,) = client.get(address).json()["features"]
        assert feature["properties"] == {"task_id": f"{REQUEST}-task_0", "crop": "rye"}
        wrong = address.replace(grant, f"{grant[:-1]}{'A' if grant[-1] != 'A' else 'B'}")
        assert client.get(wrong).status_code == 403


@pytest.mark.live
def test_features_are_drawn_toggled_and_in_the_legend(fields: World, browser: Browser) -> None:
    window = MapPage.on(browser)
    with serving(fields) as address:
        link = urlsplit(map_link(fields.settings, REQUEST))
        window.show(f"{address}{link.path}?{link.query}")
        assert window.complaints == []
        assert near(window.colour(80, 120), MAGENTA)
        assert not near(window.colour(190, 120), MAGENTA)
        assert "Fields" in window.page.locator("#legend").inner_text()
        window.page.locator("#show-fields").uncheck()
        window.settle()
        assert not near(window.colour(80, 120), MAGENTA)
        window.page.close()
