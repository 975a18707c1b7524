"""``python -m bench``: the engine's speed and memory, measured on this machine."""

import argparse
from pathlib import Path

from bench import accuracy, engine
from bench.report import conclude
from bench.samples import Samples
from geostudio_dagster.prediction import PredictOptions
from geostudio_dagster.prediction.forward import choose_device, has_bfloat16

OUT = Path(__file__).parent / "out"
PARTS = ("floor", "versus", "starts", "memory", "precision", "patches")
FLOOR = "unet@8192,prithvi_tiny@8192,prithvi_100@4096"
GPU_FLOOR = "unet@8192,prithvi_tiny@8192,prithvi_100@8192,prithvi_300@8192"
EPILOG = """
The default set takes about 50 minutes on 2 idle cores. What it leaves out there on
account of time, Prithvi of 100M parameters on 8192 x 8192 pixels, takes another 50:

    python -m bench --parts floor --floor prithvi_100@8192 --append
"""


def main() -> None:
    """Measure what was asked for, then print tables and write ``engine.json``."""
    settings = _settings()
    settings.place.mkdir(parents=True, exist_ok=True)
    path = settings.place / "samples.jsonl"
    if not settings.append:
        path.unlink(missing_ok=True)
    samples = Samples(path)
    measures = {
        "floor": lambda: [engine.measure_floor(case, settings, samples) for case in settings.floor],
        "versus": lambda: [
            engine.measure_versus(case, settings, samples) for case in settings.versus
        ],
        "starts": lambda: engine.measure_starts("unet", settings, samples),
        "memory": lambda: engine.measure_memory(settings, samples),
        "precision": lambda: accuracy.measure_precision(settings, samples),
        "patches": lambda: accuracy.measure_patches(settings, samples),
    }
    for part in settings.parts:
        measures[part]()
    conclude(samples, settings.place)


def _settings():
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="by comma; none only reports")
    parser.add_argument(
        "--floor",
        help=f"model@side by comma: the engine beside its floor, {FLOOR} by default, on a GPU "
        f"{GPU_FLOOR}; see bench/models.py",
    )
    parser.add_argument("--versus", default="unet@2048", help="the same, beside TerraTorch")
    parser.add_argument(
        "--precisions", help="exact,auto by default; exact where auto would be the same, float32"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--append", action="store_true", help="keep earlier samples and count them as well"
    )
    parser.add_argument("--tiles", type=int, default=20, help="scenes in the comparison of starts")
    parser.add_argument("--tile", type=int, default=1024, help="their side, pixels")
    parser.add_argument("--memory", default="2048,8192,32768", help="sides of the sparse scenes")
    parser.add_argument("--scenes", default="", help="further real scenes for part precision")
    parser.add_argument("--device", help="cpu, cuda; what the engine would choose by default")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="longest wait for a quiet machine, seconds"
    )
    parser.add_argument("--quick", action="store_true", help="one small round of everything")
    parser.add_argument("--place", type=Path, default=OUT, help="folder of models, scenes, results")
    settings = parser.parse_args()
    settings.place = settings.place.resolve()
    device = choose_device(PredictOptions(device=settings.device))
    settings.floor = settings.floor or (GPU_FLOOR if device.startswith("cuda") else FLOOR)
    both = "exact,auto" if has_bfloat16(device) else "exact"
    settings.precisions = settings.precisions or both
    if settings.quick:
        settings.rounds, settings.tiles, settings.tile = 1, 3, 512
        settings.floor, settings.versus, settings.memory = "unet@1024", "unet@1024", "2048,8192"
    for name in ("parts", "floor", "versus", "precisions", "memory", "scenes"):
        setattr(settings, name, [item for item in getattr(settings, name).split(",") if item])
    settings.memory = [int(size) for size in settings.memory]
    return settings


if __name__ == "__main__":
    main()
