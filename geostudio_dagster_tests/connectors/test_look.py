"""Looking at a scene for planning: its header, at the price of two small reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin

from geostudio_dagster.connectors.url import look
from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.connectors.scene_server import SceneServer


def outcome(url: str, place: Settings) -> str | None:
    """The error's code, or None where there is merely no header."""
    try:
        assert look(url, place) is None
    except TaskError as error:
        return error.code
    return None


def test_a_header_from_a_server(server: SceneServer, place: Settings, scene: Path) -> None:
    local = look(str(scene), place)
    assert local is not None
    assert look(server.url("/file"), place) == local
    assert len(server.asked) == 2  # the directory lies at the end


def test_a_header_from_a_server_without_ranges(
    server: SceneServer, place: Settings, scene: Path
) -> None:
    # Only the beginning comes, where this scene's directory is not.
    assert outcome(server.url("/plain"), place) == "not_a_raster"
    cog = scene.with_name("cog.tif")
    rasterio.shutil.copy(scene, cog, driver="COG", BLOCKSIZE=128)
    server.content = cog.read_bytes()
    assert look(server.url("/plain"), place) == look(str(cog), place) is not None


def test_a_large_remote_scene_costs_two_small_reads(
    server: SceneServer, place: Settings, scene: Path
) -> None:
    path = scene.with_name("large.tif")
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", width=1500, height=1300, count=2, dtype="uint16",
        crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10), tiled=True,
    ) as file:  # fmt: skip
        file.write(rng.integers(0, 9999, (2, 1300, 1500), "uint16"))
        file.set_band_description(1, "B02")
    server.content = path.read_bytes()
    header = look(server.url("/file"), place)
    assert header is not None
    assert header == look(str(path), place)
    spans = [headers["range"] for _, headers in server.asked]
    assert len(spans) <= 2
    edges = [span.removeprefix("bytes=").split("-") for span in spans]
    assert sum(int(last) - int(first) + 1 for first, last in edges) <= 128 * 1024


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/status-404", "not_found"),
        ("/status-500", "unreachable"),
        ("/web-page", None),
        ("/silent", "unreachable"),
        ("/gzip", "unreachable"),
    ],
)
def test_one_look_at_a_server_that_gives_no_header(
    path: str, code: str | None, server: SceneServer, place: Settings
) -> None:
    if path == "/silent":
        hasty = place.fetch.model_copy(update={"timeout_s": 0.2})
        place = place.model_copy(update={"fetch": hasty})
    assert outcome(server.url(path), place) == code
    assert server.gets(path) == 1


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("none.tif", "not_a_raster"),
        ("/etc/passwd", "outside_roots"),
        ("http://localhost:1/a.tif", "forbidden_address"),
    ],
)
def test_why_there_is_no_header(url: str, code: str, place: Settings, scene: Path) -> None:
    assert outcome(str(scene.parent / url) if "/" not in url else url, place) == code


def test_footprint_and_bounds(scene: Path, place: Settings) -> None:
    header = look(str(scene), place)
    assert header is not None
    assert header.footprint is not None
    ring = header.footprint["coordinates"][0]
    assert len(ring) == 65
    assert ring[0] == ring[-1]
    assert header.bounds == pytest.approx((15.0536, 47.8272, 15.0911, 47.8524), abs=2e-3)
