"""The engine's benchmark: rounds in turn, medians, ratios, a table and ``engine.json``."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import memory, models, starts
from bench.scenes import textured
from bench.worker import Worker


def measure_model(name, settings):
    """All contenders for one model, in turn, ``settings.rounds`` times; samples by contender."""
    place = settings.place
    bundle = make_bundle(place, name)
    scene = textured(place / f"scene-{settings.size}.tif", settings.size)
    samples = {}
    with ExitStack() as stack:

        def worker(kind):
            log = place / f"{kind}-{name}.log"
            shared = {"bundle": str(bundle), "scene": str(scene), "out": str(place)}
            return stack.enter_context(
                Worker(kind, log, settings.patience, **shared, device=settings.device)
            )

        ours, theirs = worker("ours"), worker("terratorch")
        ours.ask("prepare_forward")
        turns = _turns(ours, theirs, settings)
        for round_ in range(settings.rounds):
            # Each round starts with another one, so that none always runs after the same.
            shift = round_ % len(turns)
            for label, process, method, precision in turns[shift:] + turns[:shift]:
                answer = process.ask(method, precision)
                samples.setdefault(label, []).append(answer)
                _tell(name, label, answer)
    return samples


def _turns(ours, theirs, settings):
    turns = [
        ("decode", ours, "decode", "exact"),
        ("forward exact", ours, "forward", "exact"),
        ("engine exact", ours, "engine", "exact"),
        ("forward auto", ours, "forward", "auto"),
        ("engine auto", ours, "engine", "auto"),
    ]
    if settings.terratorch:
        turns += [
            ("terratorch defaults", theirs, "defaults", "exact"),
            ("terratorch best", theirs, "best", "auto"),
        ]
    return turns


def floors(samples, cores, gpu):
    """Wall and CPU of the engine over its floor, by precision.

    The floor on a CPU is the forward pass plus the CPU time of decoding divided by the cores; on
    a GPU the larger of the two. Its CPU time is that of the forward pass plus the decoding's.
    """

    def wall(decode, forward, engine):
        spread = decode["cpu"] / cores
        floor = max(forward["wall"], spread) if gpu else forward["wall"] + spread
        return engine["wall"] / floor

    def cpu(decode, forward, engine):
        return engine["cpu"] / (forward["cpu"] + decode["cpu"])

    return {
        precision: _ratios(
            samples, ("decode", f"forward {precision}", f"engine {precision}"), wall, cpu
        )
        for precision in ("exact", "auto")
    }


def over(samples, slow, fast):
    """How many times as fast ``fast`` is as ``slow``."""
    if slow not in samples:
        return None
    return _ratios(
        samples,
        (slow, fast),
        lambda a, b: a["wall"] / b["wall"],
        lambda a, b: a["cpu"] / b["cpu"],
    )


def _ratios(samples, labels, wall, cpu):
    """Medians of the rounds' ratios; and of wall times, that of the least disturbed samples."""
    rounds = list(zip(*(samples[label] for label in labels), strict=True))
    quiet = [min(samples[label], key=lambda sample: sample["others"]) for label in labels]
    return {
        "wall": round(median(wall(*row) for row in rounds), 3),
        "cpu": round(median(cpu(*row) for row in rounds), 3),
        "wall_quietest": round(wall(*quiet), 3),
    }


def flips(samples, one, other):
    """Share of pixels to which two contenders give different classes."""
    import numpy as np
    import rasterio

    if one not in samples or other not in samples:
        return None
    classes = []
    for label in (one, other):
        with rasterio.open(samples[label][-1]["result"]["output"]) as file:
            classes.append(file.read(1))
    return float(np.mean(classes[0] != classes[1]))


def measure_starts(name, settings):
    """Ours once over all tiles, theirs once for one tile, in turn."""
    place, count = settings.place, settings.tiles
    bundle, tiles = make_bundle(place, name), starts.scenes(settings.place, count, settings.tile)
    seconds = {"ours exact": [], "ours auto": [], "terratorch predict": []}
    for round_ in range(settings.rounds):
        seconds["ours exact"].append(starts.ours(bundle, tiles, place, "exact"))
        seconds["ours auto"].append(starts.ours(bundle, tiles, place, "auto"))
        start = starts.theirs(bundle, name, tiles, round_ % count, place)
        seconds["terratorch predict"].append(start)
        print(f"  starts: {[round(values[-1], 1) for values in seconds.values()]} s", flush=True)
    each = median(seconds["terratorch predict"])
    return {
        "tiles": count,
        "tile": settings.tile,
        "seconds": seconds,
        "exact": round(count * each / median(seconds["ours exact"]), 2),
        "auto": round(count * each / median(seconds["ours auto"]), 2),
    }


def measure_memory(settings):
    """The curve with a light model over all sizes."""
    return memory.curve(memory.light_bundle(settings.place), settings.memory, settings.place)


def make_bundle(place: Path, name: str) -> Path:
    """The bundle's folder, made in a process of its own where it is not there yet."""
    if not (place / name).exists():
        command = [sys.executable, "-m", "bench.models", str(place), name]
        subprocess.run(command, check=True, capture_output=True)
    return models.bundle(place, name)


def _tell(model, label, answer):
    print(
        f"  {model:13} {label:20} {answer['wall']:7.2f} s, CPU {answer['cpu']:7.2f} s, "
        f"others use {answer['others']:.1f} cores",
        flush=True,
    )
