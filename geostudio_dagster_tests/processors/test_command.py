"""``processors check`` and ``processors run``: what an author sees at a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio
from click.testing import Result
from typer.testing import CliRunner

from geostudio_dagster.cli import app
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.processors.attacks.test_attacks import isolated_or_skip

COPY = """
import json, sys
import rasterio

if __name__ == "__main__":
    with rasterio.open(sys.argv[1]) as source:
        pixels, profile = source.read(), source.profile
    with rasterio.open(sys.argv[2], "w", **profile) as target:
        target.write(pixels + json.loads(sys.argv[3]).get("add", 0))
    print(json.dumps({"added": json.loads(sys.argv[3])}))
"""


@pytest.fixture
def script(tmp_path: Path, settings: Settings) -> Path:
    isolated_or_skip()
    path = tmp_path / "copy.py"
    path.write_text(COPY)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path, "scene_pred.tif", size=32, bands=("class",))


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["processors", *map(str, arguments)])


def test_check(script: Path) -> None:
    done = cli("check", script)
    assert done.exit_code == 0
    assert done.stdout.startswith("ok: copy.py ")
    assert "called by positional (line 6: sys.argv[1])" in done.stdout
    script.write_text("print(1)\n")
    done = cli("check", script, "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["ok"] is False


def test_run_keeps_what_was_taken(script: Path, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    done = cli("run", script, "--input", scene, "--parameters", '{"add": 1}', "--output", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.split("\t")[:2] == ["raster", "scene_pred_processed.tif"]
    with rasterio.open(out / "scene_pred_processed.tif") as made, rasterio.open(scene) as given:
        assert (made.read() == given.read() + 1).all()
    again = cli("run", script, "--input", scene, "--output", out)
    assert again.exit_code == 2
    assert "is not empty" in again.output


def test_run_as_json(script: Path, scene: Path) -> None:
    done = cli("run", script, "--input", scene, "--json")
    told = json.loads(done.stdout)
    assert (told["reason"], told["isolation"], told["printed"]) == (
        "ok",
        "bubblewrap",
        {"added": {}},
    )
    assert [output["name"] for output in told["outputs"]] == ["scene_pred_processed.tif"]


def test_run_that_fails(script: Path, scene: Path) -> None:
    script.write_text("import sys\nif __name__ == '__main__':\n    sys.exit('no [red] water')\n")
    done = cli("run", script, "--input", scene)
    assert done.exit_code == 1
    assert "ended with exit code 1. It said last: no [red] water" in done.stderr


@pytest.mark.parametrize(
    ("parameters", "problem"), [("{", "is no JSON"), ("[1]", "is no JSON object")]
)
def test_parameters_that_are_none(parameters: str, problem: str, script: Path, scene: Path) -> None:
    done = cli("run", script, "--input", scene, "--parameters", parameters)
    assert done.exit_code == 2
    assert problem in done.stderr
