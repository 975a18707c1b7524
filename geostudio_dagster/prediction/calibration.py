"""Batch size, workers and threads by a short measurement, kept per model and machine.

The rule in :func:`forward.plan_forward` suits most; this finds what suits better, once. Only
what leaves a result the same is measured: batch size, workers and threads move a float by
rounding alone (1e-5), a class not at all. The choice is read from its file from then on, so the
same work gives the same bytes, tags included, for as long as the file is there.

Shards of one request may run on machines of different kinds, each of which measures for itself.
Their pixels still agree as above; their tags tell which machine chose what. Where all files are
to be alike to the byte, name batch size, workers and threads, or don't calibrate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geostudio_dagster.cores import instruction_sets, usable_cores
from geostudio_dagster.models.memory import give_back_memory, is_out_of_memory
from geostudio_dagster.models.runtime import Model
from geostudio_dagster.prediction.batches import Batch
from geostudio_dagster.prediction.forward import ForwardPass, ForwardPlan, host_memory
from geostudio_dagster.prediction.options import PredictOptions
from geostudio_dagster.prediction.report import StageClock, peak_rss

# Patches from which on measuring pays back. By count, not by time: whether a task is calibrated
# must not depend on how busy the machine is.
LEAST_PATCHES = 500
_BUDGET_S = 10.0
_BATCHES = {"cpu": (1, 2, 4, 8, 16), "cuda": (8, 16, 32, 64, 128)}
_LONG_S = 2.0  # what takes longer is measured once, and cold
_ROUNDS = 6  # batches that each worker computes to measure a plan, at most
_BETTER = 0.95  # of the rule's time: less may be chance, and the rule is proven
# That forward passes may take on a processor: beside the pixels in flight, 300 MB are to do.
_MOST_BYTES = 160 * 1024**2
_MOST_GPU = 0.8  # of what a GPU's memory has left for it

# Seconds per patch of a plan.
Measure = Callable[[ForwardPlan], float]


def calibrated(
    rule: ForwardPlan,
    options: PredictOptions,
    model: Model,
    *,
    folder: Path,
    digest: str,
    shape: tuple[int, int, int],
    alone: AbstractContextManager[None],
) -> ForwardPlan:
    """The best plan for ``model`` here: as measured before, or measured now and kept.

    Args:
        rule: what holds without measuring; the answer differs from it where that pays.
        options: what the caller chose stays as it is.
        model: the loaded model.
        folder: where measurements are kept; made if need be.
        digest: the bundle's.
        shape: planes, height and width of a patch.
        alone: in its body no other prediction of this process computes.
    """
    key = _key(rule, options, model, digest, shape)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder / f"{name[:32]}.json"
    found = _read(path)
    if found is None:
        with alone:
            found = _read(path) or _measured(rule, options, model, path, key)
    return dataclasses.replace(rule, **found["choice"], calibrated=True)


def _measured(
    rule: ForwardPlan, options: PredictOptions, model: Model, path: Path, key: dict[str, Any]
) -> dict[str, Any]:
    seconds = search(rule, _free(options, model), _measuring(model, key["patch"]))
    choice = best(rule, seconds)
    return _settle(path, key | {"choice": _chosen(choice), "measured": _table(seconds)})


def search(
    rule: ForwardPlan, free: frozenset[str], measure: Measure, budget: float = _BUDGET_S
) -> dict[ForwardPlan, float]:
    """Seconds per patch of the rule and of other plans, as many as there is time for.

    Batch sizes first, upwards from the rule's and then downwards, until one is slower than
    before; then other shares of workers and threads with the best of them. ``measure`` says
    infinity for what doesn't fit into memory.
    """
    ends = time.monotonic() + budget
    seconds = {rule: measure(rule)}

    def tried(plan: ForwardPlan) -> float:
        if plan not in seconds:
            seconds[plan] = measure(plan)
        return seconds[plan]

    if "batch_size" in free:
        kind = rule.device.partition(":")[0]
        fits = np.isfinite(seconds[rule])
        above = [size for size in _BATCHES[kind] if size > rule.batch_size and fits]
        below = [size for size in reversed(_BATCHES[kind]) if size < rule.batch_size]
        for sizes in (above, below):
            before = seconds[rule]
            for size in sizes:
                expected = _ROUNDS * rule.workers * size * before if np.isfinite(before) else 0.0
                if time.monotonic() + expected > ends:
                    break
                now = tried(dataclasses.replace(rule, batch_size=size))
                if now > before:
                    break
                before = now
    if {"workers", "threads"} <= free:
        start = best(rule, seconds)
        for workers in _shares(start):
            plan = dataclasses.replace(
                start, workers=workers, threads=max(usable_cores() // workers, 1)
            )
            if time.monotonic() + _ROUNDS * workers * plan.batch_size * seconds[start] < ends:
                tried(plan)
    return seconds


def best(rule: ForwardPlan, seconds: dict[ForwardPlan, float]) -> ForwardPlan:
    """The plan of least seconds, if it is clearly better than the rule; else the rule."""
    first = min(seconds, key=seconds.__getitem__)
    return first if seconds[first] < _BETTER * seconds[rule] else rule


def _shares(plan: ForwardPlan) -> list[int]:
    """Other numbers of workers that the cores may be shared among."""
    if plan.device.startswith("cuda"):
        return []
    cores = usable_cores()
    return [n for n in (1, 2, 4, cores // 2, cores) if 1 <= n <= min(cores, 16)]


def _free(options: PredictOptions, model: Model) -> frozenset[str]:
    """What may be chosen: neither the caller nor the model has."""
    names = {name for name in ("workers", "threads") if getattr(options, name) is None}
    if options.batch_size is None and model.batch_size is None:
        names.add("batch_size")
    return frozenset(names)


def _measuring(model: Model, shape: tuple[int, int, int]) -> Measure:
    """Measures plans by the real forward pass over noise: warmed up, then the lesser of two."""
    torch.cuda.empty_cache()  # does nothing where there is no GPU
    start, room = peak_rss(), _memory_left(model.device)
    flying, grown = 1, 0  # most patches at a time so far, and bytes that they took

    def measure(plan: ForwardPlan) -> float:
        nonlocal flying, grown
        gpu = plan.device.startswith("cuda")
        patches = plan.workers * plan.batch_size
        if not gpu and grown * patches / flying > _MOST_BYTES:
            return float("inf")  # not even to try: the peak would stay with the process
        took, count = _timed(model, plan, shape, plan.workers), plan.workers
        if took < _LONG_S:
            count = 2 * plan.workers
            took = min(_timed(model, plan, shape, count) for _ in range(2))
        left = _memory_left(plan.device)
        # Or the next plan, and the prediction after it, would have theirs beside what this left.
        give_back_memory()
        torch.cuda.empty_cache()
        if gpu and left < (1 - _MOST_GPU) * room:
            return float("inf")
        if not gpu and patches > flying:
            flying, grown = patches, peak_rss() - start
        return took / (count * plan.batch_size)

    return measure


def _memory_left(device: str) -> int:
    """Bytes that a GPU has left; what torch keeps for later counts as taken."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else 0


