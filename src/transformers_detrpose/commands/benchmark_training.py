"""Measures what a training step takes, and whether the data loader keeps up with it.

    python examples/benchmark_training.py --model l --batch-size 16 --people 3 --mixed-precision bf16
    python examples/benchmark_training.py --model n --images train2017 --annotations person_keypoints_train2017.json

A step is that of `train.py`: forward pass (with checks of the labels, and denoising queries), matching and losses,
backward pass, and the optimiser with clipping and the averaged weights; its pictures are noise, its people random, as
many in every picture. The parts are timed in steps of their own, because waiting for a GPU after each part makes a step
slower. With `--images` and `--annotations`, batches with the full augmentation are drawn from the data loader, without
training meanwhile.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .. import DETRPoseForPoseEstimation
from ..data import CocoPoseDataset, Phase, train_dataloader
from ..data.augmentation import FULL
from ..deployment.benchmarking.measuring import Stopwatch, Timing, describe_machine, format_table, peak_memory
from ..deployment.benchmarking.models import load_model
from .command_line import CommandError, first_line
from .train import build_average, build_optimizer, field_value

# Learning rates of 0 take as long as others, and keep random weights from diverging.
OPTIMISATION = argparse.Namespace(lr=0.0, backbone_lr=0.0, weight_decay=1e-4)
MAX_GRAD_NORM, EMA_DECAY = 0.1, 0.9999


class TimedModel(DETRPoseForPoseEstimation):
    """A model that tells a stopwatch, if it has one, when its forward pass ends and its losses begin."""

    watch: Stopwatch | None = None

    @property
    def loss_function(self):
        """The losses, with the time before them counted as forward pass and the time in them as their own."""
        losses = super().loss_function

        def timed(*args, **kwargs):
            self.watch.lap("forward")
            result = losses(*args, **kwargs)
            self.watch.lap("matching and losses")
            return result

        return losses if self.watch is None else timed


class TrainingStep:
    """One step of a training, on the same batch again and again.

    Args:
        model: the model to train.
        accelerator: device and precision.
        batch: `pixel_values` and `labels` on the device.
    """

    def __init__(self, model: TimedModel, accelerator: Accelerator, batch: dict[str, Any]):
        self.accelerator, self.batch, self.raw_model = accelerator, batch, model
        optimizer = build_optimizer(model, OPTIMISATION)
        self.average = build_average(model, EMA_DECAY)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.model.train()

    def __call__(self, watch: Stopwatch):
        """Does a step and takes its time as a whole."""
        watch.start()
        self.run(lambda name: None)
        watch.lap("step")

    def in_parts(self, watch: Stopwatch):
        """Does a step and takes the time of each part."""
        self.raw_model.watch = watch
        watch.start()
        self.run(watch.lap)
        self.raw_model.watch = None

    def run(self, lap):
        """Does a step, calling `lap` with the name of each part that has ended outside the model."""
        loss = self.model(**self.batch).loss
        self.accelerator.backward(loss)
        lap("backward")
        self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.raw_model)
        lap("optimiser")


def make_batch(config, batch_size: int, size: int, people: int, seed: int, device: torch.device) -> dict[str, Any]:
    """Returns random pictures with random people.

    Args:
        config: the model's configuration.
        batch_size: pictures.
        size: their height and width in pixels.
        people: in each picture, at least 0.
        seed: of the random numbers.
        device: where the tensors shall be.
    """
    generator = torch.Generator().manual_seed(seed)

    def person_label() -> dict[str, torch.Tensor]:
        centers = 0.2 + 0.6 * torch.rand(people, 1, 2, generator=generator)
        points = centers + 0.2 * torch.rand(people, config.num_keypoints, 2, generator=generator)
        keypoints = torch.cat([points, torch.full_like(points[..., :1], 2)], dim=-1)
        classes = torch.full((people,), config.num_labels - 1)
        return {"class_labels": classes, "keypoints": keypoints, "area": torch.full((people,), 0.02)}

    labels = [{key: value.to(device) for key, value in person_label().items()} for _ in range(batch_size)]
    return {"pixel_values": torch.rand(batch_size, 3, size, size, generator=generator).to(device), "labels": labels}


def measure_steps(step: TrainingStep, runs: int, warmup: int, device: torch.device) -> dict[str, Timing]:
    """Returns the timing of the whole step and of its parts, taken in turn so that a busy machine slows both alike."""
    whole, parts = Stopwatch(device), Stopwatch(device)
    for index in tqdm(range(warmup + runs), desc="training steps", unit="step", leave=False):
        if index == warmup:
            whole, parts = Stopwatch(device), Stopwatch(device)
        step(whole)
        step.in_parts(parts)
    return {**whole.timings(), **parts.timings()}


def measure_loader(args: argparse.Namespace) -> float:
    """Returns the pictures per second that the data loader delivers once its processes are at work."""
    dataset = CocoPoseDataset(args.images, args.annotations)
    if len(dataset) < args.batch_size:
        raise CommandError(f"--annotations {args.annotations}: {len(dataset)} images do not fill a batch")
    phases = (Phase(0, FULL, multi_scale=False),)
    loader = train_dataloader(dataset, args.batch_size, args.size, phases, num_workers=args.num_workers)
    # The first batch of each process comes late, because the process has to start.
    skipped, timed = max(1, args.num_workers), max(args.runs, 2 * args.num_workers)
    bar = tqdm(total=skipped + timed, desc="data loader", unit="batch", leave=False)
    done, epoch, start = 0, 0, 0.0
    while done < skipped + timed:
        loader.dataset.set_epoch(epoch)
        for _ in loader:
            done += 1
            bar.update()
            if done == skipped:
                start = time.perf_counter()
            if done == skipped + timed:
                break
        epoch += 1
    bar.close()
    return timed * args.batch_size / (time.perf_counter() - start)


def report(args: argparse.Namespace, result: dict[str, Any], timings: dict[str, Timing]):
    """Prints what was measured."""
    parts = {name: timing.median for name, timing in timings.items() if name != "step"}
    rows = [["step", str(timings["step"]), ""]]
    rows += [[f"  {name}", str(timings[name]), f"{ms / sum(parts.values()):.1%}"] for name, ms in parts.items()]
    machine = result["machine"]
    print(f"{args.model}, {args.batch_size} pictures of {args.size}x{args.size}, {args.people} people in each,")
    print(f"precision {args.mixed_precision}, on {machine['device']}, {machine['threads']} threads")
    print(format_table(["part", "ms, median (quartiles)", "share"], rows))
    kind = "by tensors on the GPU" if machine["cuda"] else "by the whole process"
    print(f"peak memory: {result['peak_memory_mib']:.0f} MiB {kind}")
    print(f"pictures per second: {result['pictures_per_second']:.1f} in training", end="")
    if result["loader_pictures_per_second"] is None:
        print("; data loader not measured, which takes --images and --annotations")
    else:
        print(f", {result['loader_pictures_per_second']:.1f} from the data loader of {args.num_workers} processes")


def benchmark(args: argparse.Namespace):
    """Does what the command line asks."""
    if (args.images is None) != (args.annotations is None):
        raise CommandError("--images and --annotations belong together")
    if args.output and not args.output.absolute().parent.is_dir():
        raise CommandError(f"--output {args.output} must be a file in an existing folder")
    # accelerate's way of choosing device and precision, as in train.py
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.cpu)
    torch.manual_seed(args.seed)
    model = load_model(args.model, TimedModel, **args.set).to(accelerator.device)
    batch = make_batch(model.config, args.batch_size, args.size, args.people, args.seed, accelerator.device)
    timings = measure_steps(TrainingStep(model, accelerator, batch), args.runs, args.warmup, accelerator.device)
    result = {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "machine": describe_machine(accelerator.device),
        "milliseconds": {name: timing.to_dict() for name, timing in timings.items()},
        "peak_memory_mib": peak_memory(accelerator.device),
        "pictures_per_second": timings["step"].per_second(args.batch_size),
        "loader_pictures_per_second": measure_loader(args) if args.images else None,
    }
    report(args, result, timings)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Measures what a training step takes, and whether the data loader keeps up with it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="n", help="n, s, m, l, x for random weights, or a model folder or Hub id")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures in a step")
    parser.add_argument("--size", type=int, default=640, help="height and width of the pictures in pixels")
    parser.add_argument("--people", type=int, default=3, help="people in each picture")
    parser.add_argument("--mixed-precision", choices=["no", "fp16", "bf16"], default="no", help="precision of training")
    parser.add_argument(
        "--set", type=field_value, nargs="+", default=[], metavar="FIELD=VALUE", help="fields of the configuration"
    )
    parser.add_argument("--runs", type=int, default=10, help="timed steps, and timed batches of the data loader")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of images, to measure the data loader")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="their COCO-format JSON file")
    parser.add_argument("--num-workers", type=int, default=4, help="processes that load images")
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and people")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write the numbers to")
    args = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("size", 1), ("people", 0), ("runs", 1), ("warmup", 0), ("num_workers", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    args.set = dict(args.set)
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_arguments(argv)
    try:
        benchmark(args)
        return 0
    except (CommandError, ValueError, OSError) as error:
        message = first_line(error)
    except torch.cuda.OutOfMemoryError as error:
        message = f"{first_line(error)} A smaller --batch-size needs less memory."
    except KeyboardInterrupt:
        return 130
    tqdm.write(f"benchmark_training.py: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
