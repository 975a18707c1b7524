"""What is done to torch networks to make them quicker can be told, and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.models.cache import MODELS
from geostudio_dagster.models.conversion import keep_program
from geostudio_dagster.models.programs import ProgramFile
from geostudio_dagster.models.tuning import Tuning
from geostudio_dagster_tests.models.tunes import BANDS, make_unet
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    read,
    write_bundle,
    write_raster,
)
from geostudio_dagster_tests.prediction.terminal import call

KEYS = ("GEOSTUDIO_TUNING", "GEOSTUDIO_FOLDED", "GEOSTUDIO_LAYOUT")


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unet(tmp_path_factory.mktemp("tunes") / "tune")[0].folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 150, 170)).astype(np.uint16)
    return write_raster(tmp_path / "image.tif", pixels, names=BANDS)


def predicted(
    unet: Path, image: Path, target: Path, *options: str, **environment: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The report, and what the file tells of its tuning."""
    MODELS.clear()
    result = call(unet, [image], target, "--json", *options, **environment)
    assert result.exit_code == 0, result.output
    with rasterio.open(target) as file:
        return json.loads(result.stdout), tuple(file.tags()[key] for key in KEYS)


def test_each_tuning_can_be_left_out_and_is_told(unet: Path, image: Path, folder: Path) -> None:
    usual, tags = predicted(unet, image, folder / "usual.tif")
    assert tags == ("fold,channels_last,pack", str(usual["folded"]), "channels last")
    assert usual["folded"] > 0
    assert usual["channels_last"]
    expected = read(folder / "usual.tif", 1)
    for names, folded, layout in (
        ("fold", usual["folded"], "as built"),
        ("channels_last,pack", 0, "channels last"),
        ("none", 0, "as built"),
    ):
        target = folder / f"{names}.tif"
        facts, tags = predicted(unet, image, target, "--tuning", names)
        assert tags == (names, str(folded), layout)
        assert (facts["folded"], facts["channels_last"]) == (folded, layout == "channels last")
        assert (read(target, 1) != expected).mean() < 1e-3, "rounding alone, near ties"


def test_of_a_frozen_network_the_pixels_alone_are_laid_out(folder: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Convolutions(3, 1))
    frozen = torch.jit.freeze(torch.jit.load(str(bundle.folder / "model.pt")))
    frozen.save(str(bundle.folder / "model.pt"))
    image = write_raster(tmp_path / "image.tif", np.ones((3, 70, 90), np.float32))
    _, tags = predicted(bundle.folder, image, folder / "a.tif")
    assert tags[2] == "channels last pixels"
    _, tags = predicted(bundle.folder, image, folder / "b.tif", "--tuning", "none")
    assert tags == ("none", "0", "as built")


def test_weights_are_packed_in_a_program_unless_told_otherwise(
    unet: Path, image: Path, folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    bundle = load_bundle(unet)
    keep_program(bundle, home / "programs")
    program = ProgramFile.of(bundle, home / "programs").read()
    assert program is not None
    assert program.graph is not None
    given = {"GEOSTUDIO_DATA_FOLDER": str(home), "GEOSTUDIO_CALIBRATE": "false"}
    packed, tags = predicted(unet, image, folder / "a.tif", "--device", "cpu", **given)
    assert tags[0] == "fold,channels_last,pack"
    # Which arithmetic packed weights give the same numbers in depends on the processor.
    assert (packed["packed"] > 0) == (torch.float32 in program.graph.packs)
    given["GEOSTUDIO_TUNING"] = "channels_last, fold"
    plain, tags = predicted(unet, image, folder / "b.tif", "--device", "cpu", **given)
    assert tags[0] == "fold,channels_last"
    assert plain["packed"] == 0
    assert plain["folded"] == packed["folded"] > 0, "it is a program's, too"
    np.testing.assert_array_equal(read(folder / "a.tif"), read(folder / "b.tif"))


def test_a_network_of_another_tuning_is_not_kept_as_a_program(
    unet: Path, image: Path, folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    given = {"GEOSTUDIO_DATA_FOLDER": str(home), "GEOSTUDIO_TUNING": "none"}
    predicted(unet, image, folder / "o.tif", **given)
    assert not (home / "programs").exists()


@pytest.mark.parametrize("source", ["option", "setting"])
def test_an_unknown_tuning_is_refused_with_those_that_there_are(
    unet: Path, image: Path, folder: Path, source: str
) -> None:
    options = ("--tuning", "fold,hurry") if source == "option" else ()
    given = {"GEOSTUDIO_TUNING": "fold,hurry"} if source == "setting" else {}
    result = call(unet, [image], folder / "o.tif", *options, **given)
    assert result.exit_code == 2, result.output
    assert "'hurry' is no tuning; name some of fold, channels_last, pack, or none" in " ".join(
        result.stderr.split()
    )
    assert list(folder.iterdir()) == []


def test_names_are_read_as_they_are_written() -> None:
    for text in ("none", "fold", "pack", "fold,channels_last,pack"):
        assert str(Tuning.of(text)) == text
