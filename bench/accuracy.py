"""What precision and patch size change in a class map: shares of pixels, not times."""

from pathlib import Path

from bench.engine import flips, make_bundle
from bench.scenes import textured

_SIDE = 1024
_PATCHES = ((224, 32), (256, 64), (384, 64), (512, 64), (768, 64))


def measure_precision(settings, samples):
    """Flips of auto against exact: the demo model on the demo's scenes; a U-Net on real ones.

    Each of the real scenes is read with a random U-Net of as many bands as it has, normalised by
    the scene's own statistics.
    """
    from geostudio_dagster.demo.model import demo_bundle
    from geostudio_dagster.demo.scenes import spyndex_scene, synthetic_scene

    place = settings.place
    demo = demo_bundle(place / "demo-model").folder
    real = spyndex_scene(place / "demo-real.tif")
    _precision("demo model", demo, real, place, samples)
    made = synthetic_scene(place / "demo-made-up.tif", 2048)
    _precision("demo model", demo, made, place, samples)
    for scene in map(Path, settings.scenes):
        bundle = _fitted(place, scene)
        _precision("random U-Net", bundle, scene, place, samples)


def _precision(name, bundle, scene, place, samples):
    targets = [_predicted(bundle, scene, place, precision=each) for each in ("exact", "auto")]
    share = flips(*targets)
    samples.add("precision", f"{name} on {scene.name}", "auto against exact", share=share)
    print(f"  precision: {name} on {scene.name}: {share:.4%} of the pixels flip", flush=True)


def _fitted(place: Path, scene: Path) -> Path:
    """A random U-Net for a scene's bands, its two classes about balanced on it."""
    import rasterio

    from bench import models
    from geostudio_dagster.models.torchvision_ops import ensure_torchvision

    with rasterio.open(scene) as file:
        pixels = file.read(out_dtype="float32", masked=True).filled(0)
    ensure_torchvision()  # for segmentation_models_pytorch
    return models.fitted(place / f"unet-{scene.stem}", pixels)


def measure_patches(settings, samples):
    """Flips against one forward pass of the whole scene, for a field larger than any patch."""
    import numpy as np
    import rasterio
    import torch

    from geostudio_dagster.models.bundle import load_bundle
    from geostudio_dagster.models.cache import loaded

    place = settings.place
    folder = make_bundle(place, "unet")
    bundle = load_bundle(folder)
    scene = textured(place / f"scene-{_SIDE}.tif", _SIDE)
    model = loaded(bundle, "cpu")
    torch.set_float32_matmul_precision("highest")
    with rasterio.open(scene) as file:
        pixels = file.read(out_dtype="float32")
    bands = bundle.manifest.bands
    pixels -= np.array([band.mean for band in bands], np.float32)[:, None, None]
    pixels *= np.array([1 / band.std for band in bands], np.float32)[:, None, None]
    with torch.inference_mode():
        scores = model(torch.from_numpy(pixels)[None])[0]
    whole = (scores[1] > scores[0]).numpy()
    for patch, overlap in _PATCHES:
        target = _predicted(folder, scene, place, patch=patch, overlap=overlap, trim=8)
        with rasterio.open(target) as file:
            share = float(np.mean(file.read(1) != whole))
        samples.add("patches", "unet against the whole scene", f"{patch}/{overlap}", share=share)
        print(f"  patches: {patch}/{overlap}: {share:.4%} of the pixels flip", flush=True)


def _predicted(folder, scene, place, **options):
    from geostudio_dagster.models.bundle import load_bundle
    from geostudio_dagster.prediction import PredictOptions, predict

    target = place / f"accuracy-{'-'.join(str(value) for value in options.values())}.tif"
    predict(scene, load_bundle(folder), target, scratch=place, options=PredictOptions(**options))
    return target
