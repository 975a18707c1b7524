"""Convolutions that keep the channels last, also where a network's own code begins otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from geostudio_dagster.models.folding import same_but_for_rounding
from geostudio_dagster.models.memory import is_out_of_memory

_IMAGE = 4  # dimensions of a 2D convolution's weights


def keep_channels_last(module: nn.Module, output: Callable[[], Tensor]) -> bool:
    """Have 2D convolutions compute and give their results with the channels last; say if they do.

    The engine's pixels are laid out like that, and so are all results of a plain convolutional
    network. A transformer's decoder begins with tokens, and without this goes on channel by
    channel: Prithvi-tiny takes 1.2 to 1.5 times as long then (float32, AVX2).

    In place; ``output`` runs the module, on two patches where it takes any number. All is put
    back if the output changes by more than rounding, or can't be made any more: there are
    networks that count on another order.
    """
    kept = {weights: weights.data for weights in module.parameters() if weights.ndim == _IMAGE}
    if not kept:
        return False
    # Not inference_mode: its tensors would be barred from much else.
    with torch.no_grad():
        before = _made(output)
        if before is None:
            return False
        for weights, data in kept.items():
            weights.data = data.contiguous(memory_format=torch.channels_last)
        after = _made(output)
        if after is not None and same_but_for_rounding(after, before):
            return True
        for weights, data in kept.items():
            weights.data = data
    return False


def _made(output: Callable[[], Tensor]) -> Tensor | None:
    """The output; None where the module can't make it, such as of more than one patch."""
    try:
        return output()
    except Exception as error:  # of the network's own code
        if is_out_of_memory(error):
            raise
        return None
