"""The key figures of the engine's bench, from samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.report import conclude
from bench.samples import Samples


def figures(place: Path, samples: Samples) -> dict[str, Any]:
    conclude(samples, place)
    found: dict[str, Any] = json.loads((place / "engine.json").read_text())
    return found


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return Samples(tmp_path / "samples.jsonl")


def test_starts_with_a_program_stand_beside_the_first(
    samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walls = {"ours first exact": 40.0, "ours exact": 20.0, "terratorch predict": 15.0}
    for label, wall in walls.items():
        samples.add("starts", "unet, 20 tiles of 1024", label, wall=wall, cpu=wall, others=0.0)
    found = figures(tmp_path, samples)
    assert found["over_per_tile_starts"] == 15.0
    assert found["over_per_tile_starts_first"] == 7.5
    printed = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in printed if line.strip().startswith("ours") and ":" not in line]
    assert [row[-4] for row in rows] == ["7.5", "15.0"]
    assert any(line.startswith("ours first: ") for line in printed)


def test_busy_is_what_the_engine_counted_of_its_own_wall_time(
    samples: Samples, tmp_path: Path
) -> None:
    engine = {"wall": 10.0, "cpu": 20.0, "others": 0.0}
    samples.add("floor", "unet@1024", "decode", wall=0.5, cpu=0.4, others=0.0, result={})
    for label in ("forward exact", "forward auto"):
        samples.add("floor", "unet@1024", label, wall=9.9, cpu=19.0, others=0.0, result={})
    samples.add("floor", "unet@1024", "engine exact", **engine, result={"forward_busy": 9.0})
    samples.add("floor", "unet@1024", "engine auto", **engine, result={})
    busy = figures(tmp_path, samples)["forward_busy"]
    assert busy == {"unet@1024 exact": 0.9, "unet@1024 auto": None}
