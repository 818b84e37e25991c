"""Benchmarks a model in PyTorch, ONNX Runtime, TensorRT and OpenVINO, alone and from image files to poses.

    detrpose benchmark --model detrpose-l --backends pytorch fused compile cudagraph tensorrt \\
        --precisions float32 float16 --batch-sizes 1 16 --output speed
    detrpose benchmark --model n --backends fused onnxruntime openvino --device cpu --size 320

Backends are measured in interleaved rounds, so that their ratios are reliable even on a shared machine. "Model" is the
time from images to outputs in the device's memory. "End to end" is the time from image files to poses in pixels:
decoding, preparing (resizing, and copying to the device), the model and post-processing, in sequence and in one
process. Backends that cannot run here are skipped, with the reason. "Agreement" is the lowest keypoint similarity to
the poses of PyTorch in float32, for all with a score above 0.5; "-" if there are none.

`--report DIR` measures instead, in at most `--time-limit` seconds, what depends on the machine, and writes report.json
and a page, report.md: errors of each precision, latencies of all variants, training steps, and the share of each part.

    detrpose benchmark --report DIR

Operations are those of convolutions and matrix products; a multiplication and an addition count as two. On a GPU,
float32 uses the libraries' defaults, by which convolutions use TF32.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from ..deployment.benchmarking.backends import BACKENDS
from ..deployment.benchmarking.benchmark import Benchmark
from ..deployment.benchmarking.costs import count_costs
from ..deployment.benchmarking.measuring import describe_machine
from ..deployment.benchmarking.report import Extent, Report
from ..deployment.benchmarking.report_page import format_page
from ..deployment.benchmarking.reporting import format_report, plot, title, to_json
from ..files import check_outputs, whole_file
from ..images import load_rgb_image
from ..loading import SAMPLE_PICTURE, load_config, load_image_processor, load_model, model_files
from .command_line import CommandError, add_device, add_max_pixels, check_device, count, number, run_command

BACKEND_OPTIONS = ("model", "backends", "runs", "pause", "images", "output")
REPORT_OPTIONS = ("models", "time_limit")
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
    """Runs the benchmark or makes the report, and prints and saves the results."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.report:
        make_report(args)
    else:
        run_backends(args)


def run_backends(args: argparse.Namespace):
    """Measures backends, and prints and saves the results."""
    check_arguments(args)
    precisions, batch_sizes, rounds = args.precisions or ["float32"], args.batch_sizes or [1], args.rounds or 10
    size = {"size": {"height": args.size, "width": args.size}} if args.size else {}
    model, processor = load_model(args.model), load_image_processor(args.model, **size)
    device = torch.device(args.device)
    job = Benchmark(model, processor, args.images, device, rounds, args.runs, args.pause)
    settings = list(product(precisions, batch_sizes))
    bar = tqdm(settings, desc="settings", unit="setting", leave=False)
    rows = [row for setting in bar for row in job.measure(args.backends, *setting)]
    parameters, operations, _ = count_costs(job.reference, job.size)
    result = {
        "arguments": {"model": args.model, "rounds": rounds, "runs": args.runs, "pause": args.pause},
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


def make_report(args: argparse.Namespace):
    """Measures everything that depends on the machine, and writes and prints the page."""
    if args.report.exists() and not args.report.is_dir():
        raise CommandError(f"--report {args.report} is a file, not a folder")
    check_outputs(
        [args.report / "report.json", args.report / "report.md"], [x for n in args.models for x in model_files(n)]
    )
    for name in args.models:
        load_config(name)  # a typing error shall be told at once
    device = check_device(args.device)
    names = ("models", "batch_sizes", "precisions", "size", "rounds")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    report = Report(device, replace(Extent.for_device(device), **given), args.time_limit, partial(write, args.report))
    report.run()
    print(format_page(report.results()), end="")


def write(folder: Path, results: dict):
    """Writes report.json and report.md."""
    for name, text in (("report.json", json.dumps(results, indent=2) + "\n"), ("report.md", format_page(results))):
        with whole_file(folder / name) as file:
            file.write_text(text, encoding="utf-8")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose benchmark",
        description="Benchmarks a model, alone and from image files to poses, or reports on the machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_device(parser)
    parser.add_argument("--threads", type=count, help="CPU threads; PyTorch's default if not given")
    parser.add_argument("--size", type=count, help="height and width in pixels; the model's own if not given")
    text = "precisions; if not given, float32, and for a report on a GPU also float16"
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help=text)
    text = "images per batch; if not given, 1, and for a report on a GPU also 8 and 32"
    parser.add_argument("--batch-sizes", nargs="+", type=count, help=text)
    text = "number of interleaved rounds; if not given, 10, and 5 for a report"
    parser.add_argument("--rounds", type=count, help=text)
    add_max_pixels(parser)
    add_backend_arguments(parser.add_argument_group("measurements of one model"))
    add_report_arguments(parser.add_argument_group("report"))
    args = parser.parse_args(argv)
    unused = BACKEND_OPTIONS if args.report else REPORT_OPTIONS
    given = [name for name in unused if getattr(args, name) != parser.get_default(name)]
    if given:
        parser.error(f"--{given[0].replace('_', '-')} has no effect {'with' if args.report else 'without'} --report")
    return args


def add_backend_arguments(group: argparse._ArgumentGroup):
    """Adds the options of `run_backends`."""
    group.add_argument("--model", default="n", help="model folder or Hub id, or n, s, m, l, x with random weights")
    group.add_argument(
        "--backends", nargs="+", choices=list(BACKENDS), default=["pytorch", "fused"], help="runtimes of the model"
    )
    group.add_argument("--runs", type=count, default=3, help="timed calls per round, after two warm-up calls")
    group.add_argument("--pause", type=number(0), default=0.2, help="seconds before each measurement")
    group.add_argument("--images", type=Path, nargs="+", default=[SAMPLE_PICTURE], metavar="FILE", help="image files")
    group.add_argument("--output", type=Path, metavar="DIR", help="folder for benchmark.json and benchmark.png")


def add_report_arguments(group: argparse._ArgumentGroup):
    """Adds the options of `make_report`."""
    group.add_argument("--report", type=Path, metavar="DIR", help="make a report and write report.json and report.md")
    models = list(Extent.models)
    group.add_argument("--models", nargs="+", default=models, help="as --model, the most important first")
    group.add_argument("--time-limit", type=number(0), default=540, help="seconds; what does not fit is skipped")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    args = parse_arguments(argv)
    transformers_logging.disable_progress_bar()  # of loading weights; this command has its own
    return run_command("detrpose benchmark", benchmark, args)


if __name__ == "__main__":
    raise SystemExit(main())
