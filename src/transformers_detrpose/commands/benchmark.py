"""Measures how fast a model is: in PyTorch, ONNX Runtime, TensorRT and OpenVINO, alone and from files to poses.

    detrpose benchmark --model detrpose-l --backends pytorch fused compile cudagraph tensorrt \\
        --precisions float32 float16 --batch-sizes 1 16 --output benchmark
    detrpose benchmark --model n --backends fused onnxruntime openvino --device cpu --size 320

"Model" is the time from pictures in the device's memory to outputs there. "End to end" begins with image files and ends
with poses in pixels: decoding, preparing (resizing, and copying to the device), the model, post-processing, one after
the other and in one process. What the machine lacks is skipped, with the reason. "Agreement" is the keypoint similarity
of the pose that differs most from those of PyTorch in float32, of all that score over 0.5; "-" where there is none.

Operations are those of convolutions and matrix products; a multiplication and an addition are two. Float32 on a GPU
means what the libraries make of it, which lets convolutions round to TF32.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from .. import DETRPoseForPoseEstimationOutput
from ..deployment.benchmarking.backends import BACKENDS, Run, Setting
from ..deployment.benchmarking.measuring import Stopwatch, Timing, describe_machine, format_table, measure
from ..deployment.benchmarking.models import load_model, load_processor
from ..images import load_rgb_image
from .build_tensorrt import least_similarity
from .command_line import CommandError, count, first_line
from .sizes import count_costs

PICTURE = Path(__file__).parents[1] / "demonstration_model" / "picture.jpg"
PRECISIONS = ("float32", "float16", "bfloat16")
THRESHOLD = 0.5  # of poses


class Benchmark:
    """A model, pictures, and what is measured with them.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        self.model = load_model(args.model).eval()
        self.processor = load_processor(args.model, self.model.config, args.size)
        self.size = self.processor.size["height"]
        self.reference = self.model.fuse().to(self.device)

    @torch.inference_mode()
    def measure(self, backend: str, precision: str, batch_size: int) -> dict[str, Any]:
        """Returns a row of the result: the timings, or the reason why there are none."""
        row = {"backend": backend, "precision": precision, "batch_size": batch_size}
        setting = Setting(precision, batch_size, self.size, self.device)
        try:
            run = BACKENDS[backend](self.model, setting)
            pixel_values = torch.rand(batch_size, 3, self.size, self.size).to(self.device, setting.dtype)
            timing = measure(lambda: run(pixel_values), self.args.runs, self.args.warmup, self.device)
            row |= {"model": timing, "images_per_second": timing.per_second(batch_size)}
            row |= self.measure_end_to_end(run, setting)
            return row | {"agreement": self.agreement(run, setting)}
        except Exception as error:  # a backend that fails, however it does, must not end the others
            return row | {"skipped": first_line(error)}

    def measure_end_to_end(self, run: Run, setting: Setting) -> dict[str, Any]:
        """Returns the timing from files to poses, and of each part."""
        watch = Stopwatch(self.device)
        paths = [self.args.images[index % len(self.args.images)] for index in range(setting.batch_size)]
        for index in range(1 + self.args.runs):
            if index == 1:  # the first run warms up
                watch = Stopwatch(self.device)
            watch.start()
            images = [load_rgb_image(path) for path in paths]
            watch.lap("decode")
            pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
            pixel_values = pixel_values.to(self.device, setting.dtype)
            watch.lap("prepare")
            outputs = run(pixel_values)
            watch.lap("model")
            sizes = [(image.height, image.width) for image in images]
            poses = self.processor.post_process_keypoint_detection(outputs, THRESHOLD, sizes)
            [values.cpu() for pose in poses for values in pose.values()]
            watch.lap("post_process")
        whole = Timing.of([sum(parts) for parts in zip(*watch.seconds.values(), strict=True)])
        per_second = whole.per_second(setting.batch_size)
        return {"end_to_end": whole, "end_to_end_images_per_second": per_second, "parts": watch.timings()}

    def agreement(self, run: Run, setting: Setting) -> float | None:
        """Returns the least keypoint similarity to the poses of PyTorch in float32, or None without a pose."""

        def run_one(pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
            outputs = run(pixel_values.expand(setting.batch_size, -1, -1, -1).contiguous().to(setting.dtype))
            names = [
                name for name in ("logits", "pred_keypoints", "pred_keypoint_std") if outputs.get(name) is not None
            ]
            return DETRPoseForPoseEstimationOutput(**{name: outputs[name][:1] for name in names})

        images = self.args.images[:10]
        least, num_poses = least_similarity(self.reference, self.processor, run_one, images, THRESHOLD)
        return least if num_poses else None


def benchmark(args: argparse.Namespace):
    """Does what the command line asks."""
    for path in args.images:
        if not path.is_file():
            raise CommandError(f"--images {path}: no such file")
        try:
            load_rgb_image(path)
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            raise CommandError(f"--images {path}: not a picture") from error
    if args.output and args.output.exists() and not args.output.is_dir():
        raise CommandError(f"--output {args.output} is a file, not a folder")
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        torch.empty(1, device=args.device)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: the devices differ
        raise CommandError(f"cannot use --device {args.device}: {first_line(error)}") from error
    job = Benchmark(args)
    parameters, operations, _ = count_costs(job.reference, job.size)
    rows = [job.measure(*setting) for setting in tqdm(settings(args), desc="measuring", unit="setting", leave=False)]
    result = {
        "arguments": {key: value for key, value in vars(args).items() if key not in ("images", "output")},
        "machine": describe_machine(job.device),
        "size": job.size,
        "parameters": parameters,
        "operations_per_image": operations,
        "rows": [to_json(row) for row in rows],
    }
    report(result, rows)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        plot(rows, args.output / "benchmark.png", title(result))


def settings(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Returns backend, precision and batch size of everything to measure."""
    return list(product(args.backends, args.precisions, args.batch_sizes))


def to_json(value: Any) -> Any:
    """Returns a row with its timings as dictionaries, in milliseconds."""
    if isinstance(value, Timing):
        return value.to_dict()
    return {key: to_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def title(result: dict[str, Any]) -> str:
    """Returns what was measured, on what."""
    machine = result["machine"]
    size, threads = result["size"], machine["threads"]
    figures = (
        f"{result['parameters'] / 1e6:.2f} M parameters, {result['operations_per_image'] / 1e9:.2f} GFLOPs an image"
    )
    return f"{result['arguments']['model']} at {size}x{size}, {figures}\n{machine['device']}, {threads} CPU threads"


def report(result: dict[str, Any], rows: list[dict[str, Any]]):
    """Prints the table, and what was skipped."""
    header = ["backend", "precision", "batch", "model, ms", "images/s", "end to end, ms", "images/s"]
    header += ["decode + prepare + post-process, ms", "agreement"]
    lines = []
    for row in rows:
        if "skipped" in row:
            continue
        parts = row["parts"]
        lines.append(
            [row["backend"], row["precision"], str(row["batch_size"])]
            + [str(row["model"]), f"{row['images_per_second']:.1f}"]
            + [str(row["end_to_end"]), f"{row['end_to_end_images_per_second']:.1f}"]
            + [" + ".join(f"{parts[name].median:.2f}" for name in ("decode", "prepare", "post_process"))]
            + ["-" if row["agreement"] is None else f"{row['agreement']:.4f}"]
        )
    print(title(result))
    print(", ".join(f"{name} {version}" for name, version in result["machine"]["versions"].items()))
    if lines:
        print(f"Medians of {result['arguments']['runs']} runs, with quartiles; times are those of a batch.")
        print(format_table(header, lines))
    for row in rows:
        if "skipped" in row:
            print(f"skipped: {row['backend']} {row['precision']}, batch {row['batch_size']}: {row['skipped']}")


def plot(rows: list[dict[str, Any]], file: Path, heading: str):
    """Draws the times for an image, of the model and of the rest, as bars with the model's quartiles."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    rows = [row for row in rows if "skipped" not in row]
    names = [f"{row['backend']}, {row['precision']}, batch {row['batch_size']}" for row in rows]
    model = [row["model"].median / row["batch_size"] for row in rows]
    spread = [
        [(row["model"].median - row["model"].low) / row["batch_size"] for row in rows],
        [(row["model"].high - row["model"].median) / row["batch_size"] for row in rows],
    ]
    whole = [row["end_to_end"].median / row["batch_size"] for row in rows]
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(names, whole, color="lightgray", label="end to end")
    axes.barh(names, model, height=0.5, xerr=spread, color="tab:blue", label="model, with quartiles")
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds for an image")
    axes.set_title(heading, fontsize="small")
    axes.legend()
    figure.savefig(file, dpi=120)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose benchmark",
        description="Measures how fast a model is, alone and from files to poses.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="n", help="model folder or Hub id, or n, s, m, l, x with random weights")
    parser.add_argument(
        "--backends", nargs="+", choices=list(BACKENDS), default=["pytorch", "fused"], help="what to run the model in"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"], help="types of its numbers")
    parser.add_argument("--batch-sizes", nargs="+", type=count, default=[1], help="images at once")
    parser.add_argument("--size", type=count, help="height and width in pixels; the model's own if not given")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch device, such as cpu, cuda or cuda:1")
    parser.add_argument("--threads", type=count, help="threads of the CPU; as many as PyTorch takes if not given")
    parser.add_argument("--runs", type=count, default=30, help="timed runs of each setting")
    parser.add_argument("--warmup", type=count, default=5, help="runs before them")
    parser.add_argument("--images", type=Path, nargs="+", default=[PICTURE], metavar="FILE", help="pictures")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for benchmark.json and benchmark.png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_arguments(argv)
    transformers_logging.disable_progress_bar()  # the bar of loading weights; this command has its own
    try:
        benchmark(args)
        return 0
    except (CommandError, ValueError, OSError) as error:
        message = first_line(error)
    except KeyboardInterrupt:
        return 130
    tqdm.write(f"benchmark.py: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
