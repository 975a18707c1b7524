from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from geo.Geoserver import Geoserver, GeoserverException
from pydantic import SecretStr

from geostudio_dagster.publish import sld
from geostudio_dagster.publish.geoserver import GeoServer, GranuleFile, Publication
from geostudio_dagster.publish.geoserver_rest import GeoServerError
from geostudio_dagster.publish.styles import prediction_style
from geostudio_dagster.settings import GeoServerSettings
from geostudio_dagster_tests.emulators.geoserver import GeoServerEmulator, serving
from geostudio_dagster_tests.publish.rasters import class_manifest, halves, write_cog

NAME = "6238a5ea-781a-431e-8668-b0de515ea0c8-pred"


@pytest.fixture
def emulator() -> Iterator[GeoServerEmulator]:
    with serving() as running:
        yield running


@pytest.fixture
def server(emulator: GeoServerEmulator) -> Iterator[GeoServer]:
    with client_of(emulator) as client:
        yield client


def client_of(emulator: GeoServerEmulator, **changes: Any) -> GeoServer:
    options = {"first_wait_s": 0.001} | {
        key: changes.pop(key) for key in ("chunk_files", "chunk_bytes") if key in changes
    }
    usual: dict[str, Any] = {"user": "admin", "password": SecretStr("geo:server"), "attempts": 3}
    settings = GeoServerSettings(**{"url": emulator.url} | usual | changes)
    return GeoServer(settings, **options)


def granules(folder: Path, count: int, **options: Any) -> list[GranuleFile]:
    made = []
    for place in range(count):
        origin = (600_000.0 + 640 * place, 5_340_000.0)
        path = write_cog(folder / f"{place}.tif", halves(), origin=origin, **options)
        made.append(GranuleFile(path, f"task_{place}", crs="EPSG:32633"))
    return made


def publish(server: GeoServer, files: list[GranuleFile], **changes: Any) -> Publication:
    arguments: dict[str, Any] = {
        "title": "Water <June> & more",
        "abstract": "Made by demo-water.",
        "style": sld.style_document(prediction_style(class_manifest()), NAME),
        "digest": "a" * 64,
        "granules": files,
    }
    return server.publish_layer(NAME, **{**arguments, **changes})


