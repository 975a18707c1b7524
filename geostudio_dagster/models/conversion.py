"""A network becomes a program: traced by torch.export, and kept only if it gives the same bytes.

Equal to the bit, not to rounding: so an output doesn't tell whether its network was built by
TerraTorch or read from the folder of programs, and work done again gives the same file. That is
made sure of on the processor; on a GPU both have the same weights, to the bit.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from geostudio_dagster.cores import computing_with, instruction_sets, usual_threads
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.graph import Graph, UnwritableError, built, lower, written
from geostudio_dagster.models.memory import is_out_of_memory
from geostudio_dagster.models.modules import TorchRuntime
from geostudio_dagster.models.packing import Batches, convolved_shapes, pack_weights
from geostudio_dagster.models.programs import CONVERTED, Program, ProgramFile
from geostudio_dagster.models.runtime import Model, as_tensor, load_runtime

log = logging.getLogger(__name__)

# Batch sizes compared, the largest first; the one that is traced is between them. Where there is
# no bfloat16, it is slow, and computed for the sake of other processors only.
_EXACT, _LOWERED, _LOWERED_ELSEWHERE = (5, 2, 1), (4, 3, 1), (2,)
_TRACED = 2

Forward = Callable[[Tensor], Tensor]

_tracing = threading.Lock()  # torch.export keeps state of the whole process


class UnconvertibleError(Exception):
    """Why a network can't become a program, in a few words."""


def keep_program(bundle: Bundle, folder: Path, model: Model | None = None) -> None:
    """Make the program of ``bundle`` and keep it in ``folder``, unless it is there.

    It takes some seconds. What can't become a program is remembered and told in the log; it is
    built each time. What memory or a disk doesn't do for now is told only.

    Args:
        bundle: nothing is done where its runtime loads quickly anyway.
        model: the bundle's, if it is loaded already. One on a GPU, or of another tuning, is
            built again, on the processor; nothing is done for one of a program that was removed
            since.

    Raises:
        TaskError: as for :func:`load_runtime`.
    """
    if bundle.manifest.runtime not in CONVERTED:
        return
    place = ProgramFile.of(bundle, folder)
    if place.read() is not None:
        return
    if model is None or model.device != "cpu" or not model.tuning.as_programs:
        model = load_runtime(bundle)
    if isinstance(model.runtime, TorchRuntime):
        program = _program(model.runtime, model, bundle.manifest.name)
        if program is not None:
            _keep(program, bundle, place)


def _program(runtime: TorchRuntime, model: Model, name: str) -> Program | None:
    try:
        graph = graph_of(
            lambda pixels: as_tensor(runtime.forward(pixels)),
            runtime.module,
            runtime.spec,
            runtime.device,
        )
    except UnconvertibleError as error:
        log.warning("model %s can't be kept as a program, it is built each time: %s", name, error)
        return Program(None, refusal=str(error))
    except Exception as error:  # of memory or a disk
        log.warning("model %s can't be kept as a program now: %s", name, error)
        return None
    return Program(graph, model.folded, model.channels_last)


def _keep(program: Program, bundle: Bundle, place: ProgramFile) -> None:
    try:
        # Files that changed while they were read must not count for the bundle from now on.
        if load_bundle(bundle.folder).digest == bundle.digest:
            place.keep(program)
    except (OSError, InvalidRequest) as error:
        name = bundle.manifest.name
        log.warning("the program of model %s can't be kept in %s: %s", name, place.path, error)


def graph_of(forward: Forward, network: nn.Module, spec: InputSpec, device: str) -> Graph:
    """The graph of what ``forward`` does with ``network``, for any batch size.

    Args:
        forward: from float32 (N, planes, size, size) to the network's output tensor.
        network: whose weights it uses. spec: of its input. device: where it is.

    Raises:
        UnconvertibleError: torch.export can't trace it, it does what no program can, or a
            program of it gives other numbers.
        OSError, MemoryError, RuntimeError: a disk or memory does not do for it now.
    """
    try:
        with _tracing, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _traced(_Whole(forward, network), _noise(spec, _TRACED), device)
            with computing_with(usual_threads()):  # as they will be computed
                return _compared(forward, graph, spec, device)
    except UnconvertibleError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        # Tracing runs the network's own code with stand-ins for tensors: anything may come up.
        lines = str(error).strip().splitlines() or ["no details"]
        raise UnconvertibleError(f"{type(error).__name__}: {lines[0][:200]}") from error


class _Whole(nn.Module):
    """From the engine's pixels to one tensor, as torch.export wants it: a module."""

    def __init__(self, forward: Forward, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._forward = forward

    def forward(self, pixels: Tensor) -> Tensor:
        return self._forward(pixels)


def _traced(whole: nn.Module, pixels: Tensor, device: str) -> Graph:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        whole.eval(), (pixels.to(device),), dynamic_shapes=({0: batch},), strict=False
    )
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise UnconvertibleError("it changes its own buffers, or its input")
    try:
        return written(program.module(), device)
    except UnwritableError as error:
        raise UnconvertibleError(f"it has {error}, which no program can have") from error


def _compared(forward: Forward, graph: Graph, spec: InputSpec, device: str) -> Graph:
    """The graph, if a program of it gives the same numbers, and what else was seen of it."""
    torch.set_float32_matmul_precision("highest")  # see forward.ForwardPass
    convolved = convolved_shapes(built(graph, device), _noise(spec, 1).to(device))
    lowered = _LOWERED if torch.ops.mkldnn._is_mkldnn_bf16_supported() else _LOWERED_ELSEWHERE
    packs, steady = [], []
    for dtype, sizes in ((torch.float32, _EXACT), (torch.bfloat16, lowered)):
        program, packed = _networks(graph, convolved, device, dtype)
        parts = [_noise(spec, sizes[0]).to(device)[:size] for size in sizes]
        low = dtype is not torch.float32
        with torch.autocast(parts[0].device.type, torch.bfloat16, enabled=low):
            expected = [forward(part) for part in parts]
            if not _equal(program, parts, expected):
                name = str(dtype).removeprefix("torch.")
                raise UnconvertibleError(f"a program gives other numbers in {name}")
            if packed is not None and _runs_equally(packed, parts, expected):
                packs.append(dtype)
        alike = (torch.equal(each, expected[0][: len(each)]) for each in expected[1:])
        if len(sizes) > 1 and all(alike):
            steady.append(dtype)
    return dataclasses.replace(
        graph,
        packs=tuple(packs),
        convolved=convolved,
        steady=tuple(steady),
        seen_on=instruction_sets(),
    )


def _networks(
    graph: Graph, convolved: dict[str, list[int]], device: str, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module | None]:
    """The network of ``graph`` in one arithmetic: plain, and packed if anything can be."""
    plain, packed = built(graph, device), built(graph, device)
    if dtype is not torch.float32:
        lower(plain, dtype)
        lower(packed, dtype)
    packs = torch.device(device).type == "cpu" and (
        pack_weights(packed, convolved, Batches(_TRACED, usual_threads())).count > 0
    )
    return plain, packed if packs else None


def _equal(network: nn.Module, batches: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether it makes these outputs of these batches, to the bit."""
    return all(map(torch.equal, map(network, batches), expected))


def _runs_equally(network: nn.Module, batches: list[Tensor], expected: list[Tensor]) -> bool:
    try:
        return _equal(network, batches, expected)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False  # such as a view of what has the channels last only with packed weights


def _noise(spec: InputSpec, count: int) -> Tensor:
    shape = count, spec.planes, spec.size, spec.size
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))
