"""All scenes of a folder in one process, as a shard does: ``python -m bench.shard``."""

import json
import sys
import tempfile
from pathlib import Path

from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.report import peak_rss


def predict_all(bundle: Path, scenes: list[Path], target: Path, precision: str, device=None):
    """Predict each scene; the model is loaded with the first. Gives memory before and after."""
    loaded_bundle = load_bundle(bundle)
    options = PredictOptions(precision=precision, device=device)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        from geostudio_dagster.models.cache import loaded
        from geostudio_dagster.prediction.forward import choose_device

        loaded(loaded_bundle, choose_device(options))
        before = peak_rss()
        for scene in scenes:
            report = predict(
                scene, loaded_bundle, target / scene.name, scratch=Path(scratch), options=options
            )
    return {"rss_model": before, "rss_peak": peak_rss(), "last": report.as_dict()}


if __name__ == "__main__":
    folder, out = Path(sys.argv[2]), Path(sys.argv[3])
    found = sorted(folder.glob("*.tif")) if folder.is_dir() else [folder]
    print(json.dumps(predict_all(Path(sys.argv[1]), found, out, *sys.argv[4:])))
