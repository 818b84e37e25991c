"""Quantizes an exported model to 8 bits: a smaller file that runs faster on CPUs, with slightly different poses.

    detrpose export onnx --model detrpose-l onnx
    detrpose quantize --onnx onnx --images val2017 --output onnx-int8

Convolutions and matrix products use 8-bit integers, calibrated on the images, which should be similar to those that the
model will be used on. The copy is used like the exported folder. Requires `pip install "transformers-detrpose[onnx]"`.
"""

import argparse
from pathlib import Path

from ..deployment.graph import MODEL_FILE
from ..deployment.quantization import quantize_onnx
from ..files import check_new_folder
from .command_line import add_max_pixels, count, find_images, run_command


def quantize(args: argparse.Namespace):
    """Quantizes the model."""
    check_new_folder(args.output)  # before anything slow
    files = find_images([args.images], "--images")[: args.max_images]
    quantize_onnx(args.onnx, files, args.output)
    before, after = ((folder / MODEL_FILE).stat().st_size / 1e6 for folder in (args.onnx, args.output))
    print(f"{args.output / MODEL_FILE}: {after:.1f} MB, before {before:.1f} MB")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose quantize",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required = {"required": True, "type": Path, "metavar": "DIR", "default": argparse.SUPPRESS}
    parser.add_argument("--onnx", **required, help="folder written by `detrpose export onnx`")
    parser.add_argument("--images", **required, help="folder of calibration images")
    parser.add_argument("--output", **required, help="folder to write; must not exist or be empty")
    parser.add_argument("--max-images", type=count, default=100, metavar="N", help="maximum number of images")
    add_max_pixels(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose quantize", quantize, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
