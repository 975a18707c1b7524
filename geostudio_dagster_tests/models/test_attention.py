"""Transformers are told from other networks, however they were saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geostudio_dagster.models.attention import AttentionWatch

PIXELS = torch.randn(1, 8, 4, 4)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        return torch.softmax(tokens @ tokens.transpose(1, 2), -1)


class Fused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Classes(nn.Module):
    """A softmax over the classes of a map is no attention."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, 1)


SAVED: list[Callable[[nn.Module], Any]] = [
    lambda module: module,
    torch.jit.script,
    lambda module: torch.jit.trace(module, PIXELS),
    lambda module: torch.export.export(module, (PIXELS,)).module(),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("saved", SAVED, ids=["eager", "scripted", "traced", "exported"])
@pytest.mark.parametrize(
    ("network", "expected"), [(Attends, True), (Fused, True), (Classes, False)]
)
def test_a_transformer_is_known_by_what_it_runs(
    network: Callable[[], nn.Module], expected: bool, saved: Callable[[nn.Module], Any]
) -> None:
    module = saved(network().eval())
    with AttentionWatch() as watch, torch.inference_mode():
        module(PIXELS)
    assert watch.seen is expected
