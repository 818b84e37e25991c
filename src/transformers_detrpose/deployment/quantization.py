"""8-bit quantization of exported models."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from ..files import whole_folder
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..images import load_rgb_image
from ..loading import first_line, load_image_processor
from .graph import MODEL_FILE
from .onnx_runtime import ORTDETRPoseForPoseEstimation

OPERATORS = ["Conv", "Gemm", "MatMul"]


class CalibrationImages(CalibrationDataReader):
    """Provides ONNX Runtime with calibration images, one at a time.

    Args:
        files: the image files.
        processor: the model's image processor.
    """

    def __init__(self, files: Iterable[Path], processor: DETRPoseImageProcessor):
        self.files, self.processor = iter(tqdm(files, desc="calibrating", unit="image")), processor

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the inputs of the next run, or None after the last."""
        file = next(self.files, None)
        if file is None:
            return None
        try:
            image = load_rgb_image(file)
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            raise ValueError(f"cannot read image {file}: {first_line(error)}") from error
        return {"pixel_values": self.processor(images=image, return_tensors="pt")["pixel_values"].numpy()}


def quantize_onnx(source: str | os.PathLike, images: Iterable[Path], output: str | os.PathLike):
    """Writes a copy of an exported model whose convolutions and matrix products use 8-bit integers.

    Weights are quantized per channel to signed integers, and activations to unsigned integers, with ranges calibrated
    on the images; other operations stay in float32.

    Args:
        source: a folder written by [`export_onnx`].
        images: image files for calibration, similar to those that the model will be used on.
        output: the folder to write, which must not exist or be empty.

    Raises:
        ValueError: if the model is not in float32 or includes post-processing, or an image cannot be read.
        OSError: if the output folder is not empty or cannot be written.
    """
    source = Path(source)
    check_source(source)
    processor = load_image_processor(str(source))
    with whole_folder(output) as folder, tempfile.TemporaryDirectory() as scratch, only_errors():
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.onnx*"), dirs_exist_ok=True)
        prepared = Path(scratch) / MODEL_FILE
        # Symbolic shape inference lacks some of the operators, and is not needed.
        quant_pre_process(source / MODEL_FILE, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            folder / MODEL_FILE,
            CalibrationImages(images, processor),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def check_source(source: Path):
    """Raises `ValueError` unless a folder contains an exported model that can be quantized."""
    if not (source / MODEL_FILE).is_file():
        raise ValueError(f"{source} is not a folder with a {MODEL_FILE}.")
    model = ORTDETRPoseForPoseEstimation.from_pretrained(source)
    if model.has_poses:
        raise ValueError(f"{source / MODEL_FILE} does not take pixel_values alone: export it without --variant poses.")
    if model.dtype != torch.float32:
        raise ValueError(f"{source / MODEL_FILE} is not in float32: export it without --dtype.")


@contextmanager
def only_errors() -> Iterator[None]:
    """Limits the log to errors, as ONNX Runtime's quantization logs a line for every constant and step."""
    root = logging.getLogger()  # which it logs to
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
