"""What isolation adds to a user's script: ``python -m bench.processors``.

The same script, importing numpy and rasterio, as ``python script.py`` and as the platform runs it,
turn by turn, so that both meet the same load. Printed are the medians and the extra of one run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from geostudio_dagster.processors.run import ScriptJob, run_script
from geostudio_dagster.processors.sandbox import choose_sandbox
from geostudio_dagster.settings import ProcessorSettings, ScriptLimits

ROUNDS = 25
GOAL_MS = 150
SCRIPT = """
import json, sys
import numpy as np
import rasterio

if __name__ == "__main__":
    with rasterio.open(sys.argv[1]) as source:
        pixels, profile = source.read(), source.profile
    with rasterio.open(sys.argv[2], "w", **profile) as target:
        target.write(np.where(pixels > 100, pixels, 0))
    print(json.dumps({"status": "success"}))
"""


def main():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each kind")
    rounds = arguments.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "script.py"
        script.write_text(SCRIPT)
        scene = _scene(folder / "scene.tif")
        sandboxes = [choose_sandbox(ProcessorSettings(isolation=kind)) for kind in KINDS]
        bare, isolated = [], {sandbox.name: [] for sandbox in sandboxes}
        for number in range(rounds + 1):  # the first round warms the disk cache
            bare.append(_bare(script, scene, folder / f"bare-{number}.tif"))
            for sandbox in sandboxes:
                place = folder / f"{sandbox.name}-{number}"
                isolated[sandbox.name].append(_isolated(script, scene, place, sandbox))
    print(json.dumps(_figures(bare[1:], isolated), indent=2))


KINDS = ("auto", "rlimits")


def _scene(path):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=512,
        height=512,
        count=1,
        dtype="uint8",
        crs="EPSG:32633",
        transform=from_origin(500_000, 5_300_000, 10, 10),
    ) as file:
        file.write(np.random.default_rng(1).integers(0, 255, (1, 512, 512), "uint8"))
    return path


def _bare(script, scene, target):
    begin = time.perf_counter()
    command = [sys.executable, str(script), str(scene), str(target), "{}"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def _isolated(script, scene, folder, sandbox):
    job = ScriptJob(script, scene, folder, "positional")
    begin = time.perf_counter()
    run_script(job, ScriptLimits(), sandbox).raise_if_failed()
    return time.perf_counter() - begin


def _figures(bare, isolated):
    def ms(values):
        return round(1000 * statistics.median(values), 1)

    figures = {"rounds": len(bare), "bare_ms": ms(bare), "goal_added_ms": GOAL_MS}
    for name, times in isolated.items():
        figures[name] = {
            "ms": ms(times[1:]),
            "added_ms": ms([mine - own for mine, own in zip(times[1:], bare, strict=True)]),
            "ratio": round(statistics.median(times[1:]) / statistics.median(bare), 2),
        }
    return figures


if __name__ == "__main__":
    main()
