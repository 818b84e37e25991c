"""Measures the time of a training step, and whether the data loader keeps up.

    detrpose benchmark-training --model l --batch-size 16 --people 3 --mixed-precision bf16
    detrpose benchmark-training --model n --images train2017 --annotations person_keypoints_train2017.json

A step is that of `detrpose train`: forward pass (with label validation and denoising queries), matching and losses,
backward pass, and the optimizer with gradient clipping and averaged weights. The images are noise, each with the same
number of people at random positions. The parts are timed in separate steps, because waiting for a GPU after each part
makes a step slower. With `--images` and `--annotations`, the data loader is measured with full augmentation, without
concurrent training.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data import CocoPoseDataset, Phase, read_annotations, train_dataloader
from ..data.augmentation import FULL
from ..deployment.benchmarking.measuring import Timing, describe_machine, format_table, peak_memory
from ..files import check_outputs, whole_file
from ..loading import load_config, load_model, model_files
from ..training.benchmarking import TrainingStep, make_batch, measure_loader, measure_steps
from .command_line import CommandError, add_num_workers, add_set, count, number, run_command


def loader_images_per_second(args: argparse.Namespace) -> float:
    """Returns the throughput of the data loader, in images per second."""
    dataset = CocoPoseDataset(args.images, read_annotations(args.annotations, split="train"))
    if len(dataset) < args.batch_size:
        raise CommandError(f"--annotations {args.annotations}: {len(dataset)} images do not fill a batch")
    phases = (Phase(0, FULL, multi_scale=False),)
    loader = train_dataloader(dataset, args.batch_size, args.size, phases, num_workers=args.num_workers)
    # The first batch of each process is late, because the process has to start.
    rate = measure_loader(loader, batches=max(args.runs, 2 * args.num_workers), skipped=max(1, args.num_workers))
    return rate * args.batch_size


def report(args: argparse.Namespace, result: dict[str, Any], timings: dict[str, Timing]):
    """Prints the measurements."""
    parts = {name: timing.median for name, timing in timings.items() if name != "step"}
    rows = [["step", str(timings["step"]), ""]]
    rows += [[f"  {name}", str(timings[name]), f"{ms / sum(parts.values()):.1%}"] for name, ms in parts.items()]
    machine = result["machine"]
    print(f"{args.model}, {args.batch_size} images of {args.size}x{args.size}, {args.people} people in each,")
    print(f"precision {args.mixed_precision}, on {machine['device']}, {machine['threads']} threads")
    print(format_table(["part", "ms, median (quartiles)", "share"], rows))
    kind = "by tensors on the GPU" if machine["cuda"] else "by the whole process"
    print(f"peak memory: {result['peak_memory_mib']:.0f} MiB {kind}")
    print(f"images per second: {result['pictures_per_second']:.1f} in training", end="")
    if result["loader_pictures_per_second"] is None:
        print("; the data loader was not measured, which requires --images and --annotations")
    else:
        print(f", {result['loader_pictures_per_second']:.1f} from the data loader of {args.num_workers} processes")


def benchmark(args: argparse.Namespace):
    """Measures, and prints and saves the results."""
    if args.images and not args.annotations:
        raise CommandError("--images and --annotations must be given together")
    if args.output and not args.output.absolute().parent.is_dir():
        raise CommandError(f"--output {args.output} must be a file in an existing folder")
    if args.output:
        data = [args.annotations] if args.annotations else []
        data += args.images.rglob("*") if args.images else []
        check_outputs([args.output], [*data, *model_files(args.model)])
    # accelerate selects device and precision, as in training.
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.cpu)
    torch.manual_seed(args.seed)
    model = load_model(args.model, load_config(args.model, **args.set)).to(accelerator.device)
    batch = make_batch(model.config, args.batch_size, args.size, args.people, args.seed, accelerator.device)
    seconds = measure_steps(TrainingStep(model, accelerator, batch), args.runs, args.warmup)
    timings = {name: Timing.of(values) for name, values in seconds.items()}
    result = {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "machine": describe_machine(accelerator.device),
        "milliseconds": {name: timing.to_dict() for name, timing in timings.items()},
        "peak_memory_mib": peak_memory(accelerator.device),
        "pictures_per_second": timings["step"].per_second(args.batch_size),
        "loader_pictures_per_second": loader_images_per_second(args) if args.annotations else None,
    }
    report(args, result, timings)
    if args.output:
        with whole_file(args.output) as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    whole = number(0, kind=int)
    parser = argparse.ArgumentParser(
        prog="detrpose benchmark-training",
        description="Measures the time of a training step, and whether the data loader keeps up.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="n", help="n, s, m, l, x for random weights, or a model folder or Hub id")
    parser.add_argument("--batch-size", type=count, default=16, help="images per step")
    parser.add_argument("--size", type=count, default=640, help="height and width of the images in pixels")
    parser.add_argument("--people", type=whole, default=3, help="people per image")
    parser.add_argument("--mixed-precision", choices=["no", "fp16", "bf16"], default="no", help="precision of training")
    add_set(parser)
    parser.add_argument("--runs", type=count, default=10, help="timed steps, and timed batches of the data loader")
    parser.add_argument("--warmup", type=whole, default=3, help="warm-up steps")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of images, to measure the data loader")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="their COCO-format JSON file, or data.yaml of YOLO instead of both",
    )
    add_num_workers(parser)
    parser.add_argument("--seed", type=whole, default=0, help="random seed of weights, images and people")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write the numbers to")
    args = parser.parse_args(argv)
    args.set = dict(args.set)
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose benchmark-training", benchmark, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
