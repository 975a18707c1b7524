"""Requests whose layers go to a GeoServer, from submission to the last word of its tasks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetKey
from pydantic import SecretStr

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import GeoServerSettings, Settings
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of
from geostudio_dagster_tests.emulators.geoserver import GeoServerEmulator, serving
from geostudio_dagster_tests.ports import held_port, port_of

REFUSAL = "Coverage store quota of workspace geofm is used up"


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """A port of loopback where nothing listens yet."""
    with held_port() as opened:
        yield opened


@pytest.fixture
def settings(settings: Settings, held: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The usual settings, and a GeoServer."""
    url = f"http://127.0.0.1:{port_of(held)}/geoserver"
    monkeypatch.setenv("GEOSTUDIO_GEOSERVER__URL", url)
    monkeypatch.setenv("GEOSTUDIO_GEOSERVER__PASSWORD", GeoServerEmulator.password)
    monkeypatch.setenv("GEOSTUDIO_GEOSERVER__ATTEMPTS", "1")
    password = SecretStr(GeoServerEmulator.password)
    geoserver = GeoServerSettings(url=url, password=password, attempts=1)
    return settings.model_copy(update={"geoserver": geoserver})


@pytest.fixture
def wrong_password(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GEOSTUDIO_GEOSERVER__PASSWORD", "swordfish")
    return "swordfish"


@pytest.fixture
def emulator(settings: Settings, held: socket.socket) -> Iterator[GeoServerEmulator]:
    with serving(held) as running:
        yield running


@pytest.fixture
def scenes(make_scene: MakeScene) -> list[Path]:
    return [make_scene(f"s{n}_2024-06-0{n}.tif", size=64, seed=n) for n in (1, 2)]


def finished_publications(driver: Driver) -> list[bool]:
    """Whether each run that published succeeded, in order."""
    return [run.success for run in driver.results if run.job_def.name == "publish_job"]


def test_two_scenes_become_two_titled_and_styled_layers(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    request = submit(installation, scenes, model, name="Delta <1>")
    assert driver.until_over(request) == "COMPLETED"
    assert {str(task.status) for task in tasks_of(installation, request)} == {"FINISHED"}

    workspace = emulator.workspaces["geofm"]
    names = {f"{request}-input_rgb", f"{request}-pred"}
    assert set(workspace.stores) == set(workspace.layers) == set(workspace.styles) == names
    for name in names:
        store = workspace.stores[name]
        assert store.type == "ImageMosaic"
        assert store.coverages[name].time
        assert workspace.layers[name] == ("geofm", name)
    assert len(workspace.stores[f"{request}-pred"].granules) == 2
    pred = workspace.stores[f"{request}-pred"].coverages[f"{request}-pred"]
    assert pred.title == "Land cover (demonstration) · Delta <1>"
    assert b"Open water" in workspace.styles[f"{request}-pred"].body
    rgb = workspace.stores[f"{request}-input_rgb"].coverages[f"{request}-input_rgb"]
    assert rgb.title == "Input · Delta <1>"
    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert {name: layer.uri for name, layer in layers.items()} == {
        "input_rgb": f"geofm:{request}-input_rgb",
        "pred": f"geofm:{request}-pred",
    }
    assert pred.abstract.endswith(layers["pred"].digest)


def test_one_scene_is_uploaded_as_the_file_that_the_catalog_names(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    request = submit(installation, scenes[:1], model)
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    artifact = installation.catalog.artifact(task.id, "prediction")
    store = emulator.workspaces["geofm"].stores[f"{request}-pred"]
    assert store.type == "GeoTIFF"
    assert list(store.granules.values()) == [artifact.sha256]
    assert path_of(installation, task.id, "prediction").stat().st_size == artifact.size


def test_publishing_again_uploads_nothing_and_changes_nothing(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    request = submit(installation, scenes, model)
    driver.until_over(request)
    before = installation.catalog.layers(request)
    stores = repr(emulator.workspaces["geofm"])
    start = len(emulator.requests)

    assert driver.launch("publish_job", partition=request).success
    assert {method for method, _ in emulator.since(start)} == {"GET"}
    assert repr(emulator.workspaces["geofm"]) == stores
    after = installation.catalog.layers(request)
    assert [(x.uri, x.digest, x.style) for x in after] == [
        (x.uri, x.digest, x.style) for x in before
    ]
    assert installation.catalog.request(request).status == "COMPLETED"
    assert {str(task.status) for task in tasks_of(installation, request)} == {"FINISHED"}


def test_a_shard_done_again_replaces_the_pixels_on_geoserver(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    request = submit(installation, [make_scene("s.tif", size=64, seed=1)], model)
    driver.until_over(request)
    store = emulator.workspaces["geofm"].stores[f"{request}-pred"]
    old = dict(store.granules)
    make_scene("s.tif", size=64, seed=2)

    assert driver.launch("shard_job", partition=f"{request}/00000").success
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    new = emulator.workspaces["geofm"].stores[f"{request}-pred"].granules
    assert new != old
    assert list(new.values()) == [installation.catalog.artifact(task.id, "prediction").sha256]
    assert sorted(emulator.truncated) == [f"geofm:{request}-input_rgb", f"geofm:{request}-pred"]


def test_a_refusal_is_told_in_geoservers_words_tried_again_and_then_final(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    request = submit(installation, scenes, model)
    emulator.fail_next(500, REFUSAL, times=1000)
    while not finished_publications(driver):
        driver.tick()
    waiting = installation.catalog.request(request)
    assert waiting.status == "PUBLISHING_RESULTS"
    assert REFUSAL in (waiting.error or "")
    assert "HTTP 500" in (waiting.error or "")

    assert driver.until_over(request) == "FAILED"
    assert finished_publications(driver) == [False] * installation.settings.shards.max_attempts
    over = installation.catalog.request(request)
    for task in tasks_of(installation, request):
        assert task.status == "FAILED"
        assert REFUSAL in (task.error or "")
        assert [str(step.status) for step in task.steps] == ["FINISHED"] * 3 + ["FAILED"]
        assert task.steps[-1].error == task.error
    assert REFUSAL in (over.error or "")
    assert installation.catalog.layers(request) == []


def test_retry_publishes_what_was_refused_without_computing_it_again(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    request = submit(installation, scenes, model)
    emulator.fail_next(507, REFUSAL, times=installation.settings.shards.max_attempts)
    assert driver.until_over(request) == "FAILED"
    times = [task.steps[1].finished_at for task in tasks_of(installation, request)]

    assert installation.catalog.retry(request) == 2
    assert driver.until_over(request) == "COMPLETED"
    after = tasks_of(installation, request)
    assert [task.steps[1].finished_at for task in after] == times
    assert [task.error for task in after] == [None, None]
    assert installation.catalog.request(request).error is None
    assert set(emulator.workspaces["geofm"].layers) == {f"{request}-input_rgb", f"{request}-pred"}


@pytest.mark.usefixtures("emulator")
def test_a_wrong_password_names_the_setting(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    wrong_password: str,
) -> None:
    request = submit(installation, scenes[:1], model)
    assert driver.until_over(request) == "FAILED"
    error = tasks_of(installation, request)[0].error or ""
    assert "401" in error
    assert "GEOSTUDIO_GEOSERVER__PASSWORD" in error
    assert wrong_password not in error
    assert finished_publications(driver) == [False]


def test_a_refusal_that_another_try_cannot_change_is_not_tried_again_until_somebody_asks(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    request = submit(installation, scenes[:1], model)
    emulator.fail_next(403, "Access is denied", times=1000)
    assert driver.until_over(request) == "FAILED"
    assert finished_publications(driver) == [False]
    error = tasks_of(installation, request)[0].error or ""
    assert "HTTP 403" in error and "Access is denied" in error
    assert "right to write to workspace geofm" in error

    emulator.recover()
    assert installation.catalog.retry(request) == 1
    assert driver.until_over(request) == "COMPLETED"


def test_a_geoserver_that_comes_late_gets_its_layers(
    installation: Installation,
    model: ModelRecord,
    scenes: list[Path],
    driver: Driver,
    held: socket.socket,
) -> None:
    request = submit(installation, scenes, model)
    while not finished_publications(driver):
        driver.tick()
    waiting = installation.catalog.request(request)
    assert waiting.status == "PUBLISHING_RESULTS"
    there = f"http://127.0.0.1:{port_of(held)}/geoserver"
    assert f"GeoServer at {there} did not answer" in (waiting.error or "")

    with serving(held) as emulator:
        assert driver.until_over(request) == "COMPLETED"
        assert len(emulator.workspaces["geofm"].layers) == 2
    assert finished_publications(driver) == [False, True]
    assert installation.catalog.request(request).error is None
    event = driver.instance.get_latest_materialization_event(AssetKey("geoserver_layers"))
    assert event is not None and event.asset_materialization is not None
    assert f"geofm:{request}-pred" in str(event.asset_materialization.metadata["layers"].value)


def test_a_split_scene_is_one_file_there_and_a_broken_one_is_left_out(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    driver: Driver,
    emulator: GeoServerEmulator,
) -> None:
    whole = make_scene("a.tif", size=600)
    broken = make_scene("b.tif", size=64, bands=("B02", "B03"))
    request = submit(installation, [whole, broken], model, task_size=512)
    assert driver.until_over(request) == "COMPLETED_WITH_ERRORS"
    stores = emulator.workspaces["geofm"].stores
    mosaic = installation.catalog.artifact(request, "mosaic-0")
    assert stores[f"{request}-pred"].type == "GeoTIFF"
    assert list(stores[f"{request}-pred"].granules.values()) == [mosaic.sha256]
    parts = [task for task in tasks_of(installation, request) if task.url == str(whole)]
    pictures = [installation.catalog.artifact(part.id, "rgb").sha256 for part in parts]
    assert len(pictures) > 1
    assert sorted(stores[f"{request}-input_rgb"].granules.values()) == sorted(map(str, pictures))
