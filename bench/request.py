"""A request of many scenes, from POST to COMPLETED: where its time goes.

    python -m bench.request [--scenes 40] [--size 1024] [--model unet]

Starts webserver, daemon and gateway as ``geostudio-dagster dev`` does, in a folder of its own,
and sends the request over HTTP. What counts is the share of the time in which scenes are predicted.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.engine import make_bundle
from bench.scenes import textured
from bench.serving import post, serving
from geostudio_dagster.catalog.states import LIVE_REQUESTS, PREDICTION

_OUT = Path(__file__).parent / "out"
_PATIENCE_S = 1800


def main() -> None:
    """Measure and print JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scenes", type=int, default=40)
    arguments.add_argument("--size", type=int, default=1024, help="pixels of a scene's side")
    arguments.add_argument("--model", default="unet", help="see bench/models.py")
    wanted = arguments.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the services are stopped, too
    _OUT.mkdir(exist_ok=True)
    bundle = make_bundle(_OUT, wanted.model)
    with tempfile.TemporaryDirectory(prefix="request-") as name:
        folder = Path(name)
        place_of_scenes = folder / "data" / "scenes"  # of the installation, so it may read them
        place_of_scenes.mkdir(parents=True)
        scenes = [
            textured(place_of_scenes / f"scene_{number}_2024-06-30.tif", wanted.size, seed=number)
            for number in range(wanted.scenes)
        ]
        with serving(folder, bundle) as (place, client, model):
            # As `models add` does; not in this process, for it imports TerraTorch.
            keep = [sys.executable, "-m", "bench.memory", str(bundle), str(place.settings.programs)]
            subprocess.run(keep, capture_output=True, check=True)
            _await(place, post(client, model, scenes[:1]))  # warms everything up
            began = time.perf_counter()
            request = post(client, model, scenes)
            _await(place, request)
            wall = time.perf_counter() - began
            print(json.dumps(_facts(place, request, wall), indent=2))


def _await(place, request):
    deadline = time.perf_counter() + _PATIENCE_S
    while (status := place.catalog.request(request).status) in LIVE_REQUESTS:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{request} did not end within {_PATIENCE_S} s")
        time.sleep(0.2)
    if status != "COMPLETED":
        raise RuntimeError(f"{request} is {status}")


def _facts(place, request, wall):
    """Seconds of the request and of its stages, each from its first task's to its last one's."""
    steps = [step for task in place.catalog.tasks(request) for step in task.steps]
    stages = {}
    for name in dict.fromkeys(step.process_id for step in steps):
        of_stage = [step for step in steps if step.process_id == name and step.started_at]
        if of_stage:
            span = max(s.finished_at for s in of_stage) - min(s.started_at for s in of_stage)
            stages[name] = round(span.total_seconds(), 2)
    return {
        "tasks": len(place.catalog.tasks(request)),
        "wall_s": round(wall, 2),
        "stages_s": stages,
        "predictions_of_wall": round(stages[PREDICTION] / wall, 3),
    }


if __name__ == "__main__":
    main()
