"""Takes out of a graph what is the same for every input."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim

from .validation import make_inputs


def simplify(file: str | Path, size_hw: tuple[int, int], stride: int):
    """Folds constants and removes nodes without effect, the computation of shapes included, in place.

    Args:
        file: the ONNX file.
        size_hw: height and width of images that the graph takes, in pixels.
        stride: what height and width must be multiples of.
    """
    model = onnxslim.slim(str(file))
    skip_reshapes(model)
    join_padding(model)
    freeze_reshapes(model, size_hw, stride)
    onnx.save(onnxslim.slim(model), str(file))


def skip_reshapes(model: onnx.ModelProto):
    """Lets Reshape nodes that reshape what another one has reshaped read from before that one, in place."""
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}
    reshapes = {node.output[0]: node for node in model.graph.node if node.op_type == "Reshape"}
    for node in reshapes.values():
        copies_sizes = 0 in constants.get(node.input[1], ())  # 0 stands for what the size was before
        while node.input[0] in reshapes and not copies_sizes:
            node.input[0] = reshapes[node.input[0]].input[0]


def join_padding(model: onnx.ModelProto):
    """Lets MaxPool nodes pad their input themselves, where a Pad node with zeros did it, in place.

    Pooling pads with minus infinity, which makes no difference where no input is negative.
    """
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for pool in model.graph.node:
        pad = producers.get(pool.input[0]) if pool.op_type == "MaxPool" else None
        if pad is None or pad.op_type != "Pad" or not is_never_negative(producers.get(pad.input[0]), constants):
            continue
        attributes = {x.name: onnx.helper.get_attribute_value(x) for x in (*pad.attribute, *pool.attribute)}
        amounts, values = constants.get(pad.input[1], np.zeros(0)), [constants.get(x, 1.0) for x in pad.input[2:3] if x]
        if attributes.get("mode", b"constant") != b"constant" or len(amounts) != 8 or any(values):
            continue
        pads = np.array(attributes.get("pads", [0] * 4)) + amounts[[2, 3, 6, 7]]
        if not amounts[[0, 1, 4, 5]].any() and (pads < 2 * attributes["kernel_shape"]).all():
            others = [x for x in pool.attribute if x.name != "pads"]
            del pool.attribute[:]
            pool.attribute.extend([*others, onnx.helper.make_attribute("pads", pads.tolist())])
            pool.input[0] = pad.input[0]


def is_never_negative(node: onnx.NodeProto | None, constants: dict[str, np.ndarray]) -> bool:
    """Tells whether the output of a node is known to hold no negative number."""
    if node is None or node.op_type != "Clip":
        return node is not None and node.op_type == "Relu"
    return len(node.input) > 1 and constants.get(node.input[1], -1) >= 0


def freeze_reshapes(model: onnx.ModelProto, size_hw: tuple[int, int], stride: int):
    """Gives Reshape nodes constant shapes, wherever at most one dimension depends on the input, and takes out those
    that change nothing, in place.

    PyTorch's exporter computes each shape from the shape of some tensor, by half a dozen nodes, because the batch size
    is dynamic. But one unknown dimension may be written as -1. Which dimensions are unknown is seen by running the
    graph with another batch size, and with another image size.
    """
    constants = {constant.name for constant in model.graph.initializer}
    graph_outputs = {output.name for output in model.graph.output}
    nodes = [node for node in model.graph.node if node.op_type == "Reshape" and node.input[0] not in constants]
    names = {name for node in nodes for name in (node.input[0], node.output[0])}
    shapes = observe_shapes(model, sorted(names), size_hw, stride)
    unchanged = {}
    for node in nodes:
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        varies = (after != after[0]).any(axis=0)
        if np.array_equal(before, after) and node.output[0] not in graph_outputs:
            unchanged[node.output[0]] = node.input[0]
        elif varies.sum() <= 1 and node.input[1] not in constants:
            shape = np.where(varies, -1, after[0]).astype(np.int64)
            node.input[1] = f"{node.output[0]}_shape"
            model.graph.initializer.append(onnx.numpy_helper.from_array(shape, node.input[1]))
    for node in model.graph.node:
        node.input[:] = [unchanged.get(name, name) for name in node.input]


def observe_shapes(
    model: onnx.ModelProto, names: list[str], size_hw: tuple[int, int], stride: int
) -> dict[str, np.ndarray]:
    """Returns the shapes (trials, dimensions) that values of a graph, by their names, have in several trials."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])

    height, width = size_hw
    # One change at a time, so that changes cannot make up for each other.
    trials = [(1, 3, height, width), (2, 3, height, width), (1, 3, height + stride, width + 2 * stride)]
    outputs = [session.run(names, make_inputs(session, trial)) for trial in trials] if names else []
    shapes = (np.array([value.shape for value in values]) for values in zip(*outputs, strict=True))
    return dict(zip(names, shapes, strict=True))
