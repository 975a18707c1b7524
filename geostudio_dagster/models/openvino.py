"""ONNX models on a processor, run by OpenVINO: in bfloat16, too, where the processor has it."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from geostudio_dagster.cores import usable_cores
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.onnx_graph import OnnxGraph, unusable

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

_LONGEST = 200  # characters of a reason


class OpenVinoRuntime:
    """A compiled model: see :class:`contract.Runtime`.

    As a torch module does, it computes with the calling thread's number of threads, and in
    bfloat16 under its autocast. Both are fixed when a model is compiled, so it is compiled as
    it is asked, and again when they change; only one is kept, since each holds the weights.

    Raises:
        TaskError: ``no_such_engine``, OpenVINO is installed but does not start.
    """

    engine: ClassVar[str] = "openvino"
    device: ClassVar[str] = "cpu"
    concurrency: ClassVar[None] = None

    def __init__(self, graph: OnnxGraph) -> None:
        try:
            self._core = _core()
            abilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except (ImportError, RuntimeError) as error:
            raise TaskError(
                "no_such_engine",
                f"OpenVINO does not start here ({_reason(error)}); install "
                "geostudio-dagster[openvino] anew.",
            ) from error
        self._graph = graph
        self.batch_size = graph.batch_size
        self.autocasts = "BF16" in abilities
        self._lock = threading.Lock()
        self._made: tuple[tuple[int, bool], CompiledModel] | None = None

    def forward(self, pixels: Tensor) -> Any:
        """The graph's first output.

        Raises:
            TaskError: ``model_unusable``, it has what OpenVINO doesn't know.
            RuntimeError: it can't be computed for these pixels.
        """
        # A request of its own, for several threads ask; making one takes a tenth of a millisecond.
        request = self._compiled().create_infer_request()
        try:
            outputs = request.infer(self._graph.feed(pixels), share_inputs=True)
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error
        return torch.from_numpy(outputs[0])

    def _compiled(self) -> CompiledModel:
        wanted = torch.get_num_threads(), self.autocasts and _asks_for_bfloat16()
        with self._lock:
            if self._made is None or self._made[0] != wanted:
                self._made = None  # the old weights go before the new ones come
                self._made = wanted, self._compile(*wanted)
            return self._made[1]

    def _compile(self, threads: int, bfloat16: bool) -> CompiledModel:
        # Each stream serves one worker of the forward pass at a time.
        streams = max(usable_cores() // threads, 1)
        settings = {
            # Left to itself, it takes bfloat16 wherever the processor has it.
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            "ENABLE_HYPER_THREADING": True,  # that many threads, whatever the cores are
            # Threads that are bound to cores get in the way of those that read and blend.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            return self._core.compile_model(str(self._graph.path), "CPU", settings)
        except RuntimeError as error:
            raise unusable(f"can't be run by OpenVINO: {_reason(error)}") from error


def _core() -> Core:
    # Importing openvino reports that to its makers over the internet and writes into the home
    # folder, unless the package that does so can't be imported, which openvino provides for.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    from openvino import Core

    return Core()


def _asks_for_bfloat16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _reason(error: Exception) -> str:
    """What OpenVINO says at last; before that it lists places in its source code."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip("- .")[:_LONGEST] if lines else "no reason given"
