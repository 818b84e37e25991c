"""Benchmarks a model in several backends: alone, and from image files to poses."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...image_processing_detrpose import DETRPoseImageProcessor
from ...images import load_rgb_image
from ...loading import first_line
from ...modeling_detrpose import DETRPoseForPoseEstimation, DETRPoseForPoseEstimationOutput
from ..comparison import Run, least_similarity
from .backends import BACKENDS, Setting
from .measuring import Laps, Timing, time_runs


@dataclass
class Candidate:
    """A backend in a setting, with its measurements.

    Args:
        backend: one of `BACKENDS`.
        setting: precision, batch and size.
        run: the model in this backend.
        seconds: latency of the model, one mean per round.
        laps: times of the steps from files to poses.
        problem: why it is no longer measured.
    """

    backend: str
    setting: Setting
    run: Run | None = None
    seconds: list[float] = field(default_factory=list)
    laps: Laps = field(default_factory=Laps)
    problem: str | None = None


class Benchmark:
    """Measures backends in interleaved rounds: each round runs every backend a few times.

    Interleaved measurements can be compared even if the speed of a shared machine varies. The pauses are needed because
    the threads of some runtimes keep spinning after a call.

    Args:
        model: the model.
        processor: its image processor, which determines the image size.
        images: image files; repeated if a batch has more. Without any, the model alone is measured.
        device: device to run on.
        rounds: number of rounds.
        runs: calls of the model per backend and round.
        pause: seconds before each backend's turn.
        threshold: minimum score of poses that are compared with PyTorch in float32.
    """

    def __init__(
        self,
        model: DETRPoseForPoseEstimation,
        processor: DETRPoseImageProcessor,
        images: Sequence[Path],
        device: torch.device,
        rounds: int = 10,
        runs: int = 3,
        pause: float = 0.2,
        threshold: float = 0.5,
    ):
        self.model, self.processor, self.images, self.device = model.eval(), processor, images, device
        self.rounds, self.runs, self.pause, self.threshold = rounds, runs, pause, threshold
        self.size = processor.size["height"]

    @cached_property
    def reference(self) -> DETRPoseForPoseEstimation:
        """The fused model in float32, which the poses of all backends are compared with."""
        return copy.deepcopy(self.model).to(self.device).fuse()

    @torch.inference_mode()
    def measure(self, backends: Sequence[str], precision: str, batch_size: int) -> list[dict[str, Any]]:
        """Returns a row for each backend: its timings, or the reason why there are none."""
        setting = Setting(precision, batch_size, self.size, self.device)
        candidates = [Candidate(backend, setting) for backend in backends]
        for candidate in tqdm(candidates, desc="preparing", unit="backend", leave=False):
            self.attempt(candidate, self.prepare)
        for _ in tqdm(range(self.rounds), desc="measuring", unit="round", leave=False):
            for candidate in candidates:
                self.attempt(candidate, self.take_turn)
        return [self.attempt(candidate, self.describe) or self.describe_problem(candidate) for candidate in candidates]

    def attempt(self, candidate: Candidate, step) -> Any:
        """Runs a step for a candidate that has not failed so far, and records its failure."""
        if candidate.problem is None:
            try:
                return step(candidate)
            except Exception as error:  # no failure of a backend may stop the others
                candidate.problem = first_line(error)
                candidate.run = None
        return None

    def prepare(self, candidate: Candidate):
        """Prepares the model in its backend, and runs everything once."""
        candidate.run = BACKENDS[candidate.backend](self.model, candidate.setting)
        if self.images:
            self.from_files_to_poses(candidate.run, candidate.setting, Laps())
        else:
            self.call_model(candidate, runs=1)

    def take_turn(self, candidate: Candidate):
        """Measures the model a few times, and the steps from files to poses once."""
        time.sleep(self.pause)
        candidate.seconds.append(self.call_model(candidate, self.runs))
        if self.images:
            self.from_files_to_poses(candidate.run, candidate.setting, candidate.laps)

    def call_model(self, candidate: Candidate, runs: int) -> float:
        """Returns the mean latency of some calls in seconds."""
        setting = candidate.setting
        pixel_values = torch.rand(setting.batch_size, 3, self.size, self.size).to(self.device, setting.dtype)
        return time_runs(lambda: candidate.run(pixel_values), runs)

    def from_files_to_poses(self, run: Run, setting: Setting, laps: Laps):
        """Predicts the poses in a batch of image files, and times each step."""
        paths = [self.images[index % len(self.images)] for index in range(setting.batch_size)]
        laps.start()
        images = [load_rgb_image(path) for path in paths]
        laps.end("decode")
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(self.device, setting.dtype)
        laps.end("prepare")
        outputs = run(pixel_values)
        laps.end("model")
        sizes = [(image.height, image.width) for image in images]
        poses = self.processor.post_process_keypoint_detection(outputs, self.threshold, sizes)
        [values.cpu() for pose in poses for values in pose.values()]
        laps.end("post_process")

    def describe(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the row of a candidate that was measured."""
        setting, model = candidate.setting, Timing.of(candidate.seconds)
        row = {
            "backend": candidate.backend,
            "precision": setting.precision,
            "batch_size": setting.batch_size,
            "model": model,
            "images_per_second": model.per_second(setting.batch_size),
        }
        if not self.images:
            return row
        whole = candidate.laps.total()
        return row | {
            "end_to_end": whole,
            "end_to_end_images_per_second": whole.per_second(setting.batch_size),
            "parts": candidate.laps.timings(),
            "agreement": self.agreement(candidate.run, setting),
        }

    def describe_problem(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the row of a candidate that failed."""
        setting = candidate.setting
        row = {"backend": candidate.backend, "precision": setting.precision, "batch_size": setting.batch_size}
        return {**row, "skipped": candidate.problem}

    def agreement(self, run: Run, setting: Setting) -> float | None:
        """Returns the lowest keypoint similarity to the poses of PyTorch in float32, or None if there are none."""

        def run_one(pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
            outputs = run(pixel_values.expand(setting.batch_size, -1, -1, -1).contiguous().to(setting.dtype))
            names = [
                name for name in ("logits", "pred_keypoints", "pred_keypoint_std") if outputs.get(name) is not None
            ]
            return DETRPoseForPoseEstimationOutput(**{name: outputs[name][:1] for name in names})

        images = self.images[:10]
        least, num_poses = least_similarity(self.reference, self.processor, run_one, images, self.threshold)
        return least if num_poses else None
