"""Simplification of ONNX graphs: onnxslim, and three passes that it lacks, with their measured gains.

The gains are those for DETRPose-N and DETRPose-L at 640x640 with a dynamic batch size, beyond those of onnxslim.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim

from .validation import make_inputs


def simplify(file: str | Path, size_hw: tuple[int, int], stride: int):
    """Folds constants and removes redundant nodes, including shape computations, in place.

    Args:
        file: the ONNX file.
        size_hw: height and width of images that the graph accepts, in pixels.
        stride: number that height and width must be multiples of.
    """
    model = onnxslim.slim(str(file))
    join_padding(model)
    freeze_reshapes(model, size_hw, stride)
    model = onnxslim.slim(model)
    share_constants(model)
    onnx.save(model, str(file))


def share_constants(model: onnx.ModelProto):
    """Leaves one of all equal constants, in place.

    The layers of ECViT use the same position encoding: without copies, ECPose-S takes 43.8 instead of 52.8 MB.
    """
    first_of: dict[bytes, str] = {}
    kept, renamed = [], {}
    for constant in model.graph.initializer:
        nameless = onnx.TensorProto()
        nameless.CopyFrom(constant)
        nameless.ClearField("name")
        renamed[constant.name] = first_of.setdefault(nameless.SerializeToString(), constant.name)
        kept += [constant] if renamed[constant.name] == constant.name else []
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def join_padding(model: onnx.ModelProto):
    """Moves zero padding from a Pad node into the MaxPool node after it, in place.

    MaxPool pads with minus infinity, which gives the same result if no input is negative. This saves a copy of the
    largest feature map of the backbone's stem: Pad and MaxPool together took 3.4 ms for N and 6.9 ms for L on one
    thread, MaxPool alone 2.4 and 5.0 ms.
    """
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for pool in model.graph.node:
        pad = producers.get(pool.input[0]) if pool.op_type == "MaxPool" else None
        if pad is None or pad.op_type != "Pad" or not is_never_negative(producers.get(pad.input[0]), constants):
            continue
        pads = joined_pads(pad, pool, constants)
        if pads is not None:
            others = [x for x in pool.attribute if x.name != "pads"]
            del pool.attribute[:]
            pool.attribute.extend([*others, onnx.helper.make_attribute("pads", pads)])
            pool.input[0] = pad.input[0]


def joined_pads(pad: onnx.NodeProto, pool: onnx.NodeProto, constants: dict[str, np.ndarray]) -> list[int] | None:
    """Returns the total padding of a MaxPool node and the Pad node before it, or None if they cannot be merged."""
    attributes = {x.name: onnx.helper.get_attribute_value(x) for x in (*pad.attribute, *pool.attribute)}
    amounts, values = constants.get(pad.input[1], np.zeros(0)), [constants.get(x, 1.0) for x in pad.input[2:3] if x]
    if attributes.get("mode", b"constant") != b"constant" or len(amounts) != 8 or any(values):
        return None
    # Pad lists batch, channels, height and width, first at their starts, then at their ends.
    pads = np.array(attributes.get("pads", [0] * 4)) + amounts[[2, 3, 6, 7]]
    fits_into_windows = (pads < 2 * attributes["kernel_shape"]).all()
    return pads.tolist() if fits_into_windows and not amounts[[0, 1, 4, 5]].any() else None


def is_never_negative(node: onnx.NodeProto | None, constants: dict[str, np.ndarray]) -> bool:
    """Returns whether the output of a node is known to be nonnegative."""
    if node is None or node.op_type != "Clip":
        return node is not None and node.op_type == "Relu"
    return len(node.input) > 1 and constants.get(node.input[1], -1) >= 0


def freeze_reshapes(model: onnx.ModelProto, size_hw: tuple[int, int], stride: int):
    """Makes shapes of Reshape nodes constant if at most one dimension is dynamic, and removes no-ops, in place.

    PyTorch's exporter computes each shape with a dynamic dimension by about six nodes, although a constant shape may
    contain one -1. Dynamic dimensions are found by running the graph with another batch size and another image size.
    This removes 48 of N's 630 nodes and 80 of L's 1,174.
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
    """Returns the shapes of intermediate tensors by name, for inputs of several sizes, (trials, dimensions)."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])

    height, width = size_hw
    # Batch and image size change separately, so that a product of dimensions cannot stay the same by chance.
    trials = [(1, 3, height, width), (2, 3, height, width), (1, 3, height + stride, width + 2 * stride)]
    outputs = [session.run(names, make_inputs(session, trial)) for trial in trials] if names else []
    shapes = (np.array([value.shape for value in values]) for values in zip(*outputs, strict=True))
    return dict(zip(names, shapes, strict=True))
