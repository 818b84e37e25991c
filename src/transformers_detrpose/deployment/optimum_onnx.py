"""DETRPose for Optimum's ONNX exporter, `optimum-cli export onnx`, on transformers 4.57: a thin adapter.

Optimum looks up models in tables and calls functions of its modules. All changes to these are undone after the export.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import convert
from optimum.exporters.onnx.config import VisionOnnxConfig
from optimum.exporters.onnx.model_patcher import ModelPatcher
from optimum.exporters.tasks import TasksManager
from optimum.utils import DEFAULT_DUMMY_SHAPES, NormalizedVisionConfig

from ..configuration_detrpose import DETRPoseConfig
from ..files import whole_folder
from ..image_processing_detrpose import DETRPoseImageProcessor
from .graph import DETRPoseGraph
from .onnx_export import FEATURES, PRECISIONS, Variant, image_size, log_success, tolerance
from .simplify import simplify
from .validation import ExportError, validate_onnx

TASK = "keypoint-detection"


class DETRPoseModelPatcher(ModelPatcher):
    """Makes a model compute its graph's outputs during export."""

    def __init__(self, config, model, model_kwargs=None):
        super().__init__(config, model, model_kwargs)
        self.network = model.model
        self.graph = DETRPoseGraph(model, config.features.post_process, config.features.target)
        self.patched_forward = self.graph.forward

    def __enter__(self):
        super().__enter__()
        self._model.model = self.graph
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        # Validation detects the errors that tracing and constant folding warn about.
        warnings.simplefilter("ignore")

    def __exit__(self, exc_type, exc_value, traceback):
        self.warnings.__exit__(exc_type, exc_value, traceback)
        self._model.model = self.network
        super().__exit__(exc_type, exc_value, traceback)


class DETRPoseOnnxConfig(VisionOnnxConfig):
    """DETRPose's export configuration for Optimum.

    The batch size is dynamic. Height and width are those of the image processor unless `--height` and `--width` are
    given (64, Optimum's default, counts as not given). The variants are those of [`export_onnx`].
    """

    NORMALIZED_CONFIG_CLASS = NormalizedVisionConfig
    VARIANTS = FEATURES
    _MODEL_PATCHER = DETRPoseModelPatcher

    @property
    def ATOL_FOR_VALIDATION(self) -> float:
        """The maximum difference from PyTorch, see [`tolerance`]."""
        return tolerance(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights.

        Raises:
            ExportError: if the model cannot be exported in the requested precision.
        """
        if self.float_dtype not in PRECISIONS:
            raise ExportError(f"--dtype must be {' or '.join(PRECISIONS)}, but got {self.float_dtype}.")
        return PRECISIONS[self.float_dtype]

    @property
    def variant(self) -> str:
        """The variant to export."""
        return self._variant

    @variant.setter
    def variant(self, value: str):
        self._variant, self.features = value, Variant.parse(value)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """The inputs and their dynamic axes."""
        return self.features.input_axes()

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The outputs and their dynamic axes."""
        return self.features.output_axes(self._config)

    def generate_dummy_inputs(self, framework: str = "pt", batch_size: int = 2, **shapes) -> dict[str, Any]:
        """Returns inputs for tracing the model.

        Raises:
            ExportError: if the model does not accept images of that size or precision.
        """
        size_hw = self.image_size(shapes.get("height"), shapes.get("width"))
        inputs = self.features.sample_inputs(batch_size, size_hw, self.dtype)
        return inputs if framework == "pt" else {name: value.numpy() for name, value in inputs.items()}

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Returns the height and width for the export, given those requested from Optimum, see [`image_size`]."""
        processors = [p for p in self._preprocessors or () if isinstance(p, DETRPoseImageProcessor)]
        height = None if height == DEFAULT_DUMMY_SHAPES["height"] else height
        width = None if width == DEFAULT_DUMMY_SHAPES["width"] else width
        return image_size(self._config, processors[0] if processors else None, height, width)

    def post_process_exported_models(self, path: Path, models_and_onnx_configs: dict, onnx_files_subpaths: list[str]):
        """Simplifies the graph, in place, and returns the arguments."""
        for name in onnx_files_subpaths:
            simplify(Path(path) / name, self.image_size(), self._config.feature_strides[-1])
        return models_and_onnx_configs, onnx_files_subpaths


@contextmanager
def known_to_optimum() -> Iterator[None]:
    """Registers DETRPose with Optimum's ONNX exporter within a `with` statement."""
    library = "transformers"
    model_types = TasksManager._LIBRARY_TO_SUPPORTED_MODEL_TYPES[library]
    loaders = TasksManager._LIBRARY_TO_TASKS_TO_MODEL_LOADER_MAP[library]
    # transformers 4.57 warns of a "slow image processor" for every class name that does not end in "Fast".
    auto_image_processor = logging.getLogger("transformers.models.auto.image_processing_auto")
    with ExitStack() as stack:
        stack.enter_context(restored(model_types))
        stack.enter_context(restored(loaders))
        loaders.setdefault(TASK, "AutoModelForKeypointDetection")
        TasksManager.create_register("onnx")(DETRPoseConfig.model_type, TASK)(DETRPoseOnnxConfig)
        stack.enter_context(replaced(convert, "validate_models_outputs", validate_models_outputs))
        stack.callback(auto_image_processor.setLevel, auto_image_processor.level)
        auto_image_processor.setLevel(logging.ERROR)
        yield


@contextmanager
def restored(table: dict) -> Iterator[None]:
    """Restores a dictionary's content afterwards."""
    content = copy.copy(table)
    try:
        yield
    finally:
        table.clear()
        table.update(content)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute's value, and restores it afterwards."""
    present = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, present)


def run_export(export: Callable[[Path], None], output: str | Path):
    """Runs an export of Optimum's with DETRPose registered, and reports errors in one line.

    Args:
        export: performs the export into the given folder.
        output: final path of the folder.

    Raises:
        SystemExit: if the model cannot be exported, or the graph's outputs differ from the model's.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("transformers_detrpose").setLevel(logging.INFO)
    try:
        with known_to_optimum(), whole_folder(output) as folder:
            export(folder)
    except (ExportError, OSError, RuntimeError) as error:
        # Optimum wraps the validation's exceptions.
        reason = error if isinstance(error, (ExportError, OSError)) else error.__cause__
        if not isinstance(reason, (ExportError, OSError)):
            raise
        raise SystemExit(f"error: {reason}") from error


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
    """Replaces Optimum's function of that name, which compares rows that rounding errors may swap, and whose caller
    only warns of differences.

    Raises:
        ExportError: if a graph's outputs differ from its model's.
    """
    shapes = input_shapes or {}
    names = onnx_files_subpaths or [f"{name}.onnx" for name in models_and_onnx_configs]
    for name, (model, config) in zip(names, models_and_onnx_configs.values(), strict=True):
        file = Path(output_dir) / name
        size_hw = config.image_size(shapes.get("height"), shapes.get("width"))
        atol = config.ATOL_FOR_VALIDATION if atol is None else atol
        log_success(file.name, validate_onnx(file, model.to(device), config.features.post_process, atol, size_hw))
