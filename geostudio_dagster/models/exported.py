"""Models that carry their own graph: TorchScript archives and torch.export programs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from geostudio_dagster.models.bundle import Bundle


def load_scripted(bundle: Bundle, device: str) -> tuple[nn.Module, int | None]:
    """A TorchScript archive; takes any batch size."""
    with warnings.catch_warnings():
        # torch deprecates TorchScript, but users have such files.
        warnings.simplefilter("ignore", DeprecationWarning)
        path = str(bundle.weights_path)
        module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    return module.eval(), None


def load_exported(bundle: Bundle, device: str) -> tuple[nn.Module, int | None]:
    """A torch.export program, and its batch size if it was exported with a fixed one."""
    program = torch.export.load(str(bundle.weights_path))
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module(), _batch_size(program)


def _batch_size(program: torch.export.ExportedProgram) -> int | None:
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            size: Any = node.meta["val"].shape[0]
            return size if isinstance(size, int) else None
    return None
