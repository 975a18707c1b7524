"""One warm process for many small scenes, against ``terratorch predict`` started for each."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from bench import models
from bench.scenes import MEANS, STDS, textured
from bench.worker import busy_seconds

# What GEOStudio's inference step adds to a tune's configuration. The engine reads it from a tune as
# the same squares: TerraTorch cuts 8 pixels from each side, which leaves no overlap to blend.
_CROP, _STRIDE = 224, 208
OVERLAP = _CROP - _STRIDE
_TILING = {
    "h_crop": _CROP,
    "h_stride": _STRIDE,
    "w_crop": _CROP,
    "w_stride": _STRIDE,
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


def ours(bundle: Path, tiles: Path, place: Path, precision: str, programs: Path):
    """One process over all tiles, its start and the model's load included: wall and CPU seconds.

    ``convert`` is the CPU time of keeping the model's program, which the first process does.
    """
    out = output(place, precision, 0).parent
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bench.shard", str(bundle), str(tiles), str(out), precision]
    log = place / "shard.log"
    sample = _timed([*command, "--programs", str(programs)], log)
    report = json.loads(next(line for line in log.read_text().splitlines() if line[:1] == "{"))
    return sample | {"convert": report["convert"]}


def output(place: Path, precision: str, number: int) -> Path:
    """What :func:`ours` makes of a tile."""
    return place / f"tiles-out-{precision}" / f"tile{number:02}.tif"


def theirs(bundle: Path, name: str, tiles: Path, number: int, place: Path):
    """One ``terratorch predict`` for one tile, as GEOStudio starts it: its seconds, its output."""
    out = place / f"terratorch-predict-{number}"
    out.mkdir(exist_ok=True)
    config = out / "config.yaml"
    config.write_text(yaml.safe_dump(_configuration(name, tiles)))
    command = [sys.executable, "-u", "-m", "terratorch", "predict", "-c", str(config)]
    command += ["--ckpt_path", str(bundle / "state.ckpt"), "--predict_output_dir", str(out)]
    command += ["--data.init_args.predict_data_root", str(tiles)]
    command += ["--data.init_args.img_grep", f"tile{number:02}.tif"]
    sample = _timed(command, out / "log.txt", cwd=out)  # it writes its configuration there
    found = list(out.glob("*.tif"))
    if not found:
        raise RuntimeError(f"terratorch predict made nothing; see {out / 'log.txt'}")
    return sample, found[0]


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


def _timed(command, log, cwd=None):
    """Wall and CPU seconds of a process, and how many cores all others used meanwhile."""
    began, before, busy = time.perf_counter(), os.times(), busy_seconds()
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{command[1:4]} failed:\n{log.read_text()[-2000:]}")
    wall, after = time.perf_counter() - began, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    others = max((busy_seconds() - busy - cpu) / wall, 0.0)
    return {"wall": wall, "cpu": cpu, "others": others}
