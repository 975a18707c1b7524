"""What is measured. Each is set up once in a process of its own, then asked to run many times."""

import time
from pathlib import Path

import numpy as np

from bench.compilers import Way


class Ours:
    """The engine, and its floor: the forward pass of the same patches out of memory."""

    def __init__(self, bundle, scene, out, device):
        from geostudio_dagster.models.bundle import load_bundle
        from geostudio_dagster.models.cache import loaded
        from geostudio_dagster.models.conversion import keep_program
        from geostudio_dagster.prediction.forward import choose_device
        from geostudio_dagster.prediction.options import PredictOptions

        self._bundle = load_bundle(Path(bundle))
        self._scene, self._out = Path(scene), Path(out)
        self._device = choose_device(PredictOptions(device=device))
        # As in an installation: from the model's program, which is kept once.
        self._programs = self._out / "programs"
        keep_program(self._bundle, self._programs)
        self._model = loaded(self._bundle, self._device, programs=self._programs)
        self._pool = None

    def engine(self, precision):
        """From the file to the finished COG."""
        from geostudio_dagster.prediction import predict

        target = self._out / f"{self._bundle.manifest.name}-{precision}.tif"
        report = predict(
            self._scene, self._bundle, target, scratch=self._out, options=self._options(precision)
        )
        return report.as_dict() | {"output": str(target)}

    def prepare_forward(self):
        """Keep all patches in memory, normalised, as the engine's model sees them."""
        import torch

        from geostudio_dagster.prediction.batches import BatchReader
        from geostudio_dagster.prediction.forward import host_memory
        from geostudio_dagster.prediction.normalising import Normalisation
        from geostudio_dagster.prediction.panels import panels
        from geostudio_dagster.prediction.report import StageClock
        from geostudio_dagster.raster.patches import PatchGrid
        from geostudio_dagster.raster.scene import Scene

        patch = self._bundle.manifest.patch
        with Scene(self._scene, self._bundle.manifest) as scene:
            grid = PatchGrid(scene.height, scene.width, patch.size, patch.overlap, patch.trim)
            core = scene.core(None)
            reader = BatchReader(
                scene,
                grid,
                core,
                panels(grid, core, core.width),
                load=scene.block[0],
                batch_size=1,
                clock=StageClock("read"),
                room=np.empty,
            )
            normalise = Normalisation(scene.channels, 0.0)
            # Some more patches of zeros, so that the last batch is a full one, too.
            shape = len(scene.channels), patch.size, patch.size
            room = host_memory(self._device)
            self._pool = room((grid.count(core) + 64, *shape), np.dtype(np.float32))
            self._pool[-64:] = 0
            self._count = 0
            for batch in reader.batches():
                if batch.used:
                    self._pool[self._count] = normalise(torch.from_numpy(batch.pixels), None)[0]
                    self._count += 1
                reader.recycle(batch)
        return {"patches": self._count}

    def forward(self, precision):
        """The forward pass alone, with the engine's own settings."""
        from geostudio_dagster.prediction.forward import ForwardPass, plan_forward
        from geostudio_dagster.prediction.report import StageClock

        plan = plan_forward(self._options(precision), self._model)
        passing = ForwardPass(self._model, plan, StageClock("forward"))
        for _ in passing.over(self._batches(plan.batch_size)):
            pass
        return {"batch_size": plan.batch_size, "device": plan.device, "dtype": plan.dtype}

    def decode(self, precision):
        """Every block of the scene decoded once, by one thread."""
        import rasterio

        with rasterio.Env(GDAL_CACHEMAX=64 * 1024**2), rasterio.open(self._scene) as file:
            for _, window in file.block_windows(1):
                file.read(window=window)
        return {}

    def _batches(self, size):
        from geostudio_dagster.prediction.batches import Batch

        for start in range(0, self._count, size):
            used = min(size, self._count - start)
            yield Batch(self._pool[start : start + size], used=used)

    def _options(self, precision):
        from geostudio_dagster.prediction import PredictOptions

        return PredictOptions(device=self._device, precision=precision, programs=self._programs)


class TerraTorch:
    """``tiled_inference`` from the file to a class map, each step around it as cheap as it goes."""

    def __init__(self, bundle, scene, out, device):
        from geostudio_dagster.models.bundle import load_bundle
        from geostudio_dagster.models.terratorch import load_terratorch
        from geostudio_dagster.prediction.forward import choose_device
        from geostudio_dagster.prediction.options import PredictOptions

        self._bundle = load_bundle(Path(bundle))
        self._scene, self._out = Path(scene), Path(out)
        self._device = choose_device(PredictOptions(device=device))
        self._model = load_terratorch(self._bundle, self._device).module

    def defaults(self, precision):
        """Nothing but its defaults: 224 pixels, stride 192, batches of 16, float32."""
        return self._run("defaults", self._plain, {})

    def best(self, precision):
        """Batches of 4, channels last, bfloat16 where the device has it: its fastest here."""
        import torch

        from geostudio_dagster.prediction.forward import has_bfloat16

        kind, fast = self._device.partition(":")[0], has_bfloat16(self._device)

        def forward(pixels, **_):
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=fast):
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                return self._model(pixels).output.float()

        return self._run("best", forward, {"batch_size": 4})

    def _plain(self, pixels, **_):
        return self._model(pixels).output

    def _run(self, name, forward, arguments):
        import torch
        from terratorch.tasks.tiled_inference import tiled_inference

        pixels, profile = self._read()
        began = time.perf_counter()
        batch = torch.from_numpy(pixels)[None]
        scores = tiled_inference(forward, batch, out_channels=2, device=self._device, **arguments)
        seconds = time.perf_counter() - began
        classes = (scores[0, 1] > scores[0, 0]).to(torch.uint8).cpu().numpy()
        target = self._out / f"{self._bundle.manifest.name}-terratorch-{name}.tif"
        self._write(target, classes, profile)
        return {"output": str(target), "tiled_inference_seconds": seconds}

    def _read(self):
        """The scene, normalised in place: float32 (bands, height, width)."""
        import rasterio

        with rasterio.open(self._scene) as file:
            pixels = file.read(out_dtype="float32")
            profile = file.profile
        for plane, band in zip(pixels, self._bundle.manifest.bands, strict=True):
            np.subtract(plane, np.float32(band.mean), out=plane)
            np.multiply(plane, np.float32(1 / band.std), out=plane)
        return pixels, profile

    def _write(self, target, classes, profile):
        import rasterio

        changed = {"count": 1, "dtype": "uint8", "predictor": 1, "interleave": "band"}
        with rasterio.open(target, "w", **profile | changed) as file:
            file.write(classes, 1)


KINDS = {"ours": Ours, "terratorch": TerraTorch, "way": Way}
