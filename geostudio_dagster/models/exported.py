"""Models that carry their own graph: TorchScript archives and torch.export programs."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.modules import TorchRuntime


def load_scripted(bundle: Bundle, device: str) -> TorchRuntime:
    """A TorchScript archive; takes any batch size."""
    with warnings.catch_warnings():
        # torch deprecates TorchScript, but users have such files.
        warnings.simplefilter("ignore", DeprecationWarning)
        path = str(bundle.weights_path)
        module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    return TorchRuntime(module.eval(), InputSpec.of(bundle.manifest), device)


def load_exported(bundle: Bundle, device: str) -> TorchRuntime:
    """A torch.export program; it may have been exported with a fixed batch size."""
    _refuse_pickles(bundle.weights_path)
    program = torch.export.load(str(bundle.weights_path))
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    spec = InputSpec.of(bundle.manifest)
    return TorchRuntime(program.module(), spec, device, _batch_size(program))


def _batch_size(program: torch.export.ExportedProgram) -> int | None:
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            size: Any = node.meta["val"].shape[0]
            return size if isinstance(size, int) else None
    return None


def _refuse_pickles(path: Path) -> None:
    """Make sure that loading a torch.export archive runs no code out of it.

    Its loader unpickles whatever the archive says is pickled, and what is not plain tensors.

    Raises:
        ValueError: the archive has such a part.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise ValueError("the archive has two parts of the same name")
        for name in names:
            if "/aotinductor/" in name:
                raise ValueError(f"the archive has compiled code ({name}); export it without")
            if name.endswith("_config.json") and _says_pickle(json.loads(archive.read(name))):
                raise ValueError(f"the archive has pickled objects ({name}); export plain tensors")
            if name.endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def _says_pickle(node: Any) -> bool:
    if isinstance(node, dict):
        return bool(node.get("use_pickle")) or any(_says_pickle(item) for item in node.values())
    return isinstance(node, list) and any(_says_pickle(item) for item in node)
