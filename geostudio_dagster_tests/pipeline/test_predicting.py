"""What estimates are made of: the seconds that grow with the pixels, and no others."""

from __future__ import annotations

import pytest

from geostudio_dagster.pipeline.predicting import working_seconds


@pytest.mark.parametrize(
    ("stages", "workers", "expected"),
    [
        # A small scene in a process that had to load the model first.
        ({"total": 28.0, "model": 2.3, "calibrate": 0.05, "forward": 0.22, "cog": 0.14}, 1, 0.36),
        # Two passes at a time take half of their seconds together.
        ({"total": 12.0, "stall": 0.5, "forward": 20.0, "blend": 0.5, "write": 0.5}, 2, 11.5),
        # Stages that overlap are no longer than the whole.
        ({"total": 3.0, "forward": 2.9, "write": 1.0, "read": 2.0}, 1, 3.0),
    ],
)
def test_only_seconds_that_grow_with_the_pixels_count(
    stages: dict[str, float], workers: int, expected: float
) -> None:
    assert working_seconds(stages, workers) == pytest.approx(expected)
