"""At the terminal: the model is kept after the work, and tried before it is registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from geostudio_dagster.cli import app
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.models.cache import MODELS
from geostudio_dagster.models.conversion import keep_program
from geostudio_dagster.prediction import PredictOptions
from geostudio_dagster.prediction.command import Job, keep_for_next_time, run
from geostudio_dagster_tests.models.tunes import BANDS, CKPT, make_tune
from geostudio_dagster_tests.prediction.builders import write_raster

KEEPING = "Keeping the model for faster starts"


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tune(tmp_path_factory.mktemp("tunes") / "tune", "segmentation")[0].folder


def call(home: Path, *arguments: object) -> Result:
    MODELS.clear()
    environment = {"GEOSTUDIO_DATA_FOLDER": str(home)}
    return CliRunner().invoke(app, [str(item) for item in arguments], env=environment)


def test_a_model_is_kept_after_its_first_prediction(tmp_path: Path, tune: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 90, 80)).astype(np.uint16)
    scene = write_raster(tmp_path / "s.tif", pixels, names=BANDS)
    home, outputs = tmp_path / "home", []
    arguments = ["predict", "--model", tune, "--input", scene, "--output"]
    steps: list[tuple[bool, list[str], bool]] = [
        (False, [], False),  # no installation: nothing is written anywhere
        (True, ["--no-convert"], False),
        (True, [], True),
        (True, [], False),  # it is there by now
    ]
    for number, (exists, options, told) in enumerate(steps):
        if exists:
            home.mkdir(exist_ok=True)
        target = tmp_path / f"{number}.tif"
        result = call(home, *arguments, target, *options)
        assert result.exit_code == 0, result.output
        assert (KEEPING in result.output) == told
        outputs.append(target.read_bytes())
    assert len(set(outputs)) == 1
    assert len(list((home / "programs").iterdir())) == 1


def test_what_is_kept_is_the_model_that_was_used(tmp_path: Path, tune: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 90, 80)).astype(np.uint16)
    scene = write_raster(tmp_path / "s.tif", pixels, names=BANDS)
    home = tmp_path / "home"
    home.mkdir()
    before = MODELS.loads
    arguments = ["--input", scene, "--output", tmp_path / "o.tif", "--onnx-engine", "onnxruntime"]
    result = call(home, "predict", "--model", tune, *arguments)
    assert result.exit_code == 0, result.output
    assert KEEPING in result.output
    assert MODELS.loads == before + 1


def test_a_program_that_is_gone_after_the_work_is_no_failure(tmp_path: Path, tune: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 90, 80)).astype(np.uint16)
    scene = write_raster(tmp_path / "s.tif", pixels, names=BANDS)
    programs = tmp_path / "programs"
    keep_program(load_bundle(tune), programs)
    MODELS.clear()
    options = PredictOptions(programs=programs)
    job, terminal = Job(tune, (str(scene),), str(tmp_path / "o.tif"), options), Console(stderr=True)
    facts = run(job, terminal)
    for path in programs.iterdir():
        path.unlink()
    keep_for_next_time(job, facts, terminal)
    assert list(programs.iterdir()) == []


def test_a_model_is_tried_before_it_is_registered(tmp_path: Path, tune: Path) -> None:
    home = tmp_path / "home"
    result = call(home, "models", "add", tune)
    assert result.exit_code == 0, result.output
    assert len(list((home / "programs").iterdir())) == 1
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tune.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    torch.save({"state_dict": {"model.x": torch.zeros(1)}}, broken / CKPT)
    result = call(home, "models", "add", broken)
    assert result.exit_code == 1
    assert "does not fit the model" in result.output
    assert "tune@2" not in call(home, "models", "list").output
