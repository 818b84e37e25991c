"""Times with their spread, and what they were measured on: the machine, the versions."""

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


def time_runs(function: Callable[[], Any], runs: int) -> float:
    """Returns the seconds that a call of a function takes, the mean of some calls after two to warm up."""
    # By default the timer runs on one thread.
    timer = benchmark.Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.timeit(runs).mean


class Laps:
    """Splits the time of something that is run again and again into parts: `start`, then `end` after each part."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {}

    def start(self):
        """Begins the first part."""
        self.time = benchmark.timer()  # waits for the GPU

    def end(self, name: str):
        """Ends a part, and begins the next one."""
        now = benchmark.timer()
        self.seconds.setdefault(name, []).append(now - self.time)
        self.time = now

    def timings(self) -> dict[str, Timing]:
        """Returns the timing of each part."""
        return {name: Timing.of(seconds) for name, seconds in self.seconds.items()}

    def total(self) -> Timing:
        """Returns the timing of all parts together."""
        return Timing.of([sum(parts) for parts in zip(*self.seconds.values(), strict=True)])


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