def _timed(model: Model, plan: ForwardPlan, shape: tuple[int, int, int], count: int) -> float:
    """Seconds for ``count`` batches; infinity where memory does not do for one as a whole."""
    room = host_memory(plan.device)
    pixels = [
        room((plan.batch_size, *shape), np.dtype(np.float32))
        for _ in range(min(count, plan.workers + 1))
    ]
    for number, item in enumerate(pixels):
        item[...] = np.random.default_rng(number).standard_normal(item.shape, dtype=np.float32)

    def batches(count: int) -> Iterator[Batch]:
        for number in range(count):
            yield Batch(pixels[number % len(pixels)], used=plan.batch_size)

    passing = ForwardPass(model, plan, StageClock("forward"))
    try:
        with model.expecting(passing.coming, first=True):
            deque(passing.over(batches(1)), maxlen=0)  # weights are packed for these from here on
            began = time.perf_counter()
            deque(passing.over(batches(count)), maxlen=0)
            took = time.perf_counter() - began
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return float("inf")
    return took if passing.fits == plan.batch_size else float("inf")


def _key(
    rule: ForwardPlan,
    options: PredictOptions,
    model: Model,
    digest: str,
    shape: tuple[int, int, int],
) -> dict[str, Any]:
    """All that the best choice depends on."""
    device = "cpu"
    if rule.device.startswith("cuda"):
        device = torch.cuda.get_device_name(rule.device)
    return {
        "model": digest,
        "patch": shape,
        "engine": model.engine,
        "dtype": rule.dtype,
        "tuning": str(model.tuning),
        "device": device,
        "processor": f"{_processor()}, {instruction_sets()}",  # machines may hide its number
        "cores": usable_cores(),
        "torch": torch.__version__,
        "given": [options.batch_size, options.workers, options.threads],
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        line = next(line for line in lines if line.startswith("model name"))
        return line.partition(":")[2].strip()
    return f"{platform.machine()} {platform.processor()}"


def _chosen(plan: ForwardPlan) -> dict[str, int]:
    return {"batch_size": plan.batch_size, "workers": plan.workers, "threads": plan.threads}


def _table(seconds: dict[ForwardPlan, float]) -> list[dict[str, float | None]]:
    return [
        {**_chosen(plan), "ms_per_patch": round(1000 * value, 3) if np.isfinite(value) else None}
        for plan, value in seconds.items()
    ]


def _read(path: Path) -> dict[str, Any] | None:
    """What was measured, or None where nothing (or nothing that can be read) is kept."""
    try:
        found = json.loads(path.read_text("utf-8"))
        choice = {name: int(found["choice"][name]) for name in ("batch_size", "workers", "threads")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"choice": choice} if min(choice.values()) >= 1 else None


def _settle(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Keep the measurement. Of several processes that measured at once, the first one's holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(document, indent=2), "utf-8")
        try:
            os.link(scratch, path)
        except FileExistsError:
            earlier = _read(path)
            if earlier is not None:
                return earlier
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return document
