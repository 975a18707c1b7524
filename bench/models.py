"""Models to measure with: TerraTorch tunes with random weights, made offline, kept in a folder."""

import shutil
import sys
from pathlib import Path

import numpy as np
import yaml

from bench.scenes import BANDS, MEANS, STDS, sample

SIZE, OVERLAP, TRIM = 224, 32, 8
_TASK = "terratorch.tasks.SemanticSegmentationTask"


def _unet():
    return {
        "model_factory": "SMPModelFactory",
        "model_args": {
            "model": "Unet",
            "backbone": "resnet18",
            "bands": list(range(6)),
            "in_channels": 6,
            "num_classes": 2,
            "pretrained": False,
        },
    }


def _prithvi(backbone, last):
    return {
        "model_factory": "EncoderDecoderFactory",
        "model_args": {
            "backbone": backbone,
            "backbone_pretrained": False,
            "backbone_bands": list(range(6)),
            "backbone_num_frames": 1,
            "backbone_img_size": SIZE,
            "necks": [
                {"name": "SelectIndices", "indices": [last]},
                {"name": "ReshapeTokensToImage"},
            ],
            "decoder": "FCNDecoder",
            "decoder_channels": 32,
            "num_classes": 2,
        },
    }


MODELS = {
    "unet": _unet,
    "prithvi_tiny": lambda: _prithvi("prithvi_eo_tiny", -1),
    "prithvi_100": lambda: _prithvi("prithvi_eo_v1_100", -1),
    "prithvi_300": lambda: _prithvi("prithvi_eo_v2_300", -1),
}


def init_args(name):
    """Arguments of TerraTorch's task, as they stand in a tune's configuration."""
    return MODELS[name]() | {"loss": "ce", "ignore_index": -1}


def bundle(folder: Path, name: str, overlap: int = OVERLAP) -> Path:
    """The bundle's folder. Making it imports TerraTorch; do it in a process of its own."""
    place = folder / (name if overlap == OVERLAP else f"{name}-{overlap}")
    if place.exists():
        return place
    scratch = folder / f".{place.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    _save_checkpoint(scratch / "state.ckpt", name)
    config = {"model": {"class_path": _TASK, "init_args": init_args(name)}}
    (scratch / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = {
        "name": f"bench-{place.name}".replace("_", "-"),
        "runtime": "terratorch",
        "weights": "state.ckpt",
        "config": "config.yaml",
        "task": "segmentation",
        "bands": [
            {"name": band, "mean": mean, "std": std}
            for band, mean, std in zip(BANDS, MEANS, STDS, strict=True)
        ],
        "patch": {"size": SIZE, "overlap": overlap, "trim": TRIM},
        "classes": [
            {"value": 0, "name": "no", "colour": "#dddddd"},
            {"value": 1, "name": "yes", "colour": "#1f78b4"},
        ],
    }
    (scratch / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    scratch.rename(place)
    return place


def fitted(place: Path, pixels) -> Path:
    """A random U-Net for these pixels, float32 (bands, height, width), as a TorchScript bundle.

    Normalised by the pixels' own statistics, its two classes about as frequent on them.
    """
    import segmentation_models_pytorch as smp
    import torch

    if place.exists():
        return place
    place.mkdir()
    bands = len(pixels)
    means, stds = pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2)) + 1e-6
    torch.manual_seed(1)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=bands, classes=2).eval()
    side = min(SIZE, 32 * (min(pixels.shape[1:]) // 32))
    part = (pixels - means[:, None, None]) / stds[:, None, None]
    given = torch.from_numpy(np.ascontiguousarray(part[None, :, :side, :side], np.float32))
    with torch.inference_mode():
        scores = network(given)[0]
    network.segmentation_head[0].bias.data[1] -= (scores[1] - scores[0]).median().clone()
    torch.jit.trace(network, given).save(str(place / "model.pt"))
    manifest = {
        "name": f"bench-{place.name}".replace("_", "-"),
        "runtime": "torchscript",
        "weights": "model.pt",
        "task": "segmentation",
        "bands": [
            {"name": f"B{number}", "index": number, "mean": float(mean), "std": float(std)}
            for number, (mean, std) in enumerate(zip(means, stds, strict=True))
        ],
        "patch": {"size": side, "overlap": OVERLAP, "trim": TRIM},
        "classes": [{"value": n, "name": str(n), "colour": f"#0000{n}0"} for n in range(2)],
    }
    (place / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    return place


def _save_checkpoint(path, name):
    from geostudio_dagster.models.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.trainer.connectors import checkpoint_connector
    from terratorch.tasks import SemanticSegmentationTask

    torch.manual_seed(1)
    task = SemanticSegmentationTask(**init_args(name)).eval()
    _balance(task.model)
    # Omegaconf may not import: it and Dagster want different versions of antlr4.
    checkpoint_connector._OMEGACONF_AVAILABLE = False
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=1)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    # The command line of TerraTorch stumbles over the arguments that Lightning keeps in it.
    checkpoint = torch.load(path, weights_only=False)
    checkpoint.pop("hyper_parameters", None)
    torch.save(checkpoint, path)


def _balance(network):
    """Shift the last bias so that both classes are as frequent, or no class could ever flip."""
    import torch

    last = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.out_channels == 2][
        -1
    ]
    pixels = (sample(SIZE) - np.reshape(MEANS, (6, 1, 1))) / np.reshape(STDS, (6, 1, 1))
    with torch.inference_mode():
        scores = network(torch.from_numpy(pixels.astype(np.float32))[None]).output[0]
    last.bias.data[1] -= (scores[1] - scores[0]).median()


if __name__ == "__main__":
    bundle(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
