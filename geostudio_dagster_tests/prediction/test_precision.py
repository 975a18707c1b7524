"""Who decides in which arithmetic a scene is computed; the output tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from typer.testing import CliRunner

from geostudio_dagster.cli import app
from geostudio_dagster.prediction.forward import has_bfloat16
from geostudio_dagster_tests.prediction.builders import Convolutions, write_bundle, write_raster


def test_precision_is_an_option_or_the_models_or_a_setting(tmp_path: Path) -> None:
    says_auto = write_bundle(tmp_path / "auto", Convolutions(3, 1), precision="auto")
    says_nothing = write_bundle(tmp_path / "plain", Convolutions(3, 1))
    scene = write_raster(tmp_path / "s.tif", np.ones((3, 70, 90), np.float32))
    target = tmp_path / "o.tif"
    fast = "bfloat16" if has_bfloat16("cpu") else "float32"
    for bundle, option, setting, expected in (
        (says_nothing, [], "exact", "float32"),
        (says_nothing, [], "auto", fast),
        (says_nothing, ["--precision", "exact"], "auto", "float32"),
        (says_auto, [], "exact", fast),
        (says_auto, ["--precision", "exact"], "exact", "float32"),
    ):
        command = ["predict", "--model", bundle.folder, "--input", scene, "--output", target]
        arguments = [str(item) for item in [*command, *option]]
        result = CliRunner().invoke(app, arguments, env={"GEOSTUDIO_PRECISION": setting})
        assert result.exit_code == 0, result.output
        with rasterio.open(target) as file:
            assert file.tags()["GEOSTUDIO_DTYPE"] == expected
