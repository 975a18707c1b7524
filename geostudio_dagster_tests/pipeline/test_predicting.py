"""What estimates are made of: the seconds that grow with the pixels, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geostudio_dagster.pipeline.predicting import working_seconds
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster_tests.prediction.builders import Convolutions, write_bundle, write_raster

NOTHING = dict.fromkeys(
    ("model", "calibrate", "read", "normalise", "stall", "forward", "blend", "write", "cog"), 0.0
)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        # A small scene in a process that had to load the model first.
        ({"total": 28.0, "model": 2.3, "calibrate": 0.05, "forward": 0.22, "cog": 0.14}, 0.36),
        # The wait for the workers is wall time already, however many there are.
        ({"total": 12.0, "stall": 0.5, "forward": 10.0, "blend": 0.5, "write": 0.5}, 11.5),
        # Reading goes on beside the rest.
        ({"total": 3.0, "read": 2.5, "normalise": 0.4, "forward": 2.0, "write": 0.5}, 2.5),
    ],
)
def test_only_seconds_that_grow_with_the_pixels_count(
    stages: dict[str, float], expected: float
) -> None:
    assert working_seconds(NOTHING | stages) == pytest.approx(expected)


def test_several_workers_make_no_more_seconds_than_passed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Convolutions(2, 3), bands=2)
    pixels = np.ones((2, 300, 300), np.float32)
    report = predict(
        write_raster(tmp_path / "s.tif", pixels),
        bundle,
        tmp_path / "o.tif",
        scratch=tmp_path,
        options=PredictOptions(workers=4, threads=1, batch_size=1),
    )
    assert report.patches == 169
    loading = report.seconds["model"] + report.seconds["calibrate"]
    assert 0 < working_seconds(report.seconds) <= report.seconds["total"] - loading
    assert 0 < report.forward_busy <= report.seconds["total"] - loading
