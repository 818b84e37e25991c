"""Measures a model in several backends: alone, and from image files to poses."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """A backend in a setting, and what has been measured of it.

    Args:
        backend: one of `BACKENDS`.
        setting: precision, batch and size.
        run: the model in this backend.
        seconds: what calls of the model took, one mean per round.
        laps: what the parts from files to poses took.
        problem: why it is not measured any more.
    """

    backend: str
    setting: Setting
    run: Run | None = None
    seconds: list[float] = field(default_factory=list)
    laps: Laps = field(default_factory=Laps)
    problem: str | None = None


class Benchmark:
    """Measures backends in turn: each round runs every backend a few times.

    A machine that others share is not the same from minute to minute. What is measured in turn can be compared all the
    same. The pause is there because the threads of some runtimes go on looking for work after a call.

    Args:
        model: the model.
        processor: its image processor, whose size is measured.
        images: image files; taken in turn where a batch has more.
        device: what to run on.
        rounds: how often every backend has its turn.
        runs: calls of the model in each turn.
        pause: seconds before each turn.
        threshold: least score of the poses that are compared with those of PyTorch in float32.
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
        self.reference = model.fuse().to(device)

    @torch.inference_mode()
    def measure(self, backends: Sequence[str], precision: str, batch_size: int) -> list[dict[str, Any]]:
        """Returns a row of the result for each backend: its timings, or the reason why there are none."""
        setting = Setting(precision, batch_size, self.size, self.device)
        candidates = [Candidate(backend, setting) for backend in backends]
        for candidate in tqdm(candidates, desc="preparing", unit="backend", leave=False):
            self.attempt(candidate, self.prepare)
        for _ in tqdm(range(self.rounds), desc="measuring", unit="round", leave=False):
            for candidate in candidates:
                self.attempt(candidate, self.take_turn)
        return [self.attempt(candidate, self.describe) or self.describe_problem(candidate) for candidate in candidates]

    def attempt(self, candidate: Candidate, step) -> Any:
        """Takes a step with a candidate that has had no problem so far, and notes if that was one."""
        if candidate.problem is None:
            try:
                return step(candidate)
            except Exception as error:  # a backend that fails, however it does, must not end the others
                candidate.problem = first_line(error)
                candidate.run = None
        return None

    def prepare(self, candidate: Candidate):
        """Makes the model in its backend, and runs everything once."""
        candidate.run = BACKENDS[candidate.backend](self.model, candidate.setting)
        self.from_files_to_poses(candidate.run, candidate.setting, Laps())

    def take_turn(self, candidate: Candidate):
        """Measures the model a few times, and once from files to poses."""
        time.sleep(self.pause)
        setting = candidate.setting
        pixel_values = torch.rand(setting.batch_size, 3, self.size, self.size).to(self.device, setting.dtype)
        candidate.seconds.append(time_runs(lambda: candidate.run(pixel_values), self.runs))
        self.from_files_to_poses(candidate.run, setting, candidate.laps)

    def from_files_to_poses(self, run: Run, setting: Setting, laps: Laps):
        """Finds the poses in a batch of image files, one part after the other."""
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
        """Returns the row of a candidate that has been measured."""
        setting = candidate.setting
        model, whole = Timing.of(candidate.seconds), candidate.laps.total()
        return {
            "backend": candidate.backend,
            "precision": setting.precision,
            "batch_size": setting.batch_size,
            "model": model,
            "images_per_second": model.per_second(setting.batch_size),
            "end_to_end": whole,
            "end_to_end_images_per_second": whole.per_second(setting.batch_size),
            "parts": candidate.laps.timings(),
            "agreement": self.agreement(candidate.run, setting),
        }

    def describe_problem(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the row of a candidate that has not been measured."""
        setting = candidate.setting
        row = {"backend": candidate.backend, "precision": setting.precision, "batch_size": setting.batch_size}
        return {**row, "skipped": candidate.problem}

    def agreement(self, run: Run, setting: Setting) -> float | None:
        """Returns the least keypoint similarity to the poses of PyTorch in float32, or None without a pose."""

        def run_one(pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
            outputs = run(pixel_values.expand(setting.batch_size, -1, -1, -1).contiguous().to(setting.dtype))
            names = [
                name for name in ("logits", "pred_keypoints", "pred_keypoint_std") if outputs.get(name) is not None
            ]
            return DETRPoseForPoseEstimationOutput(**{name: outputs[name][:1] for name in names})

        images = self.images[:10]
        least, num_poses = least_similarity(self.reference, self.processor, run_one, images, self.threshold)
        return least if num_poses else None
