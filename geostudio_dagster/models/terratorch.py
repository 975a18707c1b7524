"""TerraTorch tunes as GEOStudio leaves them: ``config_deploy.yaml`` and a Lightning checkpoint.

The model is built by TerraTorch's own task classes from the ``model`` section, as
``terratorch predict`` does, but without its command line, which can't take named bands.
"""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import torch
import yaml
from torch import nn

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.modules import TorchRuntime
from geostudio_dagster.models.torchvision_ops import ensure_torchvision

_DEFAULT_TASKS = {
    "segmentation": "SemanticSegmentationTask",
    "regression": "PixelwiseRegressionTask",
}
_TASKS = "terratorch.tasks"
_WEIGHTS = "model."
_UNKNOWN_CLASS = re.compile(r"GLOBAL ([\w.]+)")


def load_terratorch(bundle: Bundle, device: str) -> TorchRuntime:
    """Build the tune's network and put the checkpoint's weights into it.

    Raises:
        TaskError: ``model_unusable``, the configuration names something that isn't a task of
            TerraTorch, or the checkpoint's weights don't fit it.
    """
    path = bundle.config_path
    assert path is not None, "the manifest makes sure of config"  # noqa: S101
    section = _model_section(path)
    task = _build(section, bundle)
    network: nn.Module = task.model
    weights = dict(_network_weights(bundle.weights_path))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise TaskError(
            "model_unusable",
            f"{bundle.manifest.weights} does not fit the model in {path.name}: {detail}",
        ) from error
    return TorchRuntime(network.eval().to(device), InputSpec.of(bundle.manifest), device)


def _model_section(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text("utf-8"))
    section = document.get("model") if isinstance(document, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("init_args"), dict):
        raise TaskError(
            "model_unusable",
            f"{path.name} has no section model with class_path and init_args; "
            "use the configuration that the tune was made with.",
        )
    return section


def _build(section: dict[str, Any], bundle: Bundle) -> Any:
    default = f"{_TASKS}.{_DEFAULT_TASKS[bundle.manifest.task]}"
    class_path = str(section.get("class_path", default))
    module, _, name = class_path.rpartition(".")
    if module and module != _TASKS and not module.startswith(f"{_TASKS}."):
        # A configuration comes with a user's bundle: it may name tasks, not any class there is.
        raise TaskError(
            "model_unusable",
            f"{bundle.manifest.config} names {class_path}; only classes of {_TASKS} are built.",
        )
    ensure_torchvision()
    importlib.import_module("terratorch")
    lightning = importlib.import_module("lightning")
    task_class = getattr(importlib.import_module(module or _TASKS), name, None)
    if not (isinstance(task_class, type) and issubclass(task_class, lightning.LightningModule)):
        raise TaskError(
            "model_unusable", f"{bundle.manifest.config} names {class_path}, which is no task."
        )
    return task_class(**_without_downloads(section["init_args"]))


def _without_downloads(init_args: dict[str, Any]) -> dict[str, Any]:
    """The same arguments, with pretrained weights off: the checkpoint has all of them."""
    arguments = dict(init_args)
    model_args = dict(arguments.get("model_args") or {})
    for key, value in model_args.items():
        if key.endswith("pretrained") and value:
            model_args[key] = False
        elif key.endswith("ckpt_path"):
            model_args[key] = None
    arguments["model_args"] = model_args
    return arguments


def _network_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of the network from a Lightning checkpoint, without losses and metrics."""
    with torch.serialization.safe_globals(_harmless_classes()):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            # torch's own sentence advises to load it all the same.
            found = _UNKNOWN_CLASS.search(str(error))
            what = f"{found[1]}, " if found else "something "
            raise TaskError(
                "model_unusable",
                f"{path.name} holds {what}which is not loaded, for it could run any code; "
                "save the weights without it (state_dict alone is enough).",
            ) from error
    for name, tensor in checkpoint.get("state_dict", checkpoint).items():
        if name.startswith(_WEIGHTS):
            yield name.removeprefix(_WEIGHTS), tensor


def _harmless_classes() -> list[Any]:
    """Plain values that Lightning writes beside the weights: names of bands, paths."""
    bands = importlib.import_module("terratorch.datasets")
    names = ("HLSBands", "OpticalBands", "SARBands")
    known = [getattr(bands, name) for name in names if hasattr(bands, name)]
    return [*known, PosixPath, PurePosixPath]
