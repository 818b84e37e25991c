"""Simplification, on hand-made graphs."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxslim")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from transformers_detrpose.deployment.simplify import freeze_reshapes, join_padding, share_constants, simplify  # noqa: E402


def make_graph(*shapes: list[int]):
    """Returns a graph that reshapes images from shape to shape."""
    values = ["pixel_values", *(f"value{index}" for index in range(len(shapes)))]
    edges = enumerate(zip(values, values[1:], strict=False))
    nodes = [helper.make_node("Reshape", [before, f"shape{index}"], [after]) for index, (before, after) in edges]
    constants = [numpy_helper.from_array(np.array(s, dtype=np.int64), f"shape{i}") for i, s in enumerate(shapes)]
    image = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    result = helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [image], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def inputs_of(model):
    return [node.input[0] for node in model.graph.node]


def test_what_changes_nothing_is_taken_out():
    model = make_graph([0, 0, 0, 0], [-1, 4])
    freeze_reshapes(model, (8, 8), 4)
    assert inputs_of(model) == ["pixel_values", "pixel_values"]


@pytest.mark.parametrize(
    "node, floor, width, is_joined",
    [
        ("Relu", None, 1, True),
        ("Relu", None, 2, False),  # a window would lie entirely in the padding
        ("Clip", 0.0, 1, True),
        ("Clip", -0.5, 1, False),
        ("Clip", None, 1, False),
        ("Neg", None, 1, False),
    ],
)
def test_pooling_pads_what_is_never_negative(node, floor, width, is_joined):
    floors = {} if floor is None else {"floor": np.array(floor, dtype=np.float32)}
    constants = {**floors, "pads": np.array([0, 0, 0, 0, 0, 0, 1, width]), "zero": np.zeros((), dtype=np.float32)}
    nodes = [
        helper.make_node(node, ["pixel_values", *floors], ["bounded"]),
        helper.make_node("Pad", ["bounded", "pads", "zero"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["pooled"], kernel_shape=[2, 2], pads=[1, 0, 0, 0]),
    ]
    image = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, 4, 5])
    result = helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [image], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, 4, 5), dtype=np.float32)}
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, pixels)[0]
    join_padding(model)
    assert (model.graph.node[2].input[0] == "bounded") == is_joined
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, pixels)[0]
    np.testing.assert_array_equal(after, before)


def test_equal_constants_are_shared():
    """The same shape twice, and another one: two constants are left, and the reshaped values stay."""
    model = make_graph([6, -1], [4, -1], [6, -1])
    pixels = {"pixel_values": np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)}
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, pixels)[0]
    share_constants(model)
    assert [node.input[1] for node in model.graph.node] == ["shape0", "shape1", "shape0"]
    assert [constant.name for constant in model.graph.initializer] == ["shape0", "shape1"]
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, pixels)[0]
    np.testing.assert_array_equal(after, before)


def test_the_whole_computes_the_same(tmp_path):
    model = make_graph([6, -1], [0, 4, -1], [0, 0, 0], [-1, 8], [4, -1])
    onnx.save(model, tmp_path / "model.onnx")
    simplify(tmp_path / "model.onnx", (8, 8), 4)
    pixels = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    before, after = (
        onnxruntime.InferenceSession(file).run(None, {"pixel_values": pixels})[0]
        for file in (model.SerializeToString(), tmp_path / "model.onnx")
    )
    np.testing.assert_array_equal(after, before)
    assert len(onnx.load(tmp_path / "model.onnx").graph.node) == 1
