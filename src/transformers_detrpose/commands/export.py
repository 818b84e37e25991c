"""Exports a model to ONNX: a folder with the graph, the configuration and the image processor.

    detrpose export onnx --model detrpose-l onnx

The graph is the fused model, simplified. It is validated against PyTorch in ONNX Runtime; if it differs, nothing is
written. Requires `pip install "transformers-detrpose[onnx]"`.
"""

import argparse
from pathlib import Path

from transformers.utils import logging as transformers_logging

from ..deployment.onnx_export import DEFAULT_OPSET, FEATURES, OPSETS, PRECISIONS, export_onnx
from ..files import check_new_folder
from ..loading import load_image_processor, load_model
from .command_line import check_device, count, run_command, show_log


def export(args: argparse.Namespace):
    """Exports the model."""
    check_new_folder(args.output)  # before anything slow
    check_device(args.device)
    model = load_model(args.model, dtype=PRECISIONS[args.dtype]).to(args.device)
    processor = load_image_processor(args.model)
    export_onnx(model, processor, args.output, args.variant, (args.height, args.width), args.opset)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="detrpose export", description=__doc__.splitlines()[0])
    formats = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)
    onnx = formats.add_parser(
        "onnx", help="ONNX", description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    onnx.add_argument(
        "--model", required=True, default=argparse.SUPPRESS, help="model folder or Hub id, or n, s, m, l, x"
    )
    onnx.add_argument("output", type=Path, help="folder to write; must not exist or be empty")
    variants = "; ".join(f"{name}: {meaning}" for name, meaning in FEATURES.items())
    onnx.add_argument("--variant", default="default", help=f"one, or several joined by '+'. {variants}")
    onnx.add_argument("--dtype", choices=list(PRECISIONS), default="fp32", help="precision of the weights")
    size = "of the images in pixels; the image processor's if not given"
    onnx.add_argument("--height", type=count, help=f"height {size}")
    onnx.add_argument("--width", type=count, help=f"width {size}")
    onnx.add_argument("--opset", type=int, choices=OPSETS, default=DEFAULT_OPSET, help="version of ONNX's operator set")
    onnx.add_argument("--device", default="cpu", help="device for tracing and validation: cpu, cuda or cuda:1")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    args = parse_arguments(argv)
    show_log()
    transformers_logging.disable_progress_bar()  # of loading weights, which is fast
    return run_command("detrpose export", export, args)


if __name__ == "__main__":
    raise SystemExit(main())
