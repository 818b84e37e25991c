"""Stopwatches, and what they were used on: times with their spread, the machine, the versions."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import transformers_detrpose

PACKAGES = (
    ("transformers", "accelerate", "numpy", "pillow", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino")
    + ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
)  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """How long something took.

    Args:
        median: of all runs, in milliseconds.
        low: a quarter of the runs took less, in milliseconds.
        high: a quarter of the runs took longer, in milliseconds.
        runs: how many.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Returns the timing of runs that took so many seconds each."""
        milliseconds = sorted(1000 * value for value in seconds)
        if len(milliseconds) == 1:
            return cls(*3 * milliseconds, runs=1)
        low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
        return cls(median, low, high, len(milliseconds))

    def per_second(self, count: int) -> float:
        """Returns how many things a second there are, with `count` of them in a run."""
        return 1000 * count / self.median

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, float]:
        """Returns the fields, in milliseconds, for JSON."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


class Stopwatch:
    """Splits runs into parts: `start`, then `lap("name")` at the end of each part.

    Args:
        device: what the parts run on; the watch waits for it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def start(self):
        """Begins a run."""
        synchronize(self.device)
        self.time = time.perf_counter()

    def lap(self, name: str):
        """Ends a part of the run."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds.setdefault(name, []).append(now - self.time)
        self.time = now

    def timings(self) -> dict[str, Timing]:
        """Returns the timing of each part."""
        return {name: Timing.of(seconds) for name, seconds in self.seconds.items()}


def measure(function: Callable[[], Any], runs: int, warmup: int, device: torch.device) -> Timing:
    """Times a function.

    Args:
        function: what to time.
        runs: how often, at least 1.
        warmup: how often before that, untimed.
        device: what it runs on, and is waited for.
    """
    for _ in range(warmup):
        function()
    watch = Stopwatch(device)
    for _ in range(runs):
        watch.start()
        function()
        watch.lap("")
    return watch.timings()[""]


def synchronize(device: torch.device):
    """Waits until the device has done all that it was asked to."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Returns the most memory used so far in MiB: of the GPU by tensors, or of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu" or os.name == "nt":
        return float("nan")
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns the name of the device, the number of threads, and the versions of what is installed."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["transformers-detrpose"] = transformers_detrpose.__version__
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"{device.type}: {processor_name()}",
        "cuda": torch.version.cuda if is_cuda else None,
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "versions": versions,
    }


def processor_name() -> str:
    """Returns the name of the CPU, or its kind where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown, with columns of even width."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
