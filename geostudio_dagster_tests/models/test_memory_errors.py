"""What counts as memory that ran out, so that a smaller batch is tried."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from geostudio_dagster.models.memory import is_out_of_memory


def test_onnxruntime_says_it_in_its_own_way() -> None:
    size = helper.make_tensor_value_info("size", TensorProto.INT64, [1])
    filled = helper.make_tensor_value_info("filled", TensorProto.FLOAT, None)
    node = helper.make_node("ConstantOfShape", ["size"], ["filled"])
    graph = helper.make_graph([node], "g", [size], [filled])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(
        onnx.ModelProto.SerializeToString(model), providers=["CPUExecutionProvider"]
    )
    with pytest.raises(Exception, match="allocate") as caught:
        session.run(None, {"size": np.array([1 << 50], np.int64)})
    assert is_out_of_memory(caught.value)
