"""Measures everything that depends on the hardware, most important first, within a time limit."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ...image_processing_detrpose import DETRPoseImageProcessor
from ...loading import DEMONSTRATION_MODEL, SAMPLE_PICTURE, load_image_processor, load_model
from ...modeling_detrpose import DETRPoseForPoseEstimation
from ...variants import VARIANTS
from .backends import Setting, fused
from .benchmark import Benchmark
from .measuring import Laps, describe_machine
from .precision import compare_poses, compare_precisions, without_zeros
from .reporting import to_json
from .schedule import Job, Schedule


@dataclass(frozen=True)
class Extent:
    """What to measure.

    Args:
        models: variants with random weights, or model folders, most important first.
        batch_sizes: images per batch, for latencies.
        precisions: for latencies and parts; the last one is measured first.
        training_precisions: accelerate's names.
        training_batch_size: images per training step.
        size: height and width of the images in pixels; the models' own if None.
        rounds: interleaved rounds per latency.
    """

    models: Sequence[str] = ("n", "l", "s", "m", "x")
    batch_sizes: Sequence[int] = (1, 8, 32)
    precisions: Sequence[str] = ("float32", "float16")
    training_precisions: Sequence[str] = ("no", "bf16", "fp16")
    training_batch_size: int = 16
    size: int | None = None
    rounds: int = 5

    @classmethod
    def for_device(cls, device: torch.device) -> "Extent":
        """Returns the whole on a GPU, and on a CPU what can be done in minutes."""
        if device.type == "cuda":
            return cls()
        return cls(batch_sizes=(1,), precisions=("float32",), training_precisions=("no", "bf16"), training_batch_size=2)


class Report:
    """The measurements of a device.

    Args:
        device: the device.
        extent: what to measure.
        limit: seconds for everything.
        write: called with the results after each measurement, so that an interrupted report has what was measured.
    """

    def __init__(self, device: torch.device, extent: Extent, limit: float, write: Callable[[dict[str, Any]], None]):
        self.device, self.extent, self.write = device, extent, write
        self.schedule = Schedule(limit)
        self.model, self.processor = cache(self.load_model), cache(self.load_processor)

    def load_model(self, name: str) -> DETRPoseForPoseEstimation:
        """Returns a model on the CPU; a variant has the same random weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = load_model(name)
        return (without_zeros(model) if name in VARIANTS else model).eval()

    def load_processor(self, name: str) -> DETRPoseImageProcessor:
        """Returns the image processor of a model."""
        size = {"size": {"height": self.extent.size, "width": self.extent.size}} if self.extent.size else {}
        return load_image_processor(name, **size)

    def size(self, name: str) -> int:
        """Returns the height and width of a model's images in pixels."""
        return self.processor(name).size["height"]

    def run(self):
        """Measures until everything is done or the time is up."""
        self.schedule.run(self.jobs(), lambda: self.write(self.results()))
        self.write(self.results())

    def results(self) -> dict[str, Any]:
        """Returns what was measured so far."""
        schedule = self.schedule
        return {
            "machine": describe_machine(self.device),
            "limit_seconds": schedule.limit,
            "seconds": round(schedule.elapsed, 1),
            "rounds": self.extent.rounds,
            "sizes": {name: self.size(name) for name in self.extent.models},
            "parts": {part: [to_json(row) for row in rows] for part, rows in schedule.rows.items()},
            "skipped": schedule.skipped,
        }

    def jobs(self) -> list[Job]:
        """Returns all measurements, most important first."""
        models, (first, *more) = self.extent.models, self.extent.batch_sizes
        head, tail = models[:2], models[2:]
        return [
            Job("poses", "demonstration model", self.poses, 20),
            *self.precision_jobs(head),
            *self.latency_jobs([first], models),
            *self.shares_jobs(head),
            *self.training_jobs(head),
            *self.latency_jobs([first], head[:1], compile=True),
            *self.latency_jobs(more, models),
            *self.precision_jobs(tail),
            *self.shares_jobs(tail),
            *self.training_jobs(tail),
            *self.latency_jobs([first], models[1:], compile=True),
            *self.latency_jobs(more, models, compile=True),
        ]

    def precision_jobs(self, models: Sequence[str]) -> list[Job]:
        """Returns the comparisons of precisions."""
        return [Job("precision", name, partial(self.precision, name), 20) for name in models]

    def shares_jobs(self, models: Sequence[str]) -> list[Job]:
        """Returns the measurements of the model's parts."""
        return [Job("shares", name, partial(self.shares, name), 10) for name in models]

    def training_jobs(self, models: Sequence[str]) -> list[Job]:
        """Returns the measurements of training steps."""
        settings = product(models, self.extent.training_precisions)
        return [Job("training", ", ".join(setting), partial(self.training, *setting), 40) for setting in settings]

    def latency_jobs(self, batch_sizes: Sequence[int], models: Sequence[str], compile: bool = False) -> list[Job]:
        """Returns the measurements of latencies; those of compiled models, which take long, are a part of their own."""
        part, backends, seconds = "latency", ["pytorch", "fused"], 10
        if self.device.type == "cuda":
            backends.append("cudagraph")
        if compile:
            part, backends, seconds = "compile", ["fused", "compile"], 90
        return [
            Job(
                part,
                f"{name}, {precision}, batch {size}",
                partial(self.latency, size, precision, name, backends),
                seconds,
            )
            for size, precision, name in product(batch_sizes, self.extent.precisions[::-1], models)
        ]

    def precision(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields the errors of each precision."""
        for row in compare_precisions(self.model(name), self.size(name), self.device):
            yield {"model": name} | row

    def poses(self) -> Iterable[dict[str, Any]]:
        """Returns how far the poses of the demonstration model are from those in float32 on the CPU."""
        name = str(DEMONSTRATION_MODEL)
        return compare_poses(load_model(name), load_image_processor(name), SAMPLE_PICTURE, self.device)

    def latency(self, batch_size: int, precision: str, name: str, backends: list[str]) -> Iterator[dict[str, Any]]:
        """Yields the latency of a model in each backend."""
        rounds, pause = self.extent.rounds, 0.05 if self.device.type == "cuda" else 0.2
        benchmark = Benchmark(self.model(name), self.processor(name), [], self.device, rounds, pause=pause)
        for row in benchmark.measure(backends, precision, batch_size):
            if "skipped" in row:
                yield {"skipped": f"{row['backend']}: {row['skipped']}"}
            else:
                yield row | {"model": name, "latency": row["model"]}

    def training(self, name: str, precision: str) -> Iterator[dict[str, Any]]:
        """Yields the time and the memory of training steps, from a process of its own, which has its own peak."""
        batch_size, runs = self.extent.training_batch_size, 10 if self.device.type == "cuda" else 3
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "training.json"
            options = {"--model": name, "--mixed-precision": precision, "--batch-size": batch_size, "--runs": runs}
            options |= {"--size": self.size(name), "--warmup": 1 + runs // 4, "--output": file}
            command = [sys.executable, "-m", "transformers_detrpose", "benchmark-training"]
            command += [str(x) for option in options.items() for x in option]
            result = run_within(command, self.device, self.schedule.left)
            if result.returncode:
                raise RuntimeError((result.stderr.strip().splitlines() or ["failed without a message"])[-1])
            content = json.loads(file.read_text(encoding="utf-8"))
        times = content["milliseconds"]
        yield {
            "model": name,
            "precision": precision,
            "batch_size": batch_size,
            "milliseconds": times,
            "steps_per_second": 1000 / times["step"]["median"],
            "images_per_second": content["pictures_per_second"],
            "peak_memory_mib": content["peak_memory_mib"],
        }

    def shares(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields the time of each part of the fused model, for each batch size."""
        for batch_size in self.extent.batch_sizes:
            setting = Setting(self.extent.precisions[-1], batch_size, self.size(name), self.device)
            laps = measure_parts(self.model(name), self.processor(name), setting, runs=4 * self.extent.rounds)
            row = {"model": name, "precision": setting.precision, "batch_size": batch_size}
            yield row | {"total": laps.total(), "parts": laps.timings()}


def run_within(command: list[str], device: torch.device, seconds: float) -> subprocess.CompletedProcess:
    """Runs a command that takes `--cpu`, or accelerate's choice of device, on a device and in a limited time."""
    command = [*command, "--cpu"] if device.type == "cpu" else command
    environment = {**os.environ, "ACCELERATE_TORCH_DEVICE": str(device)}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError("stopped, because the time was up") from error


@torch.inference_mode()
def measure_parts(
    model: DETRPoseForPoseEstimation, processor: DETRPoseImageProcessor, setting: Setting, runs: int
) -> Laps:
    """Times the parts of the fused model: backbone, encoder, query selection, decoder and post-processing.

    On a GPU each part is waited for, so their sum may exceed the latency of the whole.

    Args:
        model: the model.
        processor: its image processor, for post-processing; it keeps all poses.
        setting: precision, batch, size and device.
        runs: number of runs, after two warm-up runs.
    """
    run, laps = fused(model, setting), Laps()
    pixel_values = torch.rand(setting.batch_size, 3, setting.size, setting.size).to(setting.device, setting.dtype)
    for part in ("backbone", "encoder", "query_selection"):
        getattr(run.model, part).register_forward_hook(lambda *_, part=part: laps.end(part))
    for index in range(2 + runs):
        if index == 2:
            laps.seconds.clear()
        laps.start()
        outputs = run(pixel_values)
        laps.end("decoder")
        sizes = [(setting.size, setting.size)] * setting.batch_size
        poses = processor.post_process_keypoint_detection(outputs, 0.0, sizes)
        [values.cpu() for pose in poses for values in pose.values()]
        laps.end("post_processing")
    return laps
