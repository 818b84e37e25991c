"""DETRPose for Optimum's ONNX exporter: `optimum-cli export onnx --task keypoint-detection`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import convert
from optimum.exporters.onnx.config import VisionOnnxConfig
from optimum.exporters.onnx.model_patcher import ModelPatcher
from optimum.exporters.tasks import TasksManager
from optimum.utils import DEFAULT_DUMMY_SHAPES, NormalizedVisionConfig

from ..configuration_detrpose import DETRPoseConfig
from ..image_processing_detrpose import DETRPoseImageProcessor
from . import validation
from .graph import DETRPoseGraph, output_names
from .simplify import simplify
from .validation import ExportError, validate_onnx

TASK = "keypoint-detection"


class DETRPoseModelPatcher(ModelPatcher):
    """Makes a model compute what its graph shall compute, while it is exported."""

    def __init__(self, config, model, model_kwargs=None):
        super().__init__(config, model, model_kwargs)
        self.network, self.graph = model.model, config.make_graph(model)
        self.patched_forward = self.graph.forward

    def __enter__(self):
        super().__enter__()
        self._model.model = self.graph
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        # Whether what tracing and constant folding warn of has happened is what the validation finds out.
        warnings.simplefilter("ignore")

    def __exit__(self, exc_type, exc_value, traceback):
        self.warnings.__exit__(exc_type, exc_value, traceback)
        self._model.model = self.network
        super().__exit__(exc_type, exc_value, traceback)


class DETRPoseOnnxConfig(VisionOnnxConfig):
    """Tells Optimum how to export DETRPose.

    The batch is dynamic. Height and width are those of the image processor, or `--height` and `--width` (64, Optimum's
    own default, counts as not given). A variant is one or several of `VARIANTS`, joined by "+".
    """

    NORMALIZED_CONFIG_CLASS = NormalizedVisionConfig
    VARIANTS = {
        "default": "logits and keypoints, for post-processing outside",
        "tensorrt": "without GridSample, which some versions of TensorRT compute wrongly",
        "any-size": "with dynamic height and width",
        "poses": "with post-processing: `target_sizes` in; scores, labels and keypoints in pixels out",
    }
    _MODEL_PATCHER = DETRPoseModelPatcher

    @property
    def ATOL_FOR_VALIDATION(self) -> float:
        """The largest allowed difference, see [`validate_onnx`].

        Half precision rounds each operation to 5e-4 of its result, and results pass through some hundred operations;
        differences up to 5e-3 were measured.
        """
        return 1e-4 if self.float_dtype == "fp32" else 2e-2

    @property
    def variant(self) -> str:
        """The variant to export."""
        return self._variant

    @variant.setter
    def variant(self, value: str):
        if not set(value.split("+")) <= set(self.VARIANTS):
            raise ExportError(
                f"--variant must be one of {', '.join(self.VARIANTS)}, or several joined by '+', but got '{value}'."
            )
        self._variant = value

    def has(self, feature: str) -> bool:
        """Returns whether the variant includes one of `VARIANTS`."""
        return feature in self.variant.split("+")

    def make_graph(self, model) -> DETRPoseGraph:
        """Returns what to export of a model."""
        return DETRPoseGraph(model, post_process=self.has("poses"), without_grid_sample=self.has("tensorrt"))

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """The inputs and their dynamic axes."""
        size = {2: "height", 3: "width"} if self.has("any-size") else {}
        inputs = {"pixel_values": {0: "batch_size", **size}}
        return {**inputs, "target_sizes": {0: "batch_size"}} if self.has("poses") else inputs

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The outputs and their dynamic axes."""
        return {name: {0: "batch_size"} for name in output_names(self._config, self.has("poses"))}

    def generate_dummy_inputs(self, framework: str = "pt", batch_size: int = 2, **shapes) -> dict[str, Any]:
        """Returns inputs to trace the model with.

        Raises:
            ExportError: if the model cannot take images of that size or precision.
        """
        if self.float_dtype not in ("fp32", "fp16"):
            raise ExportError(f"--dtype must be fp32 or fp16, but got {self.float_dtype}.")
        height, width = self.image_size(shapes.get("height"), shapes.get("width"))
        dtype = torch.float32 if self.float_dtype == "fp32" else torch.float16
        inputs = {"pixel_values": torch.rand(batch_size, 3, height, width).to(dtype)}
        if self.has("poses"):
            inputs["target_sizes"] = torch.tensor([[height, width]]).repeat(batch_size, 1)
        return inputs if framework == "pt" else {name: value.numpy() for name, value in inputs.items()}

    def image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Returns the height and width to export for, from those that Optimum was given.

        Raises:
            ExportError: if they are no multiples of the largest stride.
        """
        processors = [p for p in self._preprocessors or () if isinstance(p, DETRPoseImageProcessor)]
        size = {**DETRPoseImageProcessor.size, **(dict(processors[0].size) if processors else {})}
        height = size["height"] if height in (None, DEFAULT_DUMMY_SHAPES["height"]) else height
        width = size["width"] if width in (None, DEFAULT_DUMMY_SHAPES["width"]) else width
        stride = self._config.feature_strides[-1]
        if height % stride or width % stride:
            raise ExportError(f"height and width must be multiples of {stride}, but got {height} x {width}.")
        return height, width

    def post_process_exported_models(self, path: Path, models_and_onnx_configs: dict, onnx_files_subpaths: list[str]):
        """Simplifies the graph, in place, and returns the arguments."""
        for name in onnx_files_subpaths:
            simplify(Path(path) / name, self.image_size(None, None), self._config.feature_strides[-1])
        return models_and_onnx_configs, onnx_files_subpaths


def register_with_optimum():
    """Makes DETRPose known to Optimum's ONNX exporter. Doing so again changes nothing."""
    TasksManager.create_register("onnx", overwrite_existing=True)(DETRPoseConfig.model_type, TASK)(DETRPoseOnnxConfig)
    TasksManager._TRANSFORMERS_TASKS_TO_MODEL_LOADERS.setdefault(TASK, "AutoModelForKeypointDetection")
    convert.validate_models_outputs = validate_models_outputs


