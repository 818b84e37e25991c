"""Benchmarks a model in PyTorch, ONNX Runtime, TensorRT and OpenVINO, alone and from image files to poses.

    detrpose benchmark --model detrpose-l --backends pytorch fused compile cudagraph tensorrt \\
        --precisions float32 float16 --batch-sizes 1 16 --output speed
    detrpose benchmark --model n --backends fused onnxruntime openvino --device cpu --size 320

Backends are measured in interleaved rounds, so that their ratios are reliable even on a shared machine. "Model" is the
time from images to outputs in the device's memory. "End to end" is the time from image files to poses in pixels:
decoding, preparing (resizing, and copying to the device), the model and post-processing, in sequence and in one
process. Backends that cannot run here are skipped, with the reason. "Agreement" is the lowest keypoint similarity to
the poses of PyTorch in float32, for all with a score above 0.5; "-" if there are none.

Operations are those of convolutions and matrix products; a multiplication and an addition count as two. On a GPU,
float32 uses the libraries' defaults, by which convolutions use TF32.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from ..deployment.benchmarking.backends import BACKENDS
from ..deployment.benchmarking.benchmark import Benchmark
from ..deployment.benchmarking.costs import count_costs
from ..deployment.benchmarking.measuring import describe_machine
from ..deployment.benchmarking.reporting import format_report, plot, title, to_json
from ..files import check_outputs, whole_file
from ..images import load_rgb_image
from ..loading import load_image_processor, load_model, model_files
from .command_line import CommandError, add_max_pixels, check_device, count, number, run_command

PICTURE = Path(__file__).parents[1] / "demonstration_model" / "picture.jpg"
PRECISIONS = ("float32", "float16", "bfloat16")


def check_arguments(args: argparse.Namespace):
    """Raises `CommandError` for errors that can be found without measuring."""
    for path in args.images:
        if not path.is_file():
            raise CommandError(f"--images {path}: no such file")
        try:
            load_rgb_image(path)
        except Exception as error:  # Pillow's decoders raise various types for broken files
            raise CommandError(f"--images {path}: not an image") from error
    if args.output and args.output.exists() and not args.output.is_dir():
        raise CommandError(f"--output {args.output} is a file, not a folder")
    if args.output:
        outputs = [args.output / "benchmark.json", args.output / "benchmark.png"]
        check_outputs(outputs, [*args.images, *model_files(args.model)])
    check_device(args.device)


def benchmark(args: argparse.Namespace):
    """Runs the benchmark, and prints and saves the results."""
    check_arguments(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    size = {"size": {"height": args.size, "width": args.size}} if args.size else {}
    model, processor = load_model(args.model), load_image_processor(args.model, **size)
    job = Benchmark(model, processor, args.images, torch.device(args.device), args.rounds, args.runs, args.pause)
    settings = list(product(args.precisions, args.batch_sizes))
    bar = tqdm(settings, desc="settings", unit="setting", leave=False)
    rows = [row for setting in bar for row in job.measure(args.backends, *setting)]
    parameters, operations, _ = count_costs(job.reference, job.size)
    result = {
        "arguments": {key: value for key, value in vars(args).items() if key not in ("images", "output")},
        "machine": describe_machine(job.device),
        "size": job.size,
        "parameters": parameters,
        "operations_per_image": operations,
        "rows": [to_json(row) for row in rows],
    }
    print(format_report(result, rows))
    if args.output:
        save(result, rows, args.output)


def save(result: dict, rows: list[dict], output: Path):
    """Writes benchmark.json and benchmark.png."""
    with whole_file(output / "benchmark.json") as file:
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    try:
        with whole_file(output / "benchmark.png") as file:
            plot(rows, file, title(result))
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose benchmark",
        description="Benchmarks a model, alone and from image files to poses.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="n", help="model folder or Hub id, or n, s, m, l, x with random weights")
    parser.add_argument(
        "--backends", nargs="+", choices=list(BACKENDS), default=["pytorch", "fused"], help="runtimes of the model"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"], help="precisions")
    parser.add_argument("--batch-sizes", nargs="+", type=count, default=[1], help="images per batch")
    parser.add_argument("--size", type=count, help="height and width in pixels; the model's own if not given")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch device, such as cpu, cuda or cuda:1")
    parser.add_argument("--threads", type=count, help="CPU threads; PyTorch's default if not given")
    parser.add_argument("--rounds", type=count, default=10, help="number of interleaved rounds")
    parser.add_argument("--runs", type=count, default=3, help="timed calls per round, after two warm-up calls")
    parser.add_argument("--pause", type=number(0), default=0.2, help="seconds before each measurement")
    parser.add_argument("--images", type=Path, nargs="+", default=[PICTURE], metavar="FILE", help="image files")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for benchmark.json and benchmark.png")
    add_max_pixels(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    args = parse_arguments(argv)
    transformers_logging.disable_progress_bar()  # of loading weights; this command has its own
    return run_command("detrpose benchmark", benchmark, args)


if __name__ == "__main__":
    raise SystemExit(main())
