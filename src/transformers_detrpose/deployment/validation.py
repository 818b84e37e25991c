"""Validation of an exported graph against its model."""

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch.overrides import TorchFunctionMode

from ..loading import first_line
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .graph import compute_outputs, output_shapes
from .tf32 import tf32


class ExportError(ValueError):
    """The model cannot be exported, or the graph's outputs differ from the model's."""


def validate_onnx(
    file: str | Path,
    model: DETRPoseForPoseEstimation,
    post_process: bool = False,
    atol: float = 1e-4,
    size_hw: tuple[int, int] = (640, 640),
    axes: Mapping[str, Mapping[int, str]] | None = None,
) -> dict[str, float]:
    """Runs a graph in ONNX Runtime on noise images and compares every output with PyTorch's, on the model's device.

    Queries are ordered by the scores of image locations, so a tie to within rounding error makes two correct results
    look different. PyTorch therefore uses the graph's ranking, computing in float32, and the ranking is validated by
    the scores of the selected locations. Dynamic batch and image sizes are tested with more than one value.

    Args:
        file: the ONNX file.
        model: the reference model, fused or not.
        post_process: whether the graph returns poses, see [`compute_outputs`].
        atol: maximum difference, relative to the largest value of the output if that is above 1.
        size_hw: height and width of the images in pixels, if they are dynamic in the graph.
        axes: the axes of inputs and outputs that must be dynamic, as for `torch.onnx.export`; none if not given.

    Returns:
        The largest difference of each output, and of the scores of the `ranking`.

    Raises:
        ExportError: if the outputs have unexpected names or shapes, or differ by more than `atol`, or an axis is fixed.
    """
    model = copy.deepcopy(model).float().eval()
    session, rankings = open_session(file, model.device)
    found, expected = [output.name for output in session.get_outputs()], output_shapes(model.config, post_process)
    if set(found) - set(rankings) != set(expected):
        raise ExportError(f"{file} must have the outputs {', '.join(expected)}, but has {', '.join(found)}.")
    check_dynamic(session, axes or {})

    differences = dict.fromkeys((*expected, "ranking"), 0.0)
    height, width = size_hw
    stride = model.config.feature_strides[-1]
    with tf32(False):
        for shape in ((3, 3, height, width), (1, 3, height + stride, width + 2 * stride)):
            inputs = make_inputs(session, shape)
            for name, value in compare(session, rankings, model, inputs, post_process).items():
                # Unlike max, this propagates NaN.
                differences[name] = float(np.maximum(differences[name], value))
    if not all(value <= atol for value in differences.values()):
        raise ExportError(
            f"{Path(file).name} differs from PyTorch by more than {atol:g}; do not use it: "
            f"{format_differences(differences)}."
        )
    return differences


def check_dynamic(session: onnxruntime.InferenceSession, axes: Mapping[str, Mapping[int, str]]):
    """Raises `ExportError` if one of the axes, {input or output: {axis: its name}}, has a fixed length in a graph."""
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    for name, names in axes.items():
        for axis, meaning in names.items():
            length = shapes[name][axis]
            if isinstance(length, int):
                raise ExportError(f"the {meaning} of {name} must be dynamic, but the graph fixes it to {length}.")


def format_differences(differences: dict[str, float]) -> str:
    """Formats the differences in one line."""
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())


def open_session(file: str | Path, device: torch.device) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """Opens a graph with the indices of its TopK nodes as additional outputs, and returns their names in order.

    Raises:
        ExportError: if ONNX Runtime cannot run the file on the device.
    """
    provider, options = "CPUExecutionProvider", {}
    if device.type == "cuda":
        # Without TF32, like PyTorch, see [`tf32`].
        provider, options = "CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": "0"}
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ExportError(f"this installation of ONNX Runtime has no {provider}, only {', '.join(available)}.")
    try:
        graph = onnx.load(str(file))
    except Exception as error:  # protobuf raises various types
        raise ExportError(f"{file} is not an ONNX file.") from error
    rankings = [node.output[1] for node in graph.graph.node if node.op_type == "TopK"]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in rankings]
    graph.graph.output.extend(values)
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=[(provider, options)])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ExportError(f"ONNX Runtime cannot load {file}: {first_line(error)}") from error
    return session, rankings


def make_inputs(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns noise images for a graph, (batch, 3, height, width), of the graph's shape where that is fixed."""
    pixels = session.get_inputs()[0]
    shape = tuple(own if isinstance(own, int) else free for own, free in zip(pixels.shape, shape, strict=True))
    noise = np.random.default_rng(0).random(shape, dtype=np.float32)
    inputs = {"pixel_values": noise.astype(np.float16 if pixels.type == "tensor(float16)" else np.float32)}
    if "target_sizes" in {x.name for x in session.get_inputs()}:
        inputs["target_sizes"] = np.array([shape[2:]] * shape[0], dtype=np.int64)
    return inputs


def compare(session, rankings: list[str], model, inputs: dict[str, np.ndarray], post_process: bool) -> dict[str, float]:
    """Returns the difference of each output for the given inputs."""
    names = [output.name for output in session.get_outputs()]
    try:
        results = dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        shape = inputs["pixel_values"].shape
        raise ExportError(f"the graph does not run on images of the shape {shape}: {first_line(error)}") from error
    indices = [torch.from_numpy(results.pop(name)).to(model.device) for name in rankings]
    inputs = {name: torch.from_numpy(value).float().to(model.device) for name, value in inputs.items()}
    with torch.no_grad(), GivenRankings(indices) as given:
        expected = compute_outputs(model, **inputs, post_process=post_process)
    expected = {name: value.cpu().numpy() for name, value in expected.items()}
    return {"ranking": given.difference, **{name: difference(results[name], expected[name]) for name in results}}


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest expected value if that is above 1."""
    if found.shape != expected.shape:
        raise ExportError(f"an output of the graph has the shape {found.shape}, but should have {expected.shape}.")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


class GivenRankings(TorchFunctionMode):
    """Makes `topk` select given indices, one set per call, and records how far their values are from the largest
    ones."""

    def __init__(self, indices: list[torch.Tensor]):
        super().__init__()
        self.indices = indices
        self.difference = 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func not in (torch.topk, torch.Tensor.topk):
            return result
        # Independent ones may be in another order in the graph, but those of visibility have a shape of their own.
        shape = result.indices.shape
        position = next((number for number, given in enumerate(self.indices) if given.shape == shape), None)
        if position is None:
            raise ExportError("the graph's rankings do not match the model's.")
        dim = {"dim": -1, **dict(zip(("input", "k", "dim"), args, strict=False)), **(kwargs or {})}["dim"]
        indices = self.indices.pop(position)
        values = args[0].gather(dim, indices)
        self.difference = float(
            np.maximum(self.difference, difference(values.cpu().numpy(), result.values.cpu().numpy()))
        )
        return torch.return_types.topk((values, indices))
