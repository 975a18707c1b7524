"""Tunes as GEOStudio leaves them, made with TerraTorch itself: random weights, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.models.torchvision_ops import ensure_torchvision

SIZE = 64
BANDS = ("BLUE", "GREEN", "RED", "NIR_NARROW")
MEANS, STDS = (500.0, 700.0, 650.0, 2500.0), (300.0, 310.0, 400.0, 900.0)
DATA = {
    "segmentation": "GenericNonGeoSegmentationDataModule",
    "regression": "GenericNonGeoPixelwiseRegressionDataModule",
}
OPTICAL, RADAR = BANDS, ("VV", "VH")
SENSORS = [
    *({"name": name, "modality": "S2L2A", "mean": 1000, "std": 500} for name in OPTICAL),
    *({"name": name, "modality": "S1GRD", "mean": -12, "std": 5} for name in RADAR),
]
CKPT = "best_state_dict_epoch7.ckpt"


def init_args(task: str, dates: int) -> dict[str, Any]:
    """Arguments of the task, as they stand in the configuration of a tune."""
    model_args = {
        "backbone": "prithvi_eo_tiny",
        "backbone_pretrained": True,  # which would download; the checkpoint has the weights
        "backbone_bands": list(BANDS),
        "backbone_num_frames": dates,
        "backbone_img_size": SIZE,
        "necks": [
            {"name": "SelectIndices", "indices": [-1]},
            {"name": "ReshapeTokensToImage", "effective_time_dim": dates},
        ],
        "decoder": "FCNDecoder",
        "decoder_channels": 16,
    }
    arguments: dict[str, Any] = {"model_factory": "EncoderDecoderFactory", "model_args": model_args}
    if task == "segmentation":
        model_args["num_classes"] = 3
        return arguments | {"loss": "ce", "class_weights": [0.2, 0.3, 0.5], "ignore_index": -1}
    return arguments | {"loss": "rmse"}


def make_tune(folder: Path, task: str, dates: int = 1) -> tuple[Bundle, Any]:
    """A bundle and the TerraTorch task that it was saved from."""
    ensure_torchvision()
    import terratorch.tasks
    from lightning.pytorch import Trainer
    from lightning.pytorch.trainer.connectors import checkpoint_connector
    from terratorch.datasets import HLSBands

    name = {"segmentation": "SemanticSegmentationTask", "regression": "PixelwiseRegressionTask"}[
        task
    ]
    arguments = init_args(task, dates)
    # The command line turns names into HLSBands, which then stand in the checkpoint too.
    built = {"backbone_pretrained": False, "backbone_bands": [HLSBands(band) for band in BANDS]}
    torch.manual_seed(1)
    module = getattr(terratorch.tasks, name)(
        **arguments | {"model_args": arguments["model_args"] | built}
    )
    # Omegaconf may not import: it and Dagster want different versions of antlr4. Nothing here
    # is one of its containers, which is all that Lightning would look for.
    checkpoint_connector._OMEGACONF_AVAILABLE = False
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=1)
    trainer.strategy.connect(module)
    folder.mkdir()
    trainer.save_checkpoint(folder / CKPT)
    config = {"model": {"class_path": f"terratorch.tasks.{name}", "init_args": arguments}}
    (folder / "config_deploy.yaml").write_text(yaml.safe_dump(config))
    _write_manifest(folder, task, dates)
    return load_bundle(folder), module.eval()


def make_upload(folder: Path, task: str = "segmentation", dates: int = 1) -> Path:
    """A folder with what GEOStudio's users have of a tune: a whole configuration, a checkpoint."""
    make_tune(folder, task, dates)
    (folder / "bundle.yaml").unlink()
    path = folder / "config_deploy.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"]["tiled_inference_parameters"] = {
        "h_crop": SIZE,
        "w_crop": SIZE,
        "h_stride": SIZE - 16,
        "w_stride": SIZE - 16,
        "average_patches": True,
    }
    config["data"] = {
        "class_path": f"terratorch.datamodules.{DATA[task]}",
        "init_args": {"means": list(MEANS), "stds": list(STDS), "dataset_bands": list(BANDS)},
    }
    path.write_text(yaml.safe_dump(config))
    return folder