def test_one_granule_becomes_a_styled_and_titled_geotiff_layer(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    assert publish(server, granules(tmp_path, 1)) == Publication(f"geofm:{NAME}", changed=True)

    workspace = emulator.workspaces["geofm"]
    store = workspace.stores[NAME]
    assert store.type == "GeoTIFF"
    assert len(store.granules) == 1
    coverage = store.coverages[NAME]
    assert coverage.title == "Water <June> & more"
    assert coverage.abstract == f"Made by demo-water.\nPublished content: sha256 {'a' * 64}"
    assert workspace.layers[NAME] == ("geofm", NAME)
    assert (
        workspace.styles[NAME].body
        == sld.style_document(prediction_style(class_manifest()), NAME).encode()
    )


def test_the_second_time_only_reads(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    files = granules(tmp_path, 1)
    publish(server, files)
    start = len(emulator.requests)

    assert publish(server, files) == Publication(f"geofm:{NAME}", changed=False)
    base = "/rest/workspaces/geofm"
    assert emulator.since(start) == [
        ("GET", f"{base}/coveragestores/{NAME}/coverages/{NAME}.json"),
        ("GET", f"{base}/layers/{NAME}.json"),
    ]


def test_new_pixels_replace_the_old_and_drop_cached_tiles(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    (first,) = granules(tmp_path, 1)
    publish(server, [first])
    before = dict(emulator.workspaces["geofm"].stores[NAME].granules)
    write_cog(first.path, halves(left=1, right=0))

    assert publish(server, [first], digest="b" * 64).changed
    store = emulator.workspaces["geofm"].stores[NAME]
    assert store.granules != before
    assert len(store.granules) == 1
    assert store.coverages[NAME].abstract.endswith("b" * 64)
    assert emulator.truncated == [f"geofm:{NAME}"]


def test_an_interrupted_update_is_done_again_even_back_to_the_old_content(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    (first,) = granules(tmp_path, 1)
    publish(server, [first])
    with pytest.raises(FileNotFoundError):
        publish(server, [GranuleFile(tmp_path / "gone.tif", "x", "c")], digest="b" * 64)

    assert publish(server, [first]).changed
    assert emulator.workspaces["geofm"].stores[NAME].coverages[NAME].abstract.endswith("a" * 64)


def test_a_layer_that_lost_its_style_gets_it_back(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    files = granules(tmp_path, 1)
    publish(server, files)
    emulator.workspaces["geofm"].layers[NAME] = (None, "raster")

    assert publish(server, files).changed
    assert emulator.workspaces["geofm"].layers[NAME] == ("geofm", NAME)


def test_several_granules_become_a_mosaic_uploaded_in_chunks(
    emulator: GeoServerEmulator, tmp_path: Path
) -> None:
    files = granules(tmp_path, 5)
    with client_of(emulator, chunk_files=2) as server:
        publish(server, files)

    store = emulator.workspaces["geofm"].stores[NAME]
    assert store.type == "ImageMosaic"
    assert sorted(store.granules) == [f"task_{place}.tif" for place in range(5)]
    uploads = [item for item in emulator.requests if item.path.endswith("file.imagemosaic")]
    assert [(item.method, item.status) for item in uploads] == [
        ("PUT", 201),
        ("POST", 202),
        ("POST", 202),
    ]
    assert not store.coverages[NAME].time


def test_chunks_are_bounded_in_bytes(emulator: GeoServerEmulator, tmp_path: Path) -> None:
    files = granules(tmp_path, 3)
    with client_of(emulator, chunk_bytes=files[0].path.stat().st_size) as server:
        publish(server, files)
    uploads = [item for item in emulator.requests if item.path.endswith("file.imagemosaic")]
    assert len(uploads) == 3
    assert len(emulator.workspaces["geofm"].stores[NAME].granules) == 3


def test_dated_granules_give_a_time_dimension(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    dates = ("2024-06-01", "2024-06-11")
    files = [
        GranuleFile(item.path, item.name, item.crs, date)
        for item, date in zip(granules(tmp_path, 2), dates, strict=True)
    ]
    publish(server, files)
    store = emulator.workspaces["geofm"].stores[NAME]
    assert sorted(store.granules) == ["task_0_2024-06-01.tif", "task_1_2024-06-11.tif"]
    assert store.coverages[NAME].time


def test_granules_of_different_crs_are_all_in_the_mosaic(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    (here,) = granules(tmp_path, 1)
    there = write_cog(tmp_path / "there.tif", halves(), crs="EPSG:32634")
    publish(server, [here, GranuleFile(there, "task_there", "EPSG:32634")])
    store = emulator.workspaces["geofm"].stores[NAME]
    assert sorted(store.granules) == ["task_0.tif", "task_there.tif"]
    assert store.settings["MosaicCRS"] == "EPSG:4326"


def test_a_mosaic_that_lost_a_granule_shows_only_the_rest(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    files = granules(tmp_path, 3)
    publish(server, files)
    publish(server, files[1:], digest="b" * 64)
    assert sorted(emulator.workspaces["geofm"].stores[NAME].granules) == [
        "task_1.tif",
        "task_2.tif",
    ]
    publish(server, files[:1], digest="c" * 64)
    assert emulator.workspaces["geofm"].stores[NAME].type == "GeoTIFF"


def test_deleting_leaves_nothing_and_may_be_repeated(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    publish(server, granules(tmp_path, 1))
    server.delete_layer(NAME)
    server.delete_layer(NAME)
    workspace = emulator.workspaces["geofm"]
    assert (workspace.stores, workspace.styles, workspace.layers) == ({}, {}, {})


def test_a_refusal_carries_geoservers_words_and_status(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0 this is no raster")
    with pytest.raises(GeoServerError) as caught:
        publish(server, [GranuleFile(broken, "task_0", "x")])
    error = caught.value
    assert (error.status, error.code, error.retryable) == (500, "geoserver", True)
    assert "HTTP 500 Internal Server Error" in str(error)
    assert str(error).endswith(": Could not acquire reader for coverage.")


def test_wrong_credentials_say_what_to_set_and_never_the_password(
    emulator: GeoServerEmulator, tmp_path: Path
) -> None:
    files = granules(tmp_path, 1)
    wrong = client_of(emulator, password=SecretStr("wr0ng"))
    with wrong as server, pytest.raises(GeoServerError) as caught:
        publish(server, files)
    assert caught.value.status == 401
    assert not caught.value.retryable
    assert "401 Unauthorized" in str(caught.value)
    assert "GEOSTUDIO_GEOSERVER__PASSWORD" in str(caught.value)
    assert "wr0ng" not in str(caught.value)
    assert "<h1>" not in str(caught.value)
    assert len(emulator.requests) == 1


def test_passing_errors_are_tried_again(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    emulator.fail_next(503, "starting", times=2)
    assert publish(server, granules(tmp_path, 1)).changed


def test_an_upload_is_sent_whole_again_after_a_passing_error(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    files = granules(tmp_path, 1)
    publish(server, files)
    start = len(emulator.requests)
    emulator.workspaces["geofm"].stores.clear()
    emulator.workspaces["geofm"].layers.clear()

    sizes = []
    original = emulator.answer

    def answer(method: str, path: str, call: Any, authorised: bool) -> Any:
        if path.endswith("file.geotiff"):
            sizes.append(len(call.body))
            if len(sizes) == 1:
                emulator.fail_next(502, "bad gateway")
        return original(method, path, call, authorised)

    emulator.answer = answer  # type: ignore[method-assign]
    assert publish(server, files).changed
    assert sizes == [files[0].path.stat().st_size] * 2
    assert [item.status for item in emulator.requests[start:]].count(502) == 1


def test_passing_errors_end_as_a_retryable_error(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    emulator.fail_next(503, "still starting", times=3)
    with pytest.raises(GeoServerError, match="still starting") as caught:
        publish(server, granules(tmp_path, 1))
    assert caught.value.retryable
    assert len(emulator.requests) == 3


def test_nobody_there_is_a_retryable_error(tmp_path: Path) -> None:
    settings = GeoServerSettings(url="http://127.0.0.1:9/geoserver", attempts=2)
    files = granules(tmp_path, 1)
    alone = GeoServer(settings, first_wait_s=0.001)
    with alone as server, pytest.raises(GeoServerError, match="did not answer") as caught:
        publish(server, files)
    assert (caught.value.status, caught.value.retryable) == (None, True)


def test_names_are_escaped_in_paths(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    server.delete_layer("../../workspaces/other?x=1")
    assert {item.path for item in emulator.requests} == {
        "/rest/workspaces/geofm/coveragestores/..%2F..%2Fworkspaces%2Fother%3Fx%3D1",
        "/rest/workspaces/geofm/datastores/..%2F..%2Fworkspaces%2Fother%3Fx%3D1",
        "/rest/workspaces/geofm/styles/..%2F..%2Fworkspaces%2Fother%3Fx%3D1",
    }


def test_a_layer_needs_distinct_granules(server: GeoServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="granules"):
        publish(server, [])
    (only,) = granules(tmp_path, 1)
    with pytest.raises(ValueError, match="granules"):
        publish(server, [only, only])


def test_the_emulator_serves_an_independent_client(
    emulator: GeoServerEmulator, tmp_path: Path
) -> None:
    """geoserver-rest, written against real GeoServers, gets what it expects."""
    geo = Geoserver(emulator.url, username="admin", password="geo:server")
    geo.create_workspace("studio")
    with pytest.raises(GeoserverException, match="Workspace 'studio' already exists"):
        geo.create_workspace("studio")

    path = write_cog(tmp_path / "scene.tif", halves())
    assert geo.create_coveragestore(str(path), "studio", "water")["coverageStore"]["type"] == (
        "GeoTIFF"
    )
    assert geo.get_coveragestore("water", "studio")["coverageStore"]["name"] == "water"
    with pytest.raises(GeoserverException, match="No such coverage store: studio,nothing"):
        geo.get_coveragestore("nothing", "studio")

    style = tmp_path / "water.sld"
    style.write_text(sld.style_document(prediction_style(class_manifest()), "water"), "utf-8")
    assert geo.upload_style(str(style), "water", "studio") == 200
    assert geo.publish_style("water", "water", "studio") == 200
    assert geo.get_layer("water", "studio")["layer"]["defaultStyle"]["name"] == "studio:water"

    geo.delete_layer("water", "studio")
    geo.delete_style("water", "studio")
    geo.delete_coveragestore("water", "studio")
    geo.delete_workspace("studio")
    assert emulator.workspaces == {}


def test_that_client_sees_what_we_publish(
    emulator: GeoServerEmulator, server: GeoServer, tmp_path: Path
) -> None:
    publish(server, granules(tmp_path, 1))
    geo = Geoserver(emulator.url, username="admin", password="geo:server")
    assert geo.get_layer(NAME, "geofm")["layer"]["defaultStyle"]["name"] == f"geofm:{NAME}"
    assert geo.get_style(NAME, "geofm")["style"]["filename"] == f"{NAME}.sld"


def test_the_emulator_refuses_what_is_not_what_it_says(
    emulator: GeoServerEmulator, tmp_path: Path
) -> None:
    geo = Geoserver(emulator.url, username="admin", password="geo:server")
    geo.create_workspace("studio")
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    with pytest.raises(GeoserverException, match="Could not acquire reader"):
        geo.create_coveragestore(str(text), "studio", "text")
    with pytest.raises(GeoserverException, match="Invalid style"):
        geo.upload_style("<NotASld/>", "bad", "studio")
