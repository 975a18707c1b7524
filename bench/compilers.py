"""Compiled models against the engine's own forward pass: ``python -m bench.compilers``.

A TerraTorch model as the engine runs it, the same through ``torch.compile``, and
exported to ONNX through onnxruntime and OpenVINO. Each waits in a process of its own, set up
before; then they take short turns over the same patches of noise, by the engine's forward pass.
What counts are the CPU seconds, for they suffer least from what else runs on a machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench.models import OVERLAP, SIZE
from bench.worker import Worker

WAYS = ("eager", "onnxruntime", "openvino", "inductor")
_FLOAT32_ONLY = ("onnxruntime",)
_PIXELS = (SIZE - OVERLAP) ** 2  # of a scene that a patch adds


class Way:
    """One way to compute one model. Setting up includes all that is done only once."""

    def __init__(self, way, precision, name, place, batch):
        import torch

        from geostudio_dagster.prediction.forward import ForwardPlan

        # Compilers fix the number of threads; two workers of one thread are the engine's rule.
        torch.set_num_threads(1)
        self._place, self._name = Path(place), name
        self._bfloat16 = precision == "auto"
        self._plan = ForwardPlan("cpu", self._bfloat16, batch, workers=2, threads=1)
        self._pixels = np.random.default_rng(1).standard_normal(
            (batch, 6, SIZE, SIZE), dtype=np.float32
        )
        self._model = getattr(self, f"_{way}")()

    def start(self):
        """Seconds until the first outputs are there, from loaded weights on."""
        return {"scores": str(self._keep(self._run(2)))}

    def run(self, count):
        """``count`` patches."""
        self._run(max(2, count // self._plan.batch_size))
        return {"patches": max(2, count // self._plan.batch_size) * self._plan.batch_size}

    def _run(self, count):
        from geostudio_dagster.prediction.batches import Batch
        from geostudio_dagster.prediction.forward import ForwardPass
        from geostudio_dagster.prediction.report import StageClock

        batches = (Batch(self._pixels, used=len(self._pixels)) for _ in range(count))
        passing = ForwardPass(self._model, self._plan, StageClock("forward"))
        return [output for _, output in passing.over(batches)][-1].numpy()

    def _keep(self, scores):
        path = self._place / f"compilers-{os.getpid()}.npy"
        np.save(path, scores)
        return path

    def _bundle(self):
        from geostudio_dagster.models.bundle import load_bundle

        return load_bundle(self._place / self._name)

    def _eager(self):
        from geostudio_dagster.models.cache import loaded

        return loaded(self._bundle())

    def _onnxruntime(self):
        return self._onnx("onnxruntime")

    def _openvino(self):
        return self._onnx("openvino")

    def _onnx(self, engine):
        from geostudio_dagster.models.bundle import load_bundle
        from geostudio_dagster.models.cache import loaded

        return loaded(load_bundle(onnx_bundle(self._place, self._name)), onnx_engine=engine)

    def _inductor(self):
        import torch
        from torch._inductor import config

        config.freezing = True  # weights laid out once, normalisations folded
        model = self._eager()
        compiled = torch.compile(_giving_tensors(model.runtime.module), dynamic=False)
        return _with(model, lambda pixels: compiled(_channels_last(pixels)))


def _channels_last(pixels):
    import torch

    return pixels.contiguous(memory_format=torch.channels_last)


def _with(model, forward):
    """The same model, computed by ``forward``."""
    import dataclasses
    from types import SimpleNamespace

    return dataclasses.replace(
        model, runtime=SimpleNamespace(device="cpu", batch_size=None, forward=forward)
    )


def _giving_tensors(module):
    """The module with a tensor as output."""
    import torch

    from geostudio_dagster.models.runtime import as_tensor

    class Tensors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, pixels):
            return as_tensor(self.module(pixels))

    return Tensors().eval()


def onnx_bundle(place, name):
    """The bundle's folder, exported to ONNX where it is not there yet; takes any batch size."""
    import torch
    import yaml

    from geostudio_dagster.models.bundle import load_bundle
    from geostudio_dagster.models.cache import loaded

    folder = place / f"{name}-onnx"
    if folder.exists():
        return folder
    scratch = place / f".{name}-onnx"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    torch.onnx.export(
        _giving_tensors(loaded(load_bundle(place / name)).runtime.module),
        (torch.zeros(2, 6, SIZE, SIZE),),
        scratch / "model.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},),
        external_data=False,
        verbose=False,
    )
    manifest = yaml.safe_load((place / name / "bundle.yaml").read_text())
    del manifest["config"]
    manifest |= {"name": f"bench-{name}-onnx", "runtime": "onnx", "weights": "model.onnx"}
    (scratch / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    scratch.rename(folder)
    return folder


def measure(name, settings):
    """All ways in turn; the figures by way and precision."""
    contenders, figures = {}, {}
    with ExitStack() as stack:
        for way in settings.ways:
            for precision in settings.precisions:
                if precision == "auto" and way in _FLOAT32_ONLY:
                    continue
                label = f"{way} {precision}"
                contenders[label], figures[label] = _started(stack, way, precision, name, settings)
                print(f"  {name}: {label} {figures[label]}", flush=True)
        samples = {label: [] for label in contenders}
        for round_ in range(settings.rounds):
            turns = list(contenders)
            shift = round_ % len(turns)
            for label in turns[shift:] + turns[:shift]:
                answer = contenders[label].ask("run", settings.patches)
                patches = answer["result"]["patches"]
                samples[label].append(1000 * answer["cpu"] / patches)
    for label, values in samples.items():
        figures[label]["cpu_ms"] = round(statistics.median(values), 1)
        figures[label]["range"] = [round(min(values), 1), round(max(values), 1)]
    _pay_back(figures, samples)
    return figures


def _started(stack, way, precision, name, settings):
    """The contender, and what its start took; a compiler's twice, to see its cache at work."""
    shared = {"way": way, "precision": precision, "name": name, "place": str(settings.place)}
    shared["batch"] = settings.batch
    log = settings.place / f"compilers-{name}-{way}-{precision}.log"
    cache = settings.place / f"inductor-{name}-{way}-{precision}"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or its CPU seconds could not be told
    figures = {}
    if way == "inductor" and not settings.warm:
        shutil.rmtree(cache, ignore_errors=True)
        with Worker("way", log, **shared) as first:
            figures["cold_s"] = _seconds(first, first.ask("start"))
    worker = stack.enter_context(Worker("way", log, **shared))
    answer = worker.ask("start")
    figures["start_s"] = _seconds(worker, answer)
    scores = np.load(answer["result"]["scores"])
    Path(answer["result"]["scores"]).unlink()
    reference = settings.place / f"compilers-{name}-{settings.batch}.npy"
    if (way, precision) == ("eager", "exact"):
        np.save(reference, scores)
    if reference.exists():
        expected = np.load(reference)
        figures["largest_difference"] = float(np.abs(scores - expected).max())
        flips = scores.argmax(1) != expected.argmax(1)
        figures["flips_percent"] = round(100 * float(flips.mean()), 3)
    return worker, figures


def _seconds(worker, answer):
    """Seconds of setting up and of the first batches; of CPU and by the wall."""
    up = worker.set_up
    return {
        "cpu": round(up["cpu"] + answer["cpu"], 1),
        "wall": round(up["wall"] + answer["wall"], 1),
    }


def _pay_back(figures, samples):
    """Scene pixels from which on a compiler has saved what it took more than eager to start."""
    for label, found in figures.items():
        base = f"eager {label.split()[1]}"
        if base not in figures or label == base:
            continue
        pairs = zip(samples[label], samples[base], strict=True)
        found["over_eager"] = round(statistics.median(mine / own for mine, own in pairs), 3)
        saved = (figures[base]["cpu_ms"] - found["cpu_ms"]) / 1000
        for start in ("cold_s", "start_s"):
            if start in found and saved > 0:
                more = found[start]["cpu"] - figures[base]["start_s"]["cpu"]
                pays = round(max(0, more) / saved * _PIXELS / 1e6, 1)
                found[f"pays_back_mpx_{start[:-2]}"] = pays


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.compilers", description=__doc__)
    parser.add_argument("--models", default="unet,prithvi_tiny", help="see bench/models.py")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--precisions", default="exact,auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patches", type=int, default=24, help="of each turn")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--warm", action="store_true", help="compilers' caches stay as they are")
    parser.add_argument("--place", type=Path, default=Path(__file__).parent / "out")
    settings = parser.parse_args()
    settings.place = settings.place.resolve()
    settings.place.mkdir(parents=True, exist_ok=True)
    settings.ways = settings.ways.split(",")
    settings.precisions = settings.precisions.split(",")
    results = {}
    for name in settings.models.split(","):
        if not (settings.place / name).exists():
            command = [sys.executable, "-m", "bench.models", str(settings.place), name]
            subprocess.run(command, check=True, capture_output=True)
        results[name] = measure(name, settings)
    text = json.dumps({"date": time.strftime("%Y-%m-%d"), "models": results}, indent=2)
    (settings.place / "compilers.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
