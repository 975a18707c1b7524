"""Tunes as GEOStudio leaves them, made with TerraTorch itself: random weights, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.models.torchvision_ops import ensure_torchvision

SIZE = 64
BANDS = ("BLUE", "GREEN", "RED", "NIR_NARROW")
MEANS, STDS = (500.0, 700.0, 650.0, 2500.0), (300.0, 310.0, 400.0, 900.0)
DATA = {
    "segmentation": "GenericNonGeoSegmentationDataModule",
    "regression": "GenericNonGeoPixelwiseRegressionDataModule",
}
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
