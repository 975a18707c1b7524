"""``--profile``: a picture of its own that names every stage; and where calibrations are kept."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import rasterio
from typer.testing import CliRunner, Result

from geostudio_dagster.cli import app
from geostudio_dagster_tests.conftest import write_scene

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("in"), "scene.tif", size=600)


def call(bundle: Path, scene: Path, output: Path, *options: str, **environment: str) -> Result:
    arguments = ["predict", "--model", bundle, "--input", scene, "--output", output, *options]
    return CliRunner().invoke(app, [str(item) for item in arguments], env=environment)


def test_the_timeline_shows_every_thread_and_stage(
    bundle_folder: Path, scene: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "run.svg"
    result = call(bundle_folder, scene, tmp_path / "o.tif", "--profile", str(picture))
    assert result.exit_code == 0, result.output
    root = ElementTree.fromstring(picture.read_bytes())
    words = " ".join(item.text or "" for item in root.iter(f"{SVG}text"))
    for stage in ("read, decode and cut", "normalise", "forward pass", "blend", "make the COG"):
        assert f"{stage}: " in words
    for thread in ("reader", "worker 1", "main: blend, write"):
        assert thread in words
    notes = {item.text for item in root.iter(f"{SVG}title")}
    assert any(note and note.startswith("forward pass: ") for note in notes)
    assert b"http" not in picture.read_bytes().replace(b"http://www.w3.org/2000/svg", b"")


def test_a_page_holds_the_picture_and_pixels_do_not_change(
    bundle_folder: Path, scene: Path, tmp_path: Path
) -> None:
    plain, profiled = tmp_path / "a.tif", tmp_path / "b.tif"
    assert call(bundle_folder, scene, plain).exit_code == 0
    page = tmp_path / "run.html"
    assert call(bundle_folder, scene, profiled, "--profile", str(page)).exit_code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert "</svg>" in page.read_text()
    assert plain.read_bytes() == profiled.read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run.pdf", "name an .svg or .html file"),
        ("no/run.svg", "not a folder"),
        ("", "can't be written"),
    ],
)
def test_a_file_that_cannot_be_drawn_is_refused_first(
    bundle_folder: Path, scene: Path, tmp_path: Path, name: str, said: str
) -> None:
    if not name:
        folder = tmp_path / "folder.svg"
        folder.mkdir()
        name = folder.name
    before = list(tmp_path.iterdir())
    result = call(bundle_folder, scene, tmp_path / "o.tif", "--profile", str(tmp_path / name))
    assert result.exit_code == 2
    assert said in result.output
    assert list(tmp_path.iterdir()) == before


def test_a_picture_that_fails_at_the_end_costs_no_prediction(
    bundle_folder: Path, scene: Path, tmp_path: Path
) -> None:
    full = Path("/dev/full")
    picture = tmp_path / "run.svg"
    picture.symlink_to(full)
    result = call(bundle_folder, scene, tmp_path / "o.tif", "--profile", str(picture))
    assert result.exit_code == 0
    assert (tmp_path / "o.tif").is_file()


@pytest.mark.parametrize(
    ("option", "exists", "chosen"),
    [
        ([], False, "by rule"),
        ([], True, "measured"),
        (["--no-calibrate"], True, "by rule"),
        (["--calibrate"], False, "measured"),
    ],
)
def test_calibrations_are_kept_where_an_installation_is_or_on_demand(
    bundle_folder: Path,
    scene: Path,
    tmp_path: Path,
    *,
    option: list[str],
    exists: bool,
    chosen: str,
) -> None:
    home = tmp_path / "home"
    if exists:
        home.mkdir()
    output = tmp_path / "o.tif"
    small = ["--patch", "24", "--overlap", "0", "--trim", "0"]  # enough patches to be long work
    result = call(bundle_folder, scene, output, *small, *option, GEOSTUDIO_DATA_FOLDER=str(home))
    assert result.exit_code == 0, result.output
    with rasterio.open(output) as file:
        assert file.tags()["GEOSTUDIO_CHOSEN"] == chosen
    assert (home / "calibrations").exists() == (chosen == "measured")
