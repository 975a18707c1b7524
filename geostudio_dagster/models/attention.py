"""Whether a network is a transformer, told by the operators that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FUSED = ("scaled_dot_product", "_native_multi_head_attention", "_transformer_encoder_layer_fwd")
_SOFTMAX = ("aten._softmax.", "aten.softmax.")


class AttentionWatch(TorchDispatchMode):
    """Within it, ``seen`` says whether this thread has run an attention, in any kind of module.

    That is a fused one, or a softmax over the last dimension: over keys, and not over classes,
    which a map has in its second.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler here, for one and a half seconds; nothing is compiled.
        return False

    def __torch_dispatch__(
        self,
        operator: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        name = str(operator)
        self.seen |= any(fused in name for fused in _FUSED)
        self.seen |= name.startswith(_SOFTMAX) and _over_last(arguments)
        return operator(*arguments, **(named or {}))


def _over_last(arguments: Sequence[Any]) -> bool:
    scores, dimension = arguments[0], arguments[1]
    return isinstance(scores, Tensor) and dimension in {-1, scores.ndim - 1}
