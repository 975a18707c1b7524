"""All scenes of a folder in one process, as a shard does: ``python -m bench.shard``."""

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from geostudio_dagster.importing import importing
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.report import peak_rss
from geostudio_dagster.prediction.turns import at_once


def predict_all(
    bundle: Path,
    scenes: list[Path],
    target: Path,
    precision: str,
    *,
    programs: Path | None = None,
    calibrations: Path | None = None,
    tasks: int,
):
    """Predict each scene, so many at a time as in a run. Gives memory before and after.

    In a folder of programs the model's is kept at the end, where it is not there yet.
    """
    loaded_bundle = load_bundle(bundle)
    options = PredictOptions(precision=precision, programs=programs, calibrations=calibrations)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        with importing("torch"):  # as predictions do
            from geostudio_dagster.models.cache import loaded
            from geostudio_dagster.prediction.forward import choose_device

        model = loaded(loaded_bundle, choose_device(options), programs=programs)
        before = peak_rss()

        def one(scene: Path):
            output = target / scene.name
            return predict(scene, loaded_bundle, output, scratch=Path(scratch), options=options)

        with ThreadPoolExecutor(tasks) as pool:
            report = list(pool.map(one, scenes))[-1]
    peak = peak_rss()  # of the predictions; keeping a program takes memory of its own
    seconds = keep(loaded_bundle, programs, model) if programs else 0.0
    return {
        "convert": seconds,
        "rss_model": before,
        "rss_peak": peak,
        "last": report.as_dict(),
    }


def keep(bundle, programs, model):
    """CPU seconds that it took to keep the model's program, where there was none."""
    from geostudio_dagster.models.programs import ProgramFile

    if ProgramFile.of(bundle, programs).exists:
        return 0.0
    from geostudio_dagster.models.conversion import keep_program

    began = time.process_time()
    keep_program(bundle, programs, model)
    return time.process_time() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.shard", description=__doc__)
    for name in ("bundle", "scenes", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("precision")
    parser.add_argument("--programs", type=Path)
    parser.add_argument("--calibrations", type=Path)
    parser.add_argument("--at-once", type=int, default=at_once())
    given = parser.parse_args()
    folder = given.scenes
    found = sorted(folder.glob("*.tif")) if folder.is_dir() else [folder]
    facts = predict_all(
        given.bundle,
        found,
        given.out,
        given.precision,
        programs=given.programs,
        calibrations=given.calibrations,
        tasks=given.at_once,
    )
    print(json.dumps(facts))