def make_terramind(folder: Path) -> tuple[Bundle, Any]:
    """A TerraMind of random weights as a tune leaves it, and TerraTorch's own task."""
    model_args = {
        "backbone": "terramind_v1_tiny",
        "backbone_pretrained": False,
        "backbone_modalities": ["S2L2A", "S1GRD"],
        "backbone_bands": {"S2L2A": list(OPTICAL), "S1GRD": list(RADAR)},
        "backbone_img_size": SIZE,
        "necks": [
            {"name": "SelectIndices", "indices": [-1]},
            {"name": "ReshapeTokensToImage", "remove_cls_token": False},
        ],
        "decoder": "FCNDecoder",
        "decoder_channels": 16,
    }
    return make_segmentation(folder, "EncoderDecoderFactory", model_args, SENSORS)


def make_unet(folder: Path) -> tuple[Bundle, Any]:
    """A U-Net of random weights, with batch normalisations unlike fresh ones."""
    model_args = {
        "model": "Unet",
        "backbone": "resnet18",
        "bands": list(BANDS),
        "in_channels": len(BANDS),
        "pretrained": False,
    }
    bands = [
        {"name": name, "mean": mean, "std": std}
        for name, mean, std in zip(BANDS, MEANS, STDS, strict=True)
    ]
    return make_segmentation(folder, "SMPModelFactory", model_args, bands)


class LastFeatures(nn.Module):
    """A decoder, as TerraTorch wants one, that gives back the last of the features."""

    includes_head = False

    def __init__(self, embed_dim: list[int]) -> None:
        super().__init__()
        self.out_channels = embed_dim[-1]

    def forward(self, features: list[Tensor]) -> Tensor:
        return features[-1]


def make_with_decoder(folder: Path, decoder: type[LastFeatures]) -> Bundle:
    """A tune whose network ends in a decoder of ours."""
    ensure_torchvision()
    from terratorch.registry import TERRATORCH_DECODER_REGISTRY

    TERRATORCH_DECODER_REGISTRY.register(decoder)
    model_args = {
        "backbone": "prithvi_eo_tiny",
        "backbone_pretrained": False,
        "backbone_bands": list(BANDS),
        "backbone_img_size": SIZE,
        "necks": [
            {"name": "SelectIndices", "indices": [-1]},
            {"name": "ReshapeTokensToImage"},
        ],
        "decoder": decoder.__name__,
    }
    bands = [{"name": name} for name in BANDS]
    return make_segmentation(folder, "EncoderDecoderFactory", model_args, bands)[0]


def make_segmentation(
    folder: Path, factory: str, model_args: dict[str, Any], bands: list[dict[str, Any]]
) -> tuple[Bundle, Any]:
    """A tune of three classes, its checkpoint a plain state_dict, and TerraTorch's own task."""
    ensure_torchvision()
    import terratorch.tasks

    init_args = {"model_factory": factory, "loss": "ce", "model_args": model_args}
    model_args["num_classes"] = 3
    torch.manual_seed(3)
    task = terratorch.tasks.SemanticSegmentationTask(**init_args).eval()
    for part in task.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(part.running_mean, -0.5, 0.5)
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": task.state_dict()}, folder / "tune.ckpt")
    told = {key: True if key.endswith("pretrained") else value for key, value in model_args.items()}
    section = {"class_path": "terratorch.tasks.SemanticSegmentationTask"}
    section |= {"init_args": init_args | {"model_args": told}}  # pretrained is not obeyed
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": section}))
    manifest = {
        "name": "tune",
        "runtime": "terratorch",
        "weights": "tune.ckpt",
        "config": "config.yaml",
        "task": "segmentation",
        "bands": bands,
        "patch": {"size": SIZE, "overlap": 16, "trim": 4},
        "classes": [{"value": n, "name": f"c{n}", "colour": f"#0000{n}0"} for n in range(3)],
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    return load_bundle(folder), task


def _write_manifest(folder: Path, task: str, dates: int) -> None:
    manifest: dict[str, Any] = {
        "name": "tune",
        "runtime": "terratorch",
        "weights": CKPT,
        "config": "config_deploy.yaml",
        "task": task,
        "dates": dates,
        "bands": [
            {"name": name, "mean": mean, "std": std}
            for name, mean, std in zip(BANDS, MEANS, STDS, strict=True)
        ],
        "patch": {"size": SIZE, "overlap": 16, "trim": 4},
    }
    if task == "segmentation":
        manifest["classes"] = [
            {"value": n, "name": f"class {n}", "colour": f"#0000{n}0"} for n in range(3)
        ]
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