def run_export(export: Callable[[], None]):
    """Runs a command of Optimum's with DETRPose registered; what the export is refused for is told in one line.

    Args:
        export: makes the export.

    Raises:
        SystemExit: if the export cannot be made, or its graph does not compute what the model computes.
    """
    register_with_optimum()
    validation.logger.addHandler(logging.StreamHandler())
    validation.logger.setLevel(logging.INFO)
    try:
        export()
    except (ExportError, RuntimeError) as error:
        # Optimum wraps what the validation raises.
        reason = error if isinstance(error, ExportError) else error.__cause__
        if not isinstance(reason, ExportError):
            raise
        raise SystemExit(f"error: {reason}") from error


_validate_other_models = convert.validate_models_outputs


def validate_models_outputs(
    models_and_onnx_configs: dict,
    onnx_named_outputs: list[list[str]],
    output_dir: Path,
    atol: float | None = None,
    onnx_files_subpaths: list[str] | None = None,
    input_shapes: dict | None = None,
    device: str = "cpu",
    **kwargs,
):
    """Stands in for Optimum's function of that name, which compares rows that rounding errors may swap, and whose
    caller only warns of differences. Models other than DETRPose still get that one.

    Raises:
        ExportError: if a graph does not compute what its model computes.
    """
    if not all(isinstance(config, DETRPoseOnnxConfig) for _, config in models_and_onnx_configs.values()):
        arguments = (onnx_named_outputs, output_dir, atol, onnx_files_subpaths, input_shapes, device)
        return _validate_other_models(models_and_onnx_configs, *arguments, **kwargs)
    shapes = input_shapes or {}
    names = onnx_files_subpaths or [f"{name}.onnx" for name in models_and_onnx_configs]
    for name, (model, config) in zip(names, models_and_onnx_configs.values(), strict=True):
        validate_onnx(
            Path(output_dir) / name,
            model,
            post_process=config.has("poses"),
            atol=config.ATOL_FOR_VALIDATION if atol is None else atol,
            size_hw=config.image_size(shapes.get("height"), shapes.get("width")),
            provider="CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider",
        )
