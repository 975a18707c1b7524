"""The channels last: the same output, results laid out so, and hands off where it can't be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geostudio_dagster.models.layout import keep_channels_last

PIXELS = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(1))


class Tokens(nn.Module):
    """Begins as a transformer's decoder does, with channels of its own order."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 8, (1, 1, 1))
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 2, stride=2), nn.GELU(), nn.Conv2d(6, 4, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unsqueeze(2)).flatten(2)
        made: Tensor = self.layers(tokens.contiguous().unflatten(2, (16, 16)))
        return made


class Viewing(Tokens):
    """Counts on its convolution's result to be one channel after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), -1)


class Striding(Tokens):
    """Takes memory for what it isn't, so its output changes without an error."""

    def forward(self, x: Tensor) -> Tensor:
        made = super().forward(x)
        return made.as_strided(made.shape, (4 * 32 * 32, 32 * 32, 32, 1))


class OnePatch(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one at a time")
        return super().forward(x)


@pytest.mark.parametrize("scripted", [False, True])
def test_results_have_the_channels_last(scripted: bool) -> None:
    torch.manual_seed(0)
    network = Tokens().eval()
    expected = network(PIXELS)
    assert expected.is_contiguous()
    module = torch.jit.trace(network, PIXELS) if scripted else network
    assert keep_channels_last(module, lambda: module(PIXELS))
    result = module(PIXELS)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", [Viewing, Striding, OnePatch, lambda: nn.Linear(16, 2)])
def test_what_counts_on_another_order_stays_as_it_was(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = network().eval()
    expected = module(PIXELS[:1])
    layouts = [weights.stride() for weights in module.parameters()]
    assert not keep_channels_last(module, lambda: module(PIXELS))
    assert [weights.stride() for weights in module.parameters()] == layouts
    assert torch.equal(module(PIXELS[:1]), expected)
