"""One warm process for many small scenes, against ``terratorch predict`` started for each."""

import subprocess
import sys
import time
from pathlib import Path

import yaml

from bench import models
from bench.scenes import MEANS, STDS, textured

# What GEOStudio's inference step adds to a tune's configuration.
_TILING = {
    "h_crop": 224,
    "h_stride": 208,
    "w_crop": 224,
    "w_stride": 208,
    "batch_size": 16,
    "average_patches": True,
}


def scenes(place: Path, count: int, side: int) -> Path:
    """A folder of ``count`` scenes."""
    folder = place / f"tiles-{side}-{count}"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        textured(folder / f"tile{number:02}.tif", side, seed=number)
    return folder


def ours(bundle: Path, tiles: Path, place: Path, precision: str):
    """Wall seconds of one process over all tiles, its start and the model's load included."""
    out = place / f"tiles-out-{precision}"
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bench.shard", str(bundle), str(tiles), str(out), precision]
    return _wall(command, place / "shard.log")


def theirs(bundle: Path, name: str, tiles: Path, number: int, place: Path):
    """Wall seconds of one ``terratorch predict`` for one tile, as GEOStudio starts it."""
    out = place / f"terratorch-predict-{number}"
    out.mkdir(exist_ok=True)
    config = out / "config.yaml"
    config.write_text(yaml.safe_dump(_configuration(name, tiles)))
    command = [sys.executable, "-u", "-m", "terratorch", "predict", "-c", str(config)]
    command += ["--ckpt_path", str(bundle / "state.ckpt"), "--predict_output_dir", str(out)]
    command += ["--data.init_args.predict_data_root", str(tiles)]
    command += ["--data.init_args.img_grep", f"tile{number:02}.tif"]
    seconds = _wall(command, out / "log.txt", cwd=out)  # it writes its configuration there
    if not list(out.glob("*.tif")):
        raise RuntimeError(f"terratorch predict made nothing; see {out / 'log.txt'}")
    return seconds


def _configuration(name, tiles):
    arguments = models.init_args(name) | {"tiled_inference_parameters": _TILING}
    return {
        "trainer": {"accelerator": "cpu", "devices": 1, "logger": False, "callbacks": []},
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": arguments,
        },
        "data": {
            "class_path": "GenericNonGeoSegmentationDataModule",
            "init_args": {
                "batch_size": 1,
                "num_workers": 0,
                "num_classes": 2,
                "train_data_root": str(tiles),
                "val_data_root": str(tiles),
                "test_data_root": str(tiles),
                "predict_data_root": str(tiles),
                "means": list(MEANS),
                "stds": list(STDS),
                "test_transform": [{"class_path": "ToTensorV2"}],
                "no_data_replace": 0,
            },
        },
    }


def _wall(command, log, cwd=None):
    began = time.perf_counter()
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{command[1:4]} failed:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - began
