"""Makes an 8-bit copy of an exported model: a smaller file that processors run faster, with slightly other poses.

    optimum-cli export onnx --model detrpose-l --task keypoint-detection onnx
    python examples/quantize_onnx.py --onnx onnx --images val2017 --output onnx-int8

Convolutions and matrix products compute with 8-bit numbers, whose ranges are those that the pictures show: give some
that are like those the model will see. All between them stays in float32. The copy is a folder as the export has
written it, and runs in the same places. Needs `pip install -e ".[onnx]"`, or onnxruntime and onnx.
"""

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm
from transformers import AutoImageProcessor

from .. import DETRPoseConfig  # noqa: F401 - registers the model with transformers
from ..images import load_rgb_image
from .command_line import IMAGE_SUFFIXES, CommandError, count, first_line

MODEL_FILE = "model.onnx"
OPERATORS = ["Conv", "Gemm", "MatMul"]


class Pictures(CalibrationDataReader):
    """Gives ONNX Runtime the pictures to see ranges in, one at a time.

    Args:
        files: The pictures.
        processor: The model's image processor.
    """

    def __init__(self, files: list[Path], processor):
        self.files = iter(tqdm(files, desc="calibrating", unit="picture"))
        self.processor = processor

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the inputs of the next run, or None after the last."""
        file = next(self.files, None)
        if file is None:
            return None
        try:
            image = load_rgb_image(file)
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            raise CommandError(f"cannot read image {file}: {first_line(error)}") from error
        return {"pixel_values": self.processor(images=image, return_tensors="pt")["pixel_values"].numpy()}


def quantize(source: Path, images: Path, output: Path, max_images: int):
    """Writes the 8-bit copy of an exported model.

    Args:
        source: Folder that the export has written.
        images: Folder of pictures to calibrate with, the folders below it included.
        output: Folder to write; it appears when all is done.
        max_images: Most pictures to use, the first by name.

    Raises:
        CommandError: if the model or the pictures are not what is wanted, or the output exists.
    """
    if output.exists():
        raise CommandError(f"--output {output} exists already: choose another folder, or remove it first")
    if not (source / MODEL_FILE).is_file():
        raise CommandError(f"--onnx {source} is not a folder with a {MODEL_FILE}")
    inputs = onnx.load(source / MODEL_FILE, load_external_data=False).graph.input
    if [node.name for node in inputs] != ["pixel_values"]:
        names = ", ".join(node.name for node in inputs)
        raise CommandError(f"--onnx {source} takes {names}, not pixel_values alone: export it without --variant poses")
    if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise CommandError(f"--onnx {source} is not in float32: export it without --dtype")
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:max_images]
    if not files:
        raise CommandError(f"--images {images} has no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    try:
        pictures = Pictures(files, AutoImageProcessor.from_pretrained(source))
    except (OSError, ValueError) as error:
        raise CommandError(f"--onnx {source} has no image processor: {first_line(error)}") from error

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        prepared, unfinished = Path(folder) / "prepared.onnx", Path(folder) / "unfinished"
        shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns("*.onnx", "*.onnx.data", "*.onnx_data"))
        # The other, symbolic, inference of shapes does not know all operators, and is not needed.
        quant_pre_process(source / MODEL_FILE, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            unfinished / MODEL_FILE,
            pictures,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        unfinished.rename(output)


def main(argv: list[str] | None = None) -> int:
    """Reads the command line, quantises and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    required = {"required": True, "type": Path, "metavar": "DIR", "default": argparse.SUPPRESS}
    parser.add_argument("--onnx", **required, help="folder that `optimum-cli export onnx` has written")
    parser.add_argument("--images", **required, help="folder of pictures to calibrate with")
    parser.add_argument("--output", **required, help="folder to write")
    parser.add_argument("--max-images", type=count, default=100, metavar="N", help="most pictures to use")
    args = parser.parse_args(argv)
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime remarks on every constant and on every step
    try:
        quantize(args.onnx, args.images, args.output, args.max_images)
    except (CommandError, OSError) as error:
        print(f"quantize_onnx.py: error: {first_line(error)}", file=sys.stderr)
        return 1
    before, after = ((folder / MODEL_FILE).stat().st_size / 1e6 for folder in (args.onnx, args.output))
    print(f"{args.output / MODEL_FILE}: {after:.1f} MB, before {before:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
