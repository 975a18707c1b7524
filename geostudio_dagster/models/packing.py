"""Weights of convolutions packed once, as a network is built, for a processor with oneDNN.

Its kernels read weights in an order of their own, into which they would be brought anew for
every batch: a tenth of a ResNet-18 U-Net's time. Kernels and sums stay the same, and so do the
numbers, to the bit; :mod:`conversion` makes sure of that before a program is kept.

Not fused: a ReLU, for oneDNN's makes zeros of NaN, by which it can be told that something is
wrong; a sum behind a convolution, for that rounds once less in bfloat16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
# What aten.conv2d takes behind pixels and weights, in this order.
_USUAL = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_IMAGE = 4  # dimensions of a 2D convolution's weights


def pack_weights(module: fx.GraphModule) -> int:
    """Have convolutions of ``module`` read packed weights, in place, and say how many do.

    The plain weights go, one by one, so there is never room taken for all of them twice. The
    module still takes batches of any size, but only on the processor, and with autocast to the
    type that its weights have. What stays as it is: weights that something else uses, too;
    convolutions that torch would not give to oneDNN; all of them where there is none.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    graph = module.graph
    uses = Counter(node.target for node in graph.nodes if node.op == "get_attr" for _ in node.users)
    found = [node for node in graph.nodes if _suits(node, module, uses)]
    for node in found:
        _pack(node, module)
    if found:
        graph.lint()
        module.recompile()
    return len(found)


def _suits(node: fx.Node, module: fx.GraphModule, uses: Counter[Any]) -> bool:
    if node.target is not _aten.conv2d.default:
        return False
    source = node.args[1]
    if not isinstance(source, fx.Node) or source.op != "get_attr" or uses[source.target] != 1:
        return False
    weight = module.get_buffer(str(source.target))
    if weight.device.type != "cpu" or weight.ndim != _IMAGE:
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # Of 1 x 1, torch's own kernel is as quick in one thread, and is what it chooses there.
    return weight.dtype is torch.float32 and weight.shape[2:] != (1, 1)


def _pack(node: fx.Node, module: fx.GraphModule) -> None:
    graph = module.graph
    pixels, source = node.args[:2]
    assert isinstance(source, fx.Node)  # noqa: S101 - see _suits
    chosen: dict[str, Any] = (
        _USUAL | dict(zip(_USUAL, node.args[2:], strict=False)) | dict(node.kwargs)
    )
    padding, stride, dilation = (_pair(chosen[name]) for name in ("padding", "stride", "dilation"))
    how = padding, stride, dilation, chosen["groups"]
    name = str(source.target)
    weight = module.get_buffer(name)
    module.register_buffer(name, _packed(weight, how))
    with graph.inserting_before(node):
        if weight.dtype is not torch.float32:
            # As autocast would, which doesn't know the packed operator.
            pixels = graph.call_function(_aten.to.dtype, (pixels, weight.dtype))
        convolved = graph.call_function(
            torch.ops.mkldnn._convolution_pointwise.default,
            (pixels, source, chosen["bias"], *how, "none", [], ""),
        )
    node.replace_all_uses_with(convolved)
    graph.erase_node(node)


def _packed(weight: Tensor, how: tuple[list[int], list[int], list[int], int]) -> Tensor:
    # The order depends on the size of pixels in rare cases only, and is put right in these.
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, None)
    return packed


def _pair(value: int | Sequence[int]) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    return [*value, *value] if len(value) == 1 else list(value)
