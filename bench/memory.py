"""The memory curve: peak RSS above the loaded model as scenes grow, each in its own process.

Models start from their programs, as in an installation; ``python -m bench.memory`` keeps one.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.scenes import sparse

_MB = 1024**2


def sparse_point(bundle: Path, size: int, place: Path):
    """Memory above the model, MB, and the speed, Mpx/s, over a sparse scene."""
    return point(bundle, sparse(place / f"sparse-{size}.tif", size), size, place, "exact")


def light_bundle(place: Path) -> Path:
    """A model of next to no work, so that the largest scenes end in time: a 1 x 1 convolution.

    The patches and batches are as large as those of the real models; what differs is what the
    model itself needs for its own layers, which does not depend on the scene.
    """
    import torch
    import yaml

    folder = place / "light"
    if folder.exists():
        return folder
    folder.mkdir()
    torch.manual_seed(1)
    program = torch.jit.trace(torch.nn.Conv2d(6, 2, 1).eval(), torch.zeros(1, 6, 224, 224))
    program.save(str(folder / "model.pt"))
    manifest = {
        "name": "bench-light",
        "runtime": "torchscript",
        "weights": "model.pt",
        "task": "segmentation",
        "bands": [{"name": f"B{n}", "index": n} for n in range(6)],
        "patch": {"size": 224, "overlap": 32, "trim": 8},
        "classes": [{"value": n, "name": str(n), "colour": f"#0000{n}0"} for n in range(2)],
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def point(
    bundle: Path, scene: Path, size: int, place: Path, precision: str, *, calibrate: bool = False
):
    """The same over any scene of this size; calibrated from nothing, if wanted."""
    out, programs = place / "memory", place / "programs"
    out.mkdir(exist_ok=True)
    # Not in the process that is measured: making a program imports TerraTorch.
    keep = [sys.executable, "-m", "bench.memory", str(bundle), str(programs)]
    subprocess.run(keep, capture_output=True, check=True)
    command = [sys.executable, "-m", "bench.shard", str(bundle), str(scene), str(out), precision]
    command += ["--programs", str(programs)]
    if calibrate:
        shutil.rmtree(place / "calibrations", ignore_errors=True)
        command += ["--calibrations", str(place / "calibrations")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    (out / scene.name).unlink()
    seconds = facts["last"]["seconds"]["total"]
    return {
        "above_model_mb": round((facts["rss_peak"] - facts["rss_model"]) / _MB, 1),
        "model_mb": round(facts["rss_model"] / _MB, 1),
        "mpx_per_s": round(size * size / 1e6 / seconds, 2),
    }


if __name__ == "__main__":
    from geostudio_dagster.models.bundle import load_bundle
    from geostudio_dagster.models.conversion import keep_program

    keep_program(load_bundle(Path(sys.argv[1])), Path(sys.argv[2]))
