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
    freeze_reshapes(model, size_hw, stride)
    onnx.save(onnxslim.slim(model), str(file))


def freeze_reshapes(model: onnx.ModelProto, size_hw: tuple[int, int], stride: int):
    """Gives Reshape nodes constant shapes, in place, wherever at most one dimension depends on the input.

    PyTorch's exporter computes each shape from the shape of some tensor, by half a dozen nodes, because the batch size
    is dynamic. But one unknown dimension may be written as -1. Which dimensions are unknown is seen by running the
    graph with another batch size, and with another image size.
    """
    constants = {constant.name for constant in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Reshape" and node.input[1] not in constants]
    for node, shapes in zip(nodes, observe_shapes(model, nodes, size_hw, stride), strict=True):
        varies = (shapes != shapes[0]).any(axis=0)
        if varies.sum() <= 1:
            shape = np.where(varies, -1, shapes[0]).astype(np.int64)
            node.input[1] = f"{node.output[0]}_shape"
            model.graph.initializer.append(onnx.numpy_helper.from_array(shape, node.input[1]))


def observe_shapes(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], size_hw: tuple[int, int], stride: int
) -> list[np.ndarray]:
    """Returns the shapes (trials, dimensions) that the first output of each node has in several trials."""
    names = [node.output[0] for node in nodes]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])

    height, width = size_hw
    # One change at a time, so that changes cannot make up for each other.
    trials = [(1, 3, height, width), (2, 3, height, width), (1, 3, height + stride, width + 2 * stride)]
    outputs = [session.run(names, make_inputs(session, trial)) for trial in trials] if names else []
    return [np.array([value.shape for value in values]) for values in zip(*outputs, strict=True)]
