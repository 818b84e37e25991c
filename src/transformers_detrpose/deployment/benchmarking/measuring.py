"""Timings with their spread, and the machine and versions that they were measured with."""

import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils import benchmark

import transformers_detrpose

PACKAGES = (
    ("transformers", "accelerate", "numpy", "pillow", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino")
    + ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
)  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """Statistics of run times.

    Args:
        median: median of all runs, in milliseconds.
        low: first quartile, in milliseconds.
        high: third quartile, in milliseconds.
        runs: number of runs.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Returns the timing of runs, given in seconds."""
        milliseconds = sorted(1000 * value for value in seconds)
        if len(milliseconds) == 1:
            return cls(*3 * milliseconds, runs=1)
        low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
        return cls(median, low, high, len(milliseconds))

    def per_second(self, count: int) -> float:
        """Returns the throughput per second, with `count` items per run."""
        return 1000 * count / self.median

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, float]:
        """Returns the fields, in milliseconds, for JSON."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


def time_runs(function: Callable[[], Any], runs: int) -> float:
    """Returns the mean time of some calls of a function in seconds, after two warm-up calls."""
    # The timer's default is one thread.
    timer = benchmark.Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.timeit(runs).mean


class Laps:
    """Times the parts of a repeated computation: call `start`, then `end` after each part."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {}

    def start(self):
        """Starts the first part."""
        self.time = benchmark.timer()  # waits for the GPU

    def end(self, name: str):
        """Ends a part, and starts the next one."""
        now = benchmark.timer()
        self.seconds.setdefault(name, []).append(now - self.time)
        self.time = now

    def timings(self) -> dict[str, Timing]:
        """Returns the timing of each part."""
        return {name: Timing.of(seconds) for name, seconds in self.seconds.items()}

    def total(self) -> Timing:
        """Returns the timing of the sum of all parts."""
        return Timing.of([sum(parts) for parts in zip(*self.seconds.values(), strict=True)])


def peak_memory(device: torch.device) -> float:
    """Returns the peak memory so far in MiB: of tensors on the GPU, or of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu" or os.name == "nt":
        return float("nan")
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns the name of the device, the number of threads, and the versions of installed packages."""
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
    """Returns the name of the CPU, or its architecture if the name is unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
