"""``geostudio-dagster predict`` on scenes at http addresses and in buckets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rasterio

from geostudio_dagster_tests.connectors.scene_server import SceneServer, serving
from geostudio_dagster_tests.prediction.terminal import call, engine


@pytest.fixture
def server(scene: Path) -> Iterator[SceneServer]:
    with serving(scene.read_bytes()) as state:
        yield state


@pytest.mark.parametrize(
    ("path", "in_place"),
    [("/file/scene.tif?token=x", True), ("/plain/scene.tif", False), ("/broken", False)],
)
def test_a_url_is_read_in_place_or_else_downloaded(  # noqa: PLR0917 - fixtures
    bundle_folder: Path,
    scene: Path,
    folder: Path,
    server: SceneServer,
    tmp_path: Path,
    path: str,
    in_place: bool,
) -> None:
    allowed = {"GEOSTUDIO_FETCH__ALLOWED_HOSTS": '["127.0.0.1"]'}
    result = call(bundle_folder, [server.url(path)], folder / "o.tif", **allowed)
    assert result.exit_code == 0, result.output
    assert [item.name for item in folder.iterdir()] == ["o.tif"]
    expected = engine(bundle_folder, scene, tmp_path / "p.tif")
    assert (folder / "o.tif").read_bytes() == expected
    assert all("range" in headers for _, headers in server.asked) == in_place


@pytest.mark.parametrize("path", ["/file/scene.tif", "/plain/scene.tif", "/plain/%2e%2e"])
def test_a_local_crs_is_as_good_by_each_way(
    bundle_folder: Path, scene: Path, folder: Path, server: SceneServer, path: str
) -> None:
    with rasterio.open(scene, "r+") as file:
        file.crs = 'LOCAL_CS["site",UNIT["metre",1]]'
    server.content = scene.read_bytes()
    allowed = {"GEOSTUDIO_FETCH__ALLOWED_HOSTS": '["127.0.0.1"]'}
    result = call(bundle_folder, [server.url(path)], folder / "o.tif", **allowed)
    assert result.exit_code == 0, result.output
    with rasterio.open(folder / "o.tif") as file:
        assert file.crs.to_wkt().startswith("LOCAL_CS")


def test_lists_that_are_not_json_are_told_by_their_variable(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    wrong = {"GEOSTUDIO_FETCH__ALLOWED_HOSTS": "127.0.0.1"}
    result = call(bundle_folder, [scene], folder / "o.tif", **wrong)
    assert result.exit_code == 2
    assert "GEOSTUDIO_FETCH__ALLOWED_HOSTS: is not JSON; write lists" in result.stderr


def test_a_url_that_changes_while_it_is_read_makes_no_output(
    bundle_folder: Path, folder: Path, server: SceneServer
) -> None:
    allowed = {"GEOSTUDIO_FETCH__ALLOWED_HOSTS": '["127.0.0.1"]'}
    result = call(bundle_folder, [server.url("/changing")], folder / "o.tif", **allowed)
    assert result.exit_code == 1
    assert "/changing changed while it was read" in result.stderr
    assert list(folder.iterdir()) == []


def test_an_object_in_a_bucket_is_read_in_place(  # noqa: PLR0917 - fixtures
    bundle_folder: Path,
    scene: Path,
    folder: Path,
    server: SceneServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "AWS_S3_ENDPOINT": f"127.0.0.1:{server.port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_NO_SIGN_REQUEST": "YES",
    }.items():
        monkeypatch.setenv(name, value)
    result = call(bundle_folder, ["s3://file/scene.tif"], folder / "o.tif")
    assert result.exit_code == 0, result.output
    assert (folder / "o.tif").read_bytes() == engine(bundle_folder, scene, tmp_path / "p.tif")
    assert all("range" in headers for _, headers in server.asked)
    assert call(bundle_folder, ["s3://status-404/scene.tif"], folder / "no.tif").exit_code == 2
    assert [item.name for item in folder.iterdir()] == ["o.tif"]


def test_a_server_that_is_down_is_a_failure_that_leaves_the_old_output(
    bundle_folder: Path, folder: Path, server: SceneServer
) -> None:
    (folder / "o.tif").write_bytes(b"before")
    settings = {
        "GEOSTUDIO_FETCH__ALLOWED_HOSTS": '["127.0.0.1"]',
        "GEOSTUDIO_FETCH__ATTEMPTS": "1",
    }
    result = call(bundle_folder, [server.url("/status-503")], folder / "o.tif", **settings)
    assert result.exit_code == 1
    assert "answered HTTP 503" in result.stderr
    assert (folder / "o.tif").read_bytes() == b"before"
    assert len(list(folder.iterdir())) == 1
