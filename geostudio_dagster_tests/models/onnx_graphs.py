"""ONNX graphs as tests need them: of one node, or with their weights in another file."""

from __future__ import annotations

from pathlib import Path

import onnx

from geostudio_dagster.models.bundle import MANIFEST, Bundle


def outside(folder: Path, location: str, bundle: Bundle) -> Path:
    """A copy of the bundle whose graph keeps its weights in another file."""
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    model = onnx.load(bundle.weights_path)
    onnx.save_model(
        model,
        folder / bundle.manifest.weights,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    text = (folder / bundle.manifest.weights).read_bytes()
    changed = onnx.ModelProto.FromString(text)
    for tensor in changed.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / bundle.manifest.weights).write_bytes(changed.SerializeToString())
    return folder


def save_concat(path: Path, bands: dict[str, int], dtype: int) -> None:
    """A graph that puts its inputs, (2, bands, 32, 32) each, together."""
    node = onnx.helper.make_node("Concat", list(bands), ["y"], axis=1)
    save_graph(path, node, bands, dtype)


def save_graph(
    path: Path,
    node: onnx.NodeProto,
    bands: dict[str, int],
    dtype: int = onnx.TensorProto.FLOAT,
) -> None:
    """A graph of one node with inputs of (2, bands, 32, 32) and one output of all bands."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, dtype, (2, count, 32, 32))
        for name, count in bands.items()
    ]
    output = onnx.helper.make_tensor_value_info("y", dtype, (2, sum(bands.values()), 32, 32))
    graph = onnx.helper.make_graph([node], "g", inputs, [output])
    opset = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
