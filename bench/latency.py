"""From POST to the first prediction and to COMPLETED, with everything warm: seconds.

    python -m bench.latency [--rounds 3] [--size 1024]

Starts webserver, daemon and gateway as ``geostudio-dagster dev`` does, in a folder of its own,
and sends one small request after another over HTTP. Also how long a cancellation takes.
"""

import argparse
import json
import signal
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import rasterio

from bench.scenes import sparse, textured
from bench.serving import post, serving
from geostudio_dagster.catalog import StepStatus
from geostudio_dagster.catalog.states import LIVE_REQUESTS, PREDICTION
from geostudio_dagster.demo.model import demo_bundle
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings

_PATIENCE_S = 120
_BANDS = ("B02", "B03", "B04", "B08")  # as the demo model knows them
_DRAWN = 2048  # larger scenes only have to take long, not to show anything


def main() -> None:
    """Measure and print JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--size", type=int, default=1024, help="pixels of the scene's side")
    wanted = arguments.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the services are stopped, too
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        print(json.dumps(measure(Path(folder), wanted.rounds, wanted.size), indent=2))


def measure(folder: Path, rounds: int, size: int) -> dict[str, object]:
    """Medians and all samples of a warm installation."""
    bundle = demo_bundle(folder / "bundle")
    with serving(folder, bundle.folder) as (place, client, model):
        samples = [
            _one(place, client, model, _scene(place.settings, size, number))
            for number in range(rounds + 1)
        ][1:]  # the first one warms everything up
        cancelled = _cancel(place, client, model, place.settings)
    return {
        "size": size,
        "median_s": {
            name: round(statistics.median(sample[name] for sample in samples), 2)
            for name in samples[0]
        },
        "samples_s": samples,
        "cancel_of_a_running_one_s": cancelled,
    }


def _one(
    place: Installation, client: httpx.Client, model: str, scene_path: Path
) -> dict[str, float]:
    began = time.perf_counter()
    request = post(client, model, [scene_path])
    sample = {"post": time.perf_counter() - began}
    deadline = began + _PATIENCE_S
    while time.perf_counter() < deadline:
        if "planned" not in sample and place.catalog.request(request).n_tasks:
            sample["planned"] = time.perf_counter() - began
        if "predicting" not in sample and _predicts(place, request):
            sample["predicting"] = time.perf_counter() - began
        status = place.catalog.request(request).status
        if status == "PUBLISHING_RESULTS" and "publishing" not in sample:
            sample["publishing"] = time.perf_counter() - began
        if status not in LIVE_REQUESTS:
            sample["completed"] = time.perf_counter() - began
            if status != "COMPLETED":
                raise RuntimeError(f"{request} is {status}")
            sample.setdefault("publishing", sample["completed"])
            time.sleep(3)  # the run's own end is nobody's wait, but would disturb the next
            return {name: round(value, 3) for name, value in sample.items()}
        time.sleep(0.05)
    raise RuntimeError(f"{request} did not end within {_PATIENCE_S} s")


def _predicts(place: Installation, request: str) -> bool:
    return any(
        step.process_id == PREDICTION
        and step.status in (StepStatus.RUNNING, StepStatus.FINISHED)
        and step.started_at is not None
        for task in place.catalog.tasks(request)
        for step in task.steps
    )


def _cancel(place: Installation, client: httpx.Client, model: str, settings: Settings) -> float:
    """From the cancellation of a request that predicts a large scene to STOPPED."""
    request = post(client, model, [_scene(settings, 8192, 99)])
    deadline = time.perf_counter() + _PATIENCE_S
    while not _predicts(place, request) and time.perf_counter() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    began = time.perf_counter()
    client.post(f"/v2/inference/{request}/cancel").raise_for_status()
    while place.catalog.request(request).status in LIVE_REQUESTS:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{request} did not stop")
        time.sleep(0.05)
    return round(time.perf_counter() - began, 2)


def _scene(settings: Settings, size: int, number: int) -> Path:
    path = settings.data_folder / "scenes" / f"scene_{number}_2024-06-30.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = textured(path, size, seed=number) if size <= _DRAWN else sparse(path, size)
    with rasterio.open(drawn, "r+") as file:
        for band, name in enumerate(_BANDS, start=1):
            file.set_band_description(band, name)
    return drawn


if __name__ == "__main__":
    main()
