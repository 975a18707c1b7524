"""Which networks a graph can stand for, and what a graph may name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.conversion import UnconvertibleError, graph_of
from geostudio_dagster.models.graph import Graph, UnwritableError, built


class Counting(nn.Module):
    """Changes a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class Chance(nn.Module):
    """Gives something else each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Whole(nn.Module):
    """Takes batches of 2 only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, -1).reshape(x.shape)


@pytest.mark.parametrize("network", [Counting(), Chance(), Whole()])
def test_networks_that_no_program_can_stand_for_are_told(network: nn.Module) -> None:
    spec = InputSpec(1, 8, (("", 3),))
    with pytest.raises(UnconvertibleError):
        graph_of(network, network, spec, "cpu")


@pytest.mark.parametrize(
    "calls",
    [
        '[{"input": 0}, {"call": "os.system", "args": ["true"], "kwargs": {}}, {"output": 1}]',
        '[{"input": 0}, {"call": "posix.system.x", "args": [], "kwargs": {}}, {"output": 1}]',
        '[{"input": 0}, {"output": {"dtype": "load"}}]',
    ],
)
def test_a_graph_names_operators_only(calls: str) -> None:
    with pytest.raises(UnwritableError):
        built(Graph(calls, {}), "cpu")
