"""Export to ONNX, with simplification and validation against PyTorch."""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configuration_detrpose import DETRPoseConfig
from ..files import whole_folder
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .graph import MODEL_FILE, DETRPoseGraph, output_shapes
from .simplify import simplify
from .validation import ExportError, format_differences, validate_onnx

logger = logging.getLogger(__name__)

DEFAULT_OPSET = 18
# GridSample came with opset 16, and layer normalization with 17.
OPSETS = range(17, 21)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
FEATURES = {
    "default": "outputs logits and keypoints, without post-processing",
    "tensorrt": "without GridSample, which some versions of TensorRT miscompile",
    "any-size": "with dynamic height and width",
    "poses": "with post-processing: takes `target_sizes`, outputs scores, labels and keypoints in pixels",
}


@dataclass(frozen=True)
class Variant:
    """The kind of graph to write; the batch size is always dynamic.

    Args:
        target: runtime of the graph, see [`DETRPoseGraph`].
        any_size: whether height and width are dynamic as well.
        post_process: whether it takes `target_sizes` and returns poses.
    """

    target: str = "onnxruntime"
    any_size: bool = False
    post_process: bool = False

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Parses the variant of a command line: one of `FEATURES`, or several joined by "+".

        Raises:
            ExportError: if it contains an unknown feature.
        """
        features = set(text.split("+"))
        if not features <= set(FEATURES):
            raise ExportError(
                f"--variant must be one of {', '.join(FEATURES)}, or several joined by '+', but got '{text}'."
            )
        target = "tensorrt" if "tensorrt" in features else "onnxruntime"
        return cls(target, any_size="any-size" in features, post_process="poses" in features)

    def input_axes(self) -> dict[str, dict[int, str]]:
        """Returns the names of the inputs' dynamic axes."""
        size = {2: "height", 3: "width"} if self.any_size else {}
        inputs = {"pixel_values": {0: "batch_size", **size}}
        return {**inputs, "target_sizes": {0: "batch_size"}} if self.post_process else inputs

    def output_axes(self, config: DETRPoseConfig) -> dict[str, dict[int, str]]:
        """Returns the names of the outputs' dynamic axes."""
        return {name: {0: "batch_size"} for name in output_shapes(config, self.post_process)}

    def sample_inputs(self, batch_size: int, size_hw: tuple[int, int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Returns inputs for tracing a graph."""
        inputs = {"pixel_values": torch.rand(batch_size, 3, *size_hw).to(dtype)}
        return {**inputs, "target_sizes": torch.tensor([size_hw] * batch_size)} if self.post_process else inputs


def export_onnx(
    model: DETRPoseForPoseEstimation,
    processor: DETRPoseImageProcessor,
    output: str | os.PathLike,
    variant: str = "default",
    size_hw: tuple[int | None, int | None] = (None, None),
    opset: int = DEFAULT_OPSET,
) -> dict[str, float]:
    """Writes a folder with model.onnx, config.json and preprocessor_config.json; nothing if the export fails.

    Args:
        model: the model, in float32 or float16 and on the device for export and validation; it is not modified.
        processor: its image processor.
        output: the folder to write, which must not exist or be empty.
        variant: one of `FEATURES`, or several joined by "+".
        size_hw: height and width of the images in pixels; the image processor's where not given.
        opset: version of ONNX's operator set.

    Returns:
        The differences from PyTorch, see [`validate_onnx`].

    Raises:
        ExportError: if the model cannot be exported in this way, or its graph has other outputs than the model.
        OSError: if the folder is not empty or cannot be written.
    """
    config, kind = model.config, Variant.parse(variant)
    size_hw = image_size(config, processor, *size_hw)
    if opset not in OPSETS:
        raise ExportError(f"the opset must be from {OPSETS[0]} to {OPSETS[-1]}, but got {opset}.")
    with whole_folder(output) as folder:
        file = folder / MODEL_FILE
        axes = {**kind.input_axes(), **kind.output_axes(config)}
        inputs = kind.sample_inputs(2, size_hw, model.dtype)
        write_graph(DETRPoseGraph(model, kind.post_process, kind.target), file, inputs, axes, opset)
        simplify(file, size_hw, config.feature_strides[-1])
        differences = validate_onnx(file, model, kind.post_process, tolerance(model.dtype), size_hw, axes)
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
    log_success(Path(output) / MODEL_FILE, differences)
    return differences


def log_success(file: str | Path, differences: dict[str, float]):
    """Logs that an ONNX file has passed validation."""
    logger.info("%s agrees with PyTorch; largest differences: %s.", file, format_differences(differences))


def image_size(
    config: DETRPoseConfig,
    processor: DETRPoseImageProcessor | None = None,
    height: int | None = None,
    width: int | None = None,
) -> tuple[int, int]:
    """Returns the requested height and width for the export, or else the image processor's.

    Raises:
        ExportError: if they are not multiples of the largest stride.
    """
    size = {**DETRPoseImageProcessor.size, **(dict(processor.size) if processor is not None else {})}
    height, width = height or size["height"], width or size["width"]
    stride = config.feature_strides[-1]
    if height % stride or width % stride:
        raise ExportError(f"height and width must be multiples of {stride}, but got {height} x {width}.")
    return height, width


def tolerance(dtype: torch.dtype) -> float:
    """Returns the largest allowed difference from PyTorch, see [`validate_onnx`].

    In half precision, each operation has a relative rounding error of 5e-4, and there are some hundred in sequence;
    differences of up to 5e-3 were measured.
    """
    return 1e-4 if dtype == torch.float32 else 2e-2


def write_graph(
    graph: DETRPoseGraph,
    file: Path,
    inputs: dict[str, torch.Tensor],
    axes: dict[str, dict[int, str]] | None = None,
    opset: int = DEFAULT_OPSET,
):
    """Traces a graph to an ONNX file with PyTorch's older exporter, whose graphs have fewer nodes.

    Args:
        graph: the graph.
        file: the file to write.
        inputs: inputs for tracing, in order.
        axes: names of the dynamic axes of inputs and outputs; none if not given.
        opset: version of ONNX's operator set.
    """
    device = graph.model.device
    with torch.no_grad(), warnings.catch_warnings():
        # Validation detects the errors that tracing and constant folding warn about.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(tensor.to(device) for tensor in inputs.values()),
            file,
            input_names=list(inputs),
            output_names=list(graph.output_names),
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
