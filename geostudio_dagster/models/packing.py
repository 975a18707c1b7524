"""Weights of convolutions packed once, as a network is built, for a processor with oneDNN.

Its kernels read weights in an order of their own, into which they would be brought anew for
every batch: a tenth of a ResNet-18 U-Net's time. Kernels and sums stay the same, and so do the
numbers, to the bit; :mod:`conversion` makes sure of that before a program is kept.

Which order that is depends on the processor, the batch's size and the number of threads. From
another one weights are put right for every batch, by code of oneDNN's that is slow: layers of
128 and more channels took 2 to 25 times as long with weights packed for another number of
threads (AVX2). So they are packed for the batches to come, and the threads that compute them.

Not fused: a ReLU, for oneDNN's makes zeros of NaN, by which it can be told that something is
wrong; a sum behind a convolution, for that rounds once less in bfloat16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from geostudio_dagster.cores import computing_with

_aten = torch.ops.aten
# What aten.conv2d takes behind pixels and weights, in this order.
_USUAL = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_IMAGE = 4  # dimensions of a 2D convolution's weights


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches that come: patches in each, and threads that compute one."""

    size: int
    threads: int


def convolved_shapes(module: fx.GraphModule, patch: Tensor) -> dict[str, list[int]]:
    """What each convolution of ``module`` is given for a patch, by the name of its weights.

    Computes it: the patch is (1, planes, size, size). Shapes are (N, channels, H, W), where N is
    more than 1 if the network looks at several parts of a patch by themselves.
    """
    watch = _Watch(module)
    watch.run(patch)
    return watch.shapes


class _Watch(fx.Interpreter):
    """Notes the shapes that convolutions are given."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, list[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is _aten.conv2d.default and isinstance(n.args[1], fx.Node):
            (pixels, *_), _ = self.fetch_args_kwargs_from_env(n)
            self.shapes[str(n.args[1].target)] = list(pixels.shape)
        return super().run_node(n)


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of a network's weights.

    Attributes:
        count: of those that are packed.
        for_smaller: smaller batches would have them in the same order.
    """

    count: int = 0
    for_smaller: bool = True


def pack_weights(
    module: fx.GraphModule, shapes: Mapping[str, Sequence[int]], batches: Batches
) -> Packed:
    """Have convolutions of ``module`` read packed weights, in place.

    Args:
        module: that was built of a graph.
        shapes: of :func:`convolved_shapes`.
        batches: that will come.

    The plain weights go, one by one, so there is never room taken for all of them twice. The
    module still takes batches of any size, but only on the processor, and with autocast to the
    type that its weights have. What stays as it is: weights that something else uses, too;
    convolutions that torch would not give to oneDNN; all of them where there is none.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Packed()
    graph = module.graph
    uses = Counter(node.target for node in graph.nodes if node.op == "get_attr" for _ in node.users)
    found = [node for node in graph.nodes if _suits(node, module, uses)]
    for_smaller = True
    with computing_with(batches.threads):
        for node in found:
            convolution = _Convolution.of(node)
            plain, shape = module.get_buffer(convolution.weights), shapes[convolution.weights]
            # Of all smaller batches, that of one patch is most likely to want another order. Told
            # before the others are made, so that there is never room taken for both.
            asks = for_smaller and batches.size > 1
            order = _order(convolution.packed(plain, shape, 1)) if asks else None
            packed = convolution.packed(plain, shape, batches.size)
            if order is not None:
                for_smaller = torch.equal(_order(packed), order)
            module.register_buffer(convolution.weights, packed)
            _replace(convolution, graph, plain.dtype)
    if found:
        graph.lint()
        module.recompile()
    return Packed(len(found), for_smaller)


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


@dataclass(frozen=True, slots=True)
class _Convolution:
    """A convolution in a graph: the name of its weights, its bias if any, and how it is done."""

    node: fx.Node
    weights: str
    bias: fx.Node | None
    how: tuple[list[int], list[int], list[int], int]  # padding, stride, dilation, groups

    @classmethod
    def of(cls, node: fx.Node) -> _Convolution:
        source = node.args[1]
        assert isinstance(source, fx.Node)  # noqa: S101 - see _suits
        chosen: dict[str, Any] = (
            _USUAL | dict(zip(_USUAL, node.args[2:], strict=False)) | dict(node.kwargs)
        )
        padding, stride, dilation = (_pair(chosen[it]) for it in ("padding", "stride", "dilation"))
        how = padding, stride, dilation, chosen["groups"]
        return cls(node, str(source.target), chosen["bias"], how)

    def packed(self, plain: Tensor, shape: Sequence[int], patches: int) -> Tensor:
        """Its weights for so many patches, of each of which it is given ``shape``."""
        count, *image = shape
        given = [patches * count, *image]
        made: Tensor = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.how, given)
        return made


def _order(packed: Tensor) -> Tensor:
    """What order the weights are in, as oneDNN writes it down: bytes."""
    order: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
    return order


def _replace(convolution: _Convolution, graph: fx.Graph, dtype: torch.dtype) -> None:
    """Have it read packed weights of such a type."""
    node = convolution.node
    pixels, source = node.args[:2]
    with graph.inserting_before(node):
        if dtype is not torch.float32:
            # As autocast would, which doesn't know the packed operator.
            pixels = graph.call_function(_aten.to.dtype, (pixels, dtype))
        convolved = graph.call_function(
            torch.ops.mkldnn._convolution_pointwise.default,
            (pixels, source, convolution.bias, *convolution.how, "none", [], ""),
        )
    node.replace_all_uses_with(convolved)
    graph.erase_node(node)


def _pair(value: int | Sequence[int]) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    return [*value, *value] if len(value) == 1 else list(value)
