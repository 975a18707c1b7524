"""Folding batch normalisations: the same output, fewer layers, and hands off where it can't."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geostudio_dagster.models.folding import fold_batch_norms

PIXELS = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def lively(network: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics unlike those of a fresh normalisation."""
    generator = torch.Generator().manual_seed(2)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator)
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
            part.weight.data = torch.rand(part.num_features, generator=generator) + 0.5
    return network.eval()


class Twice(nn.Module):
    """Uses the convolution's result before and behind its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        return self.norm(y) + y


class Shared(nn.Module):
    """One convolution, two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.convolution(self.first(self.convolution(x))))


def test_convolutions_carry_their_normalisations() -> None:
    network = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1),
            nn.BatchNorm2d(4),
        )
    )  # fmt: skip
    expected = network(PIXELS)
    assert fold_batch_norms(network, lambda: network(PIXELS)) == 2
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    torch.testing.assert_close(network(PIXELS), expected, atol=1e-5, rtol=0)


def test_what_cannot_be_folded_stays_as_it_was() -> None:
    for network in (
        lively(Twice()),
        lively(Shared()),
        lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))),
        lively(nn.Sequential(nn.Conv2d(3, 4, 3))),
    ):
        expected = network(PIXELS)
        layers = [type(part) for part in network.modules()]
        assert fold_batch_norms(network, lambda used=network: used(PIXELS)) == 0  # type: ignore[misc]
        assert [type(part) for part in network.modules()] == layers
        torch.testing.assert_close(network(PIXELS), expected, atol=0, rtol=0)
