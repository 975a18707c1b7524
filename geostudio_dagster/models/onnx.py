"""ONNX models, run by onnxruntime or OpenVINO, which are imported only when such a model loads."""

from __future__ import annotations

import importlib.util
import logging
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle, OnnxEngine
from geostudio_dagster.models.contract import Runtime
from geostudio_dagster.models.onnx_graph import OnnxGraph
from geostudio_dagster.models.openvino import OpenVinoRuntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)

_CUDA = "CUDAExecutionProvider"


class OnnxRuntime:
    """An onnxruntime session: see :class:`contract.Runtime`.

    It computes with as many threads as torch would in the thread that asks, which the forward
    pass sets for its workers. A session's threads are fixed when it is made, so it is made again
    when that number changes; only one is kept, since each holds the weights.
    """

    engine: ClassVar[str] = "onnxruntime"
    concurrency: ClassVar[None] = None
    autocasts: ClassVar[bool] = False

    def __init__(self, graph: OnnxGraph, device: str) -> None:
        self._graph = graph
        self._cuda = _computes_on_gpu(device)
        self.device = device if self._cuda else "cpu"
        self.batch_size = graph.batch_size
        self._lock = threading.Lock()
        self._made: tuple[int, InferenceSession] | None = None
        self._session()  # a file that can't be used is told now

    def forward(self, pixels: Tensor) -> Any:
        """The graph's first output, on ``device``."""
        first = self._session().run(None, self._graph.feed(pixels))[0]
        return torch.from_numpy(first).to(self.device)

    def _session(self) -> InferenceSession:
        threads = torch.get_num_threads()
        with self._lock:
            if self._made is None or self._made[0] != threads:
                self._made = None  # the old weights go before the new ones come
                self._made = threads, self._open(threads)
            return self._made[1]

    def _open(self, threads: int) -> InferenceSession:
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors are raised, warnings help nobody here
        # Threads that spin while they wait steal the cores of those that read and blend.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._cuda:
            number = int(self.device.partition(":")[2] or 0)
            providers.insert(0, (_CUDA, {"device_id": number}))
        return InferenceSession(str(self._graph.path), options, providers=providers)


def load_onnx(bundle: Bundle, device: str, engine: OnnxEngine = "auto") -> Runtime:
    """An ONNX graph of one input, or of one input per modality, named like it.

    ``auto`` is onnxruntime on a GPU that it can use; else, since both compute on the processor,
    OpenVINO where it is installed and does what the graph says for an empty patch.

    Raises:
        TaskError: ``model_unusable``, the graph takes something else, or refers to files that
            are not the bundle's; ``no_such_engine``.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise TaskError(
            "no_such_engine",
            "OpenVINO is not installed here; install geostudio-dagster[openvino], or leave the "
            "choice of the ONNX engine to auto.",
        )
    if engine == "openvino" and device != "cpu":
        raise TaskError(
            "no_such_engine", f"OpenVINO computes on the processor only, not on {device}."
        )
    graph = OnnxGraph.of(bundle)
    if engine == "openvino":
        return OpenVinoRuntime(graph)
    if engine == "onnxruntime" or not installed or _computes_on_gpu(device):
        return OnnxRuntime(graph, device)
    try:
        runtime = OpenVinoRuntime(graph)
        runtime.forward(graph.zeros())
    except (TaskError, RuntimeError) as error:
        # It knows fewer operations than onnxruntime does.
        log.warning("onnxruntime computes instead: %s", error)
        return OnnxRuntime(graph, device)
    return runtime


def _computes_on_gpu(device: str) -> bool:
    """Whether onnxruntime does, there."""
    if not device.startswith("cuda"):
        return False
    from onnxruntime import get_available_providers

    return _CUDA in get_available_providers()
