"""Measured choices: bounded, kept, read again, and of no effect on a result."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.tuning import Tuning
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.calibration import best, search
from geostudio_dagster.prediction.forward import ForwardPlan
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    read,
    write_bundle,
    write_raster,
)

RULE = ForwardPlan("cpu", bfloat16=False, batch_size=4, workers=2, threads=1)
ALL = frozenset({"batch_size", "workers", "threads"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return write_bundle(folder, Convolutions(3, 4), classes=4, patch=(16, 4, 1))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(2).normal(size=(3, 300, 300)).astype(np.float32)
    return write_raster(tmp_path_factory.mktemp("scenes") / "s.tif", pixels)


def tags(path: Path) -> dict[str, str]:
    with rasterio.open(path) as file:
        found: dict[str, str] = file.tags()
    return found


def test_long_work_is_measured_once_and_repeats_to_the_byte(
    tmp_path: Path, scene: Path, bundle: Bundle
) -> None:
    options = PredictOptions(calibrations=tmp_path / "calibrations")
    paths = [tmp_path / name for name in ("first.tif", "again.tif")]
    reports = []
    for path in paths:
        reports.append(predict(scene, bundle, path, scratch=tmp_path, options=options))
        (kept,) = (tmp_path / "calibrations").iterdir()
        if path is paths[0]:
            status = kept.stat()
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert reports[0].patches >= 500
    assert tags(paths[0])["GEOSTUDIO_CHOSEN"] == "measured"
    assert tags(paths[0])["GEOSTUDIO_BATCH"] == str(reports[0].batch_size)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    document = json.loads(kept.read_text())
    assert document["model"] == bundle.digest
    assert document["choice"]["batch_size"] == reports[1].batch_size
    assert len(document["measured"]) > 1


def test_a_kept_choice_is_what_is_done_and_changes_no_pixel(
    tmp_path: Path, scene: Path, bundle: Bundle
) -> None:
    folder = tmp_path / "calibrations"
    options = PredictOptions(calibrations=folder)
    predict(scene, bundle, tmp_path / "a.tif", scratch=tmp_path, options=options)
    (kept,) = folder.iterdir()
    choice = {"batch_size": 7, "workers": 3, "threads": 1}
    kept.write_text(json.dumps({"choice": choice}))
    report = predict(scene, bundle, tmp_path / "b.tif", scratch=tmp_path, options=options)
    assert (report.batch_size, report.workers, report.threads) == (7, 3, 1)
    plain = predict(scene, bundle, tmp_path / "c.tif", scratch=tmp_path)
    assert plain.batch_size != 7
    np.testing.assert_array_equal(read(tmp_path / "b.tif"), read(tmp_path / "c.tif"))


def test_each_number_of_cores_and_each_tuning_is_measured_for_itself(
    tmp_path: Path, scene: Path, bundle: Bundle
) -> None:
    folder = tmp_path / "calibrations"
    options = PredictOptions(calibrations=folder)
    plain = dataclasses.replace(options, tuning=Tuning.of("none"))
    cores = os.sched_getaffinity(0)
    for number, chosen in enumerate((options, plain), start=1):
        predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path, options=chosen)
        assert len(list(folder.iterdir())) == number
    try:
        os.sched_setaffinity(0, set(list(cores)[:1]))
        predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path, options=options)
    finally:
        os.sched_setaffinity(0, cores)
    assert len(list(folder.iterdir())) == (3 if len(cores) > 1 else 2)


def test_what_was_measured_for_others_is_no_choice_of_this_one(
    tmp_path: Path, scene: Path, bundle: Bundle
) -> None:
    folder, target = tmp_path / "calibrations", tmp_path / "o.tif"
    options = PredictOptions(calibrations=folder)
    predict(scene, bundle, target, scratch=tmp_path, options=options)
    given = dataclasses.replace(options, batch_size=3)
    assert predict(scene, bundle, target, scratch=tmp_path, options=given).batch_size == 3
    assert len(list(folder.iterdir())) == 2


def test_a_choice_that_nobody_can_have_made_is_measured_again(
    tmp_path: Path, scene: Path, bundle: Bundle
) -> None:
    folder, target = tmp_path / "calibrations", tmp_path / "o.tif"
    options = PredictOptions(calibrations=folder)
    predict(scene, bundle, target, scratch=tmp_path, options=options)
    (kept,) = folder.iterdir()
    kept.write_text('{"choice": {"batch_size": 0, "workers": 1, "threads": 1}}')
    assert predict(scene, bundle, target, scratch=tmp_path, options=options).batch_size >= 1
    assert json.loads(kept.read_text())["choice"]["batch_size"] >= 1


def test_short_work_goes_by_rule(tmp_path: Path, scene: Path, bundle: Bundle) -> None:
    options = PredictOptions(calibrations=tmp_path / "calibrations")
    target = tmp_path / "o.tif"
    predict(scene, bundle, target, scratch=tmp_path, window=(0, 0, 90, 90), options=options)
    assert tags(target)["GEOSTUDIO_CHOSEN"] == "by rule"
    assert not (tmp_path / "calibrations").exists()


def test_what_the_caller_chose_stays(tmp_path: Path, scene: Path, bundle: Bundle) -> None:
    options = PredictOptions(calibrations=tmp_path / "calibrations", batch_size=3, workers=2)
    report = predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path, options=options)
    assert (report.batch_size, report.workers) == (3, 2)


def test_the_search_finds_the_best_batch_and_stops_where_it_gets_worse() -> None:
    costs = {1: 9.0, 2: 8.0, 4: 5.0, 8: 3.0, 16: 4.0}
    seconds = search(RULE, frozenset({"batch_size"}), lambda plan: costs[plan.batch_size] / 1e3)
    assert best(RULE, seconds).batch_size == 8
    assert {plan.batch_size for plan in seconds} == {4, 8, 16, 2}


def test_no_time_and_no_clear_gain_mean_the_rule() -> None:
    seconds = search(RULE, ALL, lambda plan: 1.0 / plan.batch_size, budget=0)
    assert list(seconds) == [RULE]
    nearly = dataclasses.replace(RULE, batch_size=8)
    assert best(RULE, {RULE: 1.0, nearly: 0.97}) == RULE
    assert best(RULE, {RULE: 1.0, nearly: float("inf")}) == RULE


def test_the_search_goes_down_where_the_rule_does_not_fit_into_memory() -> None:
    tried: list[int] = []

    def measure(plan: ForwardPlan) -> float:
        tried.append(plan.batch_size)
        return 1e-4 if plan.batch_size <= 32 else float("inf")

    rule = ForwardPlan("cuda:0", True, batch_size=128, workers=2, threads=1)
    seconds = search(rule, frozenset({"batch_size"}), measure)
    assert tried == [128, 64, 32, 16, 8]
    assert best(rule, seconds).batch_size == 32
