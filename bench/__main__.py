"""``python -m bench``: the engine's speed and memory, measured on this machine."""

import argparse
import datetime as dt
import json
import os
import platform
import sys
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench import engine, memory
from geostudio_dagster.prediction.options import usable_cores

OUT = Path(__file__).parent / "out"
PARTS = ("speed", "starts", "memory")


def main() -> None:
    """Measure what was asked for, print tables and write ``engine.json``."""
    settings = _settings()
    settings.place.mkdir(parents=True, exist_ok=True)
    document = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "machine": _machine(),
        "load_before": os.getloadavg(),
        "size": settings.size,
        "rounds": settings.rounds,
    }
    if "speed" in settings.parts:
        document |= _speed(settings)
    if "starts" in settings.parts:
        found = engine.measure_starts(settings.models[0], settings)
        document |= {"over_per_tile_starts": found["exact"], "per_tile_starts": found}
    if "memory" in settings.parts:
        points = engine.measure_memory(settings)
        document |= {"rss_growth_mb": memory.growth(points), "memory": points}
    document["load_after"] = os.getloadavg()
    target = settings.place / "engine.json"
    target.write_text(json.dumps(document, indent=2) + "\n")
    _print(document)
    print(f"\n{target}")


def _speed(settings):
    """Ratios by model; the plain keys are those of the first model."""
    gpu = (settings.device or "").startswith("cuda")
    by_model = {}
    for name in settings.models:
        samples = engine.measure_model(name, settings)
        by_model[name] = {
            "floor": engine.floors(samples, usable_cores(), gpu),
            "defaults_exact": engine.over(samples, "terratorch defaults", "engine exact"),
            "defaults_auto": engine.over(samples, "terratorch defaults", "engine auto"),
            "best": engine.over(samples, "terratorch best", "engine auto"),
            "flips_exact_auto": engine.flips(samples, "engine exact", "engine auto"),
            "flips_terratorch": engine.flips(samples, "engine exact", "terratorch defaults"),
            "medians": _medians(samples),
            "samples": samples,
        }
    first = by_model[settings.models[0]]

    def wall(key):
        return first[key] and first[key]["wall"]

    return {
        "over_floor": {name: item["floor"]["exact"]["wall"] for name, item in by_model.items()},
        "over_floor_auto": {name: item["floor"]["auto"]["wall"] for name, item in by_model.items()},
        "over_terratorch_defaults_exact": wall("defaults_exact"),
        "over_terratorch_defaults_auto": wall("defaults_auto"),
        "over_terratorch_best": wall("best"),
        "models": by_model,
    }


def _medians(samples):
    return {
        label: {
            key: round(median(sample[key] for sample in items), 3)
            for key in ("wall", "cpu", "others")
        }
        for label, items in samples.items()
    }


def _machine():
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        pass
    return {"processor": model, "cores": usable_cores(), "python": platform.python_version()}


def _print(document):
    console = Console()
    for name, item in document.get("models", {}).items():
        megapixels = document["size"] ** 2 / 1e6
        table = Table("", "wall s", "CPU s", "Mpx/s", "others' cores", title=name, box=None)
        for label, row in item["medians"].items():
            speed = f"{megapixels / row['wall']:.2f}"
            table.add_row(
                label, f"{row['wall']:.2f}", f"{row['cpu']:.2f}", speed, f"{row['others']:.1f}"
            )
        console.print(table)
        ratios = Table("", "wall", "CPU", "wall, quietest", box=None)
        for precision in ("exact", "auto"):
            _row(ratios, f"engine {precision} over its floor", item["floor"][precision])
        _row(ratios, "exact, times TerraTorch's defaults", item["defaults_exact"])
        _row(ratios, "auto, times TerraTorch's defaults", item["defaults_auto"])
        _row(ratios, "auto, times TerraTorch's best", item["best"])
        console.print(ratios)
        console.print(f"class flips, auto against exact: {item['flips_exact_auto']:.4%}\n")
    if "per_tile_starts" in document:
        found = document["per_tile_starts"]
        console.print(
            f"{found['tiles']} tiles of {found['tile']} pixels in one process: "
            f"{found['exact']} times (exact), {found['auto']} times (auto) as fast as "
            "terratorch predict started for each"
        )
    for point in document.get("memory", []):
        console.print(
            f"{point['size']} x {point['size']}: {point['above_model_mb']} MB above the model, "
            f"{point['mpx_per_s']} Mpx/s"
        )


def _row(table, label, ratio):
    if ratio:
        table.add_row(label, *(str(ratio[key]) for key in ("wall", "cpu", "wall_quietest")))


def _settings():
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="side of the scene, pixels")
    parser.add_argument(
        "--models", default="unet,prithvi_tiny", help="by comma; see bench/models.py"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), help="by comma: speed, starts, memory")
    parser.add_argument("--tiles", type=int, default=20, help="scenes in the comparison of starts")
    parser.add_argument("--tile", type=int, default=1024, help="their side, pixels")
    parser.add_argument("--memory", default="2048,8192,32768", help="sides of the sparse scenes")
    parser.add_argument("--device", help="cpu, cuda; what the engine would choose by default")
    parser.add_argument("--no-terratorch", dest="terratorch", action="store_false")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="longest wait for a quiet machine, seconds"
    )
    parser.add_argument("--quick", action="store_true", help="one small round of everything")
    parser.add_argument("--place", type=Path, default=OUT, help="folder of models, scenes, results")
    settings = parser.parse_args()
    settings.place = settings.place.resolve()
    if settings.quick:
        settings.size, settings.rounds, settings.tiles, settings.tile = 1024, 1, 3, 512
        settings.memory, settings.models = "2048,8192", settings.models.split(",")[0]
    settings.models = settings.models.split(",")
    settings.parts = settings.parts.split(",")
    settings.memory = [int(size) for size in settings.memory.split(",")]
    return settings


if __name__ == "__main__":
    main()
