"""ONNX models, run by onnxruntime, which is imported only when such a model loads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.contract import InputSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_FLOAT = "tensor(float)"
_CUDA = "CUDAExecutionProvider"


class OnnxRuntime:
    """An onnxruntime session: see :class:`contract.Runtime`.

    It computes with as many threads as torch would in the thread that asks, which the forward
    pass sets for its workers. A session's threads are fixed when it is made, so it is made again
    when that number changes; only one is kept, since each holds the weights.
    """

    concurrency: ClassVar[None] = None
    autocasts: ClassVar[bool] = False

    def __init__(self, path: Path, spec: InputSpec, device: str) -> None:
        from onnxruntime import get_available_providers

        self._path = path
        self._spec = spec
        self._cuda = device.startswith("cuda") and _CUDA in get_available_providers()
        self.device = device if self._cuda else "cpu"
        self._lock = threading.Lock()
        self._made: tuple[int, InferenceSession] | None = None
        first = self._session()
        self._inputs = _input_names(first, spec)
        sizes = {item.shape[0] for item in first.get_inputs()}
        fixed = [size for size in sizes if isinstance(size, int)]
        self.batch_size: int | None = fixed[0] if fixed else None

    def forward(self, pixels: Tensor) -> Any:
        """The graph's first output, on ``device``."""
        given = self._spec.arrange(pixels.cpu())
        planes = given if isinstance(given, dict) else {self._inputs[0]: given}
        feed = {name: plane.contiguous().numpy() for name, plane in planes.items()}
        first = self._session().run(None, feed)[0]
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
        return InferenceSession(str(self._path), options, providers=providers)


def load_onnx(bundle: Bundle, device: str) -> OnnxRuntime:
    """An ONNX graph of one input, or of one input per modality, named like it.

    Raises:
        TaskError: ``model_unusable``, the graph takes something else, or refers to files that
            are not the bundle's.
    """
    _check_external_data(bundle)
    return OnnxRuntime(bundle.weights_path, InputSpec.of(bundle.manifest), device)


def _input_names(session: InferenceSession, spec: InputSpec) -> list[str]:
    inputs = {item.name: item for item in session.get_inputs()}
    wanted = [name for name, _ in spec.modalities]
    if wanted != [""] and set(inputs) != set(wanted):
        raise _unusable(
            f"has the inputs {', '.join(inputs)}, but the manifest the modalities "
            f"{', '.join(wanted)}"
        )
    if wanted == [""] and len(inputs) != 1:
        raise _unusable(f"has {len(inputs)} inputs ({', '.join(inputs)}); it must have one")
    for item in inputs.values():
        if item.type != _FLOAT:
            raise _unusable(f"takes {item.type} as {item.name}; it must take float32")
    return list(inputs)


def _check_external_data(bundle: Bundle) -> None:
    """Make sure that the weights beside the graph are files of this bundle and no others."""
    import onnx

    model = onnx.load(str(bundle.weights_path), load_external_data=False)
    folder = bundle.folder.resolve()
    base = bundle.weights_path.parent
    own = {(bundle.folder / name).resolve() for name in bundle.manifest.all_files}
    for location in sorted(set(_external_locations(model))):
        path = (base / location).resolve()
        if Path(location).is_absolute() or not path.is_relative_to(folder):
            raise _unusable(f"keeps weights in {location}, outside the bundle's folder")
        if path not in own:
            raise _unusable(f"keeps weights in {location}; list it under files in the manifest")


def _external_locations(message: Any) -> Iterator[str]:
    """Files that tensors anywhere in a protobuf message are kept in."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        if message.data_location == TensorProto.EXTERNAL:
            yield from (item.value for item in message.external_data if item.key == "location")
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        # A repeated field is a sequence of messages.
        for part in value if hasattr(value, "__len__") else [value]:
            yield from _external_locations(part)


def _unusable(clause: str) -> TaskError:
    return TaskError("model_unusable", f"The ONNX model {clause}.")
