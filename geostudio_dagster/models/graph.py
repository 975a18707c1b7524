"""A network's graph as plain values, from which torch alone builds the network again.

torch.export finds the graph. Its own archives take one and a half seconds of CPU time to load,
for what only tracing needs (dynamo, sympy); a forward pass needs the list of calls and the
weights. Only aten's operators and arithmetic can be named in it, so building one runs no other
code, whatever the text says.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

_ARITHMETIC = ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_OPERATORS: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name) for name in _ARITHMETIC + _COMPARISONS
}
_NAMES = {function: name for name, function in _OPERATORS.items()}
_CONSTANTS = {
    "dtype": torch.dtype,
    "memory_format": torch.memory_format,
    "layout": torch.layout,
}
# What tracing assumed, such as a type that autocast changes; the network itself asks nothing.
_ASSERTIONS = ("aten._assert_tensor_metadata.", "aten._assert_scalar.", "aten.sym_constrain_range")
# Autocast computes these in its type, weights and biases included.
_LOWERED = ("aten.conv", "aten.linear.")


class UnwritableError(Exception):
    """The graph has something that only the network's own code can do."""


# What :func:`built` raises where something else than a graph was written.
NO_GRAPH = (UnwritableError, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Graph:
    """Calls as JSON, and the tensors that they name: weights, buffers and constants.

    ``packs`` are the types of weights with which a processor gives the same numbers when they
    are packed; ``convolved``, for that, is what each convolution is given (:mod:`packing`).
    ``steady`` are the types in which a patch gives the same numbers in batches of any size, on a
    processor of the kind that it was seen on (``seen_on``: :func:`cores.instruction_sets`).
    """

    calls: str
    tensors: dict[str, Tensor]
    packs: tuple[torch.dtype, ...] = ()
    convolved: dict[str, list[int]] = field(default_factory=dict)
    steady: tuple[torch.dtype, ...] = ()
    seen_on: str = ""


def written(module: fx.GraphModule, device: str) -> Graph:
    """The graph of ``module``, which takes one tensor and gives one.

    ``device`` is where it was traced; the graph will do on any.

    Raises:
        UnwritableError: it calls what is no operator of aten, or has arguments of other kinds.
    """
    numbers: dict[fx.Node, int] = {}
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    calls: list[Any] = []
    for node in module.graph.nodes:
        if _is_idle(node):
            continue
        if node.op == "get_attr":
            name = names.setdefault(node.target, f"tensor{len(names)}")
            tensors[name] = _tensor(module, node.target)
            call: Any = {"tensor": name}
        elif node.op == "call_function":
            call = {
                "call": _name(node.target),
                "args": _plain(node.args, numbers, device),
                "kwargs": {k: _plain(v, numbers, device) for k, v in node.kwargs.items()},
            }
        elif node.op == "output":
            call = {"output": _plain(_only(node.args[0]), numbers, device)}
        elif node.op == "placeholder" and {"input": 0} not in calls:
            call = {"input": 0}
        else:
            raise UnwritableError(f"{node.op} {node.target}")
        numbers[node] = len(calls)
        calls.append(call)
    return Graph(json.dumps(calls), tensors)


def built(graph: Graph, device: str) -> fx.GraphModule:
    """The network of ``graph`` on ``device``.

    Raises:
        NO_GRAPH: it is no graph that :func:`written` made.
    """
    root = nn.Module()
    for name, tensor in graph.tensors.items():
        root.register_buffer(name, tensor.to(device))
    made: list[fx.Node] = []
    built_graph = fx.Graph()
    for call in json.loads(graph.calls):
        if "input" in call:
            node = built_graph.placeholder("pixels")
        elif "tensor" in call:
            root.get_buffer(call["tensor"])
            node = built_graph.get_attr(call["tensor"])
        elif "output" in call:
            node = built_graph.output(_value(call["output"], made, device))
        else:
            arguments = tuple(_value(call["args"], made, device))
            named = {str(key): _value(v, made, device) for key, v in call["kwargs"].items()}
            node = built_graph.call_function(_function(call["call"]), arguments, named)
        made.append(node)
    ends = [(node.op, node.args) for node in made if node.op in {"placeholder", "output"}]
    match ends:
        case [("placeholder", _), ("output", (fx.Node(),))]:
            built_graph.lint()
        case _:
            raise UnwritableError("something else than one input and one output")
    return fx.GraphModule(root, built_graph).eval()


def lower(module: fx.GraphModule, dtype: torch.dtype) -> None:
    """Make it the network for autocast to ``dtype``, with the weights cast once, in place.

    Autocast casts them anew for every batch: a fifth of a small U-Net's time. Only tensors that
    nothing but convolutions and linear layers takes are cast, as autocast would cast them. One
    at a time, so that there is never room taken for all of them twice.
    """
    for name in [name for name, _ in module.named_buffers()]:
        nodes = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == name]
        users = [user for node in nodes for user in node.users]
        if module.get_buffer(name).dtype is torch.float32 and all(
            user.op == "call_function" and _name(user.target).startswith(_LOWERED) for user in users
        ):
            module.register_buffer(name, module.get_buffer(name).to(dtype))


def _is_idle(node: fx.Node) -> bool:
    """Whether the output doesn't depend on it: unused weights, what tracing assumed."""
    if node.op == "get_attr":
        return not node.users
    if node.op == "call_module":
        return node.target == "_guards_fn"
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return str(node.target).startswith(_ASSERTIONS)


def _tensor(module: nn.Module, path: str) -> Tensor:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor) or type(found) not in (Tensor, nn.Parameter):
        raise UnwritableError(f"{path} is a {type(found).__name__}")
    return found.detach()


def _only(output: Any) -> Any:
    return output[0] if isinstance(output, list | tuple) and len(output) == 1 else output


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    if target in _NAMES:
        return _NAMES[target]
    raise UnwritableError(f"a call of {target}")


def _function(name: str) -> Callable[..., Any]:
    if operation := _OPERATORS.get(name):
        return operation
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace != "aten":
        raise UnwritableError(f"a call of {name}")
    found: Any = getattr(getattr(torch.ops.aten, packet), overload)
    if not isinstance(found, torch._ops.OpOverload):
        raise UnwritableError(f"a call of {name}")
    return found


def _plain(value: Any, numbers: dict[fx.Node, int], device: str) -> Any:
    """An argument as JSON holds it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, numbers, device) for item in value]
    if isinstance(value, fx.Node):
        return {"node": numbers[value]}
    if isinstance(value, torch.device) and value.type == torch.device(device).type:
        return {"device": None}
    for kind, constants in _CONSTANTS.items():
        if isinstance(value, constants):
            return {kind: str(value).removeprefix("torch.")}
    raise UnwritableError(f"an argument {value!r}")


def _value(plain: Any, made: list[fx.Node], device: str) -> Any:
    """What :func:`_plain` made JSON of."""
    if isinstance(plain, list):
        return [_value(item, made, device) for item in plain]
    if not isinstance(plain, dict):
        return plain
    [(kind, value)] = plain.items()
    if kind == "node":
        return made[value]
    if kind == "device":
        return torch.device(device)
    constant = getattr(torch, value)
    if not isinstance(constant, _CONSTANTS[kind]):
        raise UnwritableError(f"an argument {plain}")
    return constant
