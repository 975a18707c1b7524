"""What an ONNX file says of itself, read before any engine opens it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.contract import InputSpec

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A graph of one input, or of one input per modality, named like it; all float32.

    Attributes:
        path: the file. spec: the input as the manifest has it.
        inputs: the graph's own names. batch_size: the only one that it takes, or None.
    """

    path: Path
    spec: InputSpec
    inputs: tuple[str, ...]
    batch_size: int | None

    @classmethod
    def of(cls, bundle: Bundle) -> OnnxGraph:
        """The bundle's graph.

        Raises:
            TaskError: ``model_unusable``, the graph takes something else, or refers to files
                that are not the bundle's.
        """
        import onnx

        model = onnx.load(str(bundle.weights_path), load_external_data=False)
        _check_external_data(model, bundle)
        spec = InputSpec.of(bundle.manifest)
        names = _input_names(model.graph, spec)
        return cls(bundle.weights_path, spec, names, _batch_size(model.graph, names))

    def zeros(self) -> torch.Tensor:
        """A batch of empty patches, (N, planes, H, W)."""
        import torch

        shape = self.batch_size or 1, self.spec.planes, self.spec.size, self.spec.size
        return torch.zeros(shape)

    def feed(self, pixels: torch.Tensor) -> dict[str, NDArray[Any]]:
        """Arrays by input for pixels (N, planes, H, W), on the processor and contiguous."""
        given = self.spec.arrange(pixels.cpu())
        planes = given if isinstance(given, dict) else {self.inputs[0]: given}
        return {name: plane.contiguous().numpy() for name, plane in planes.items()}


def unusable(clause: str) -> TaskError:
    """The error of a graph that can't be run: ``clause`` says what it does."""
    return TaskError("model_unusable", f"The ONNX model {clause}.")


def _input_names(graph: GraphProto, spec: InputSpec) -> tuple[str, ...]:
    from onnx import TensorProto

    inputs = _inputs(graph)
    wanted = [name for name, _ in spec.modalities]
    if wanted != [""] and set(inputs) != set(wanted):
        raise unusable(
            f"has the inputs {', '.join(inputs)}, but the manifest the modalities "
            f"{', '.join(wanted)}"
        )
    if wanted == [""] and len(inputs) != 1:
        raise unusable(f"has {len(inputs)} inputs ({', '.join(inputs)}); it must have one")
    for name, kind in inputs.items():
        number = kind.tensor_type.elem_type
        if number != TensorProto.FLOAT:
            dtype = TensorProto.DataType.Name(number).lower()
            raise unusable(f"takes tensor({dtype}) as {name}; it must take float32")
    return tuple(inputs)


def _batch_size(graph: GraphProto, names: tuple[str, ...]) -> int | None:
    inputs = _inputs(graph)
    first = [dim for name in names for dim in inputs[name].tensor_type.shape.dim[:1]]
    return next((dim.dim_value for dim in first if dim.HasField("dim_value")), None)


def _inputs(graph: GraphProto) -> dict[str, Any]:
    """Types of the inputs by name. Older files list their weights among them."""
    weights = {item.name for item in graph.initializer}
    return {item.name: item.type for item in graph.input if item.name not in weights}


def _check_external_data(model: ModelProto, bundle: Bundle) -> None:
    """Make sure that the weights beside the graph are files of this bundle and no others."""
    folder = bundle.folder.resolve()
    base = bundle.weights_path.parent
    own = {(bundle.folder / name).resolve() for name in bundle.manifest.all_files}
    for location in sorted(set(_external_locations(model))):
        path = (base / location).resolve()
        if Path(location).is_absolute() or not path.is_relative_to(folder):
            raise unusable(f"keeps weights in {location}, outside the bundle's folder")
        if path not in own:
            raise unusable(f"keeps weights in {location}; list it under files in the manifest")


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
