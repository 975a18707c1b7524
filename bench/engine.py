"""What ``python -m bench`` measures: contenders in turn, each sample kept at once."""

import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from bench import memory, models, starts
from bench.scenes import textured
from bench.worker import Worker

# Models, precisions, and whether their batches are calibrated, for which a scene must be larger.
_IN_MEMORY = (
    ("unet", "exact", False),
    ("unet", "auto", False),
    ("prithvi_tiny", "auto", False),
    ("prithvi_100", "exact", False),
    ("unet", "exact", True),
    ("prithvi_tiny", "auto", True),
)
_CALIBRATED = 4608


def measure_floor(case, settings, samples):
    """The engine and its floor: the forward pass of the same patches, and decoding alone."""
    with _Contenders(case, settings) as contenders:
        turns = []
        # A shard's run has one precision; to change it is to read the weights again.
        for precision in settings.precisions:
            ours = contenders.worker("ours", precision)
            ours.ask("prepare_forward")
            turns = turns or [("decode", ours, "decode", "exact")]
            turns.append((f"forward {precision}", ours, "forward", precision))
            turns.append((f"engine {precision}", ours, "engine", precision))
        contenders.take_turns("floor", turns, samples)


def measure_versus(case, settings, samples):
    """The engine and TerraTorch's ``tiled_inference``, from the same file to a class map."""
    with _Contenders(case, settings) as contenders:
        theirs = contenders.worker("terratorch")
        turns = [
            ("terratorch defaults", theirs, "defaults", "exact"),
            ("terratorch best", theirs, "best", "auto"),
        ]
        for precision in settings.precisions:
            ours = contenders.worker("ours", precision)
            turns.append((f"engine {precision}", ours, "engine", precision))
        contenders.take_turns("versus", turns, samples)
        for label in ("engine auto", "terratorch defaults", "terratorch best"):
            contenders.compare("versus", "engine exact", label, samples)


class _Contenders:
    """Warm processes that take turns over one scene with one model."""

    def __init__(self, case, settings):
        self._case, self._settings = case, settings
        name, _, size = case.partition("@")
        self._name = name
        self._bundle = make_bundle(settings.place, name)
        self._scene = textured(settings.place / f"scene-{size}.tif", int(size))
        self._stack = ExitStack()
        self._outputs = {}

    def __enter__(self):
        return self

    def __exit__(self, *details):
        return self._stack.__exit__(*details)

    def worker(self, kind, precision=""):
        """A process with the model loaded, for one precision if named."""
        place = self._settings.place
        shared = {"bundle": str(self._bundle), "scene": str(self._scene), "out": str(place)}
        log = place / f"{kind}{precision}-{self._name}.log"
        return self._stack.enter_context(
            Worker(kind, log, self._settings.patience, **shared, device=self._settings.device)
        )

    def take_turns(self, part, turns, samples):
        """All of them ``rounds`` times; each round starts with another one."""
        for round_ in range(self._settings.rounds):
            shift = round_ % len(turns)
            for label, process, method, precision in turns[shift:] + turns[:shift]:
                answer = process.ask(method, precision)
                samples.add(part, self._case, label, **answer)
                self._outputs[label] = answer["result"].get("output")
                print(
                    f"  {self._case:18} {label:20} {answer['wall']:7.2f} s, "
                    f"CPU {answer['cpu']:7.2f} s, others use {answer['others']:.1f} cores",
                    flush=True,
                )

    def compare(self, part, one, other, samples):
        """Keep the share of pixels to which two contenders gave different classes, if both ran."""
        if not {one, other} <= self._outputs.keys():
            return
        share = flips(Path(self._outputs[one]), Path(self._outputs[other]))
        samples.add(f"{part} flips", self._case, f"{other} against {one}", share=share)


def flips(one: Path, other: Path) -> float:
    """Share of pixels of different class."""
    import numpy as np
    import rasterio

    classes = []
    for path in (one, other):
        with rasterio.open(path) as file:
            classes.append(file.read(1))
    return float(np.mean(classes[0] != classes[1]))


def measure_starts(name, settings, samples):
    """Ours once over all tiles, theirs once for one tile, in turn, with squares of theirs.

    Each round begins with no program of the model: the first process of ours builds the network
    with TerraTorch and keeps the program at its end, the later ones start from that.
    """
    place, count = settings.place, settings.tiles
    programs = place / "programs"
    bundle = make_bundle(place, name, starts.OVERLAP)
    tiles = starts.scenes(place, count, settings.tile)
    case = f"{name}, {count} tiles of {settings.tile}"
    for round_ in range(settings.rounds):
        shutil.rmtree(programs, ignore_errors=True)
        first = settings.precisions[0]
        sample = starts.ours(bundle, tiles, place, first, programs)
        samples.add("starts", case, f"ours first {first}", **sample)
        for precision in settings.precisions:
            sample = starts.ours(bundle, tiles, place, precision, programs)
            samples.add("starts", case, f"ours {precision}", **sample)
        tile = round_ % count
        one, output = starts.theirs(bundle, name, tiles, tile, place)
        samples.add("starts", case, "terratorch predict", **one)
        share = flips(starts.output(place, first, tile), output)
        label = f"terratorch predict against engine {first}"
        samples.add("starts flips", case, label, share=share)
        found = samples.of("starts", case)
        last = {label: round(items[-1]["wall"], 1) for label, items in found.items()}
        print(f"  starts: {last} s", flush=True)


def measure_memory(settings, samples):
    """The curve with a light model over all sizes; U-Net and ViTs on one, and calibrated."""
    place = settings.place
    light = memory.light_bundle(place)
    for size in settings.memory:
        point = memory.sparse_point(light, size, place)
        samples.add("memory", "light", str(size), **point)
        print(f"  memory: light, {size}: {point['above_model_mb']} MB", flush=True)
    for name, precision, calibrate in _IN_MEMORY:
        size = _CALIBRATED if calibrate else 2048
        scene = textured(place / f"scene-{size}.tif", size)
        bundle = make_bundle(place, name)
        point = memory.point(bundle, scene, size, place, precision, calibrate=calibrate)
        case = f"{name} {precision}{', calibrated' * calibrate}"
        samples.add("memory", case, str(size), **point)
        print(f"  memory: {case}, {size}: {point['above_model_mb']} MB", flush=True)


def make_bundle(place: Path, name: str, overlap: int = models.OVERLAP) -> Path:
    """The bundle's folder, made in a process of its own where it is not there yet."""
    command = [sys.executable, "-m", "bench.models", str(place), name, str(overlap)]
    subprocess.run(command, check=True, capture_output=True)
    return models.bundle(place, name, overlap)
