"""Timing of a training step, its parts, and the data loader."""

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import benchmark
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..configuration_detrpose import DETRPoseConfig
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .optimization import WeightAverage, build_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_GRAD_NORM = 0.1


class TrainingStep:
    """An optimizer step that is repeated on the same batch.

    Args:
        model: the model to train, on the device.
        accelerator: determines device and precision.
        batch: `pixel_values` and `labels` on the device.
    """

    def __init__(self, model: DETRPoseForPoseEstimation, accelerator: "Accelerator", batch: dict[str, Any]):
        self.accelerator, self.batch, self.raw_model = accelerator, batch, model
        # Learning rates of 0 cost the same time and keep random weights from diverging.
        optimizer = build_optimizer(model, lr=0.0, backbone_lr=0.0, weight_decay=1e-4)
        self.average = WeightAverage(model)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.model.train()

    def run(self, lap: Callable[[str], None] = lambda name: None):
        """Takes a step and calls `lap` with the name of each part as it ends."""
        # The network is a module inside the model, which computes the losses afterwards.
        hook = self.raw_model.model.register_forward_hook(lambda *_: lap("forward"))
        loss = self.model(**self.batch).loss
        hook.remove()
        lap("matching and losses")
        self.accelerator.backward(loss)
        lap("backward")
        self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.raw_model)
        lap("optimiser")

    def time(self) -> float:
        """Takes a step and returns its duration in seconds."""
        start = benchmark.timer()  # waits for the GPU
        self.run()
        return benchmark.timer() - start

    def time_parts(self) -> dict[str, float]:
        """Takes a step and returns the duration of each part in seconds."""
        seconds, start = {}, benchmark.timer()

        def lap(name: str):
            nonlocal start
            now = benchmark.timer()
            seconds[name], start = now - start, now

        self.run(lap)
        return seconds


def measure_steps(step: TrainingStep, runs: int, warmup: int) -> dict[str, list[float]]:
    """Returns the durations in seconds of whole steps ("step") and, from separate steps, of their parts.

    The two kinds of steps alternate, so that a busy machine slows both alike.

    Args:
        step: the step to time.
        runs: timed runs of each kind.
        warmup: untimed runs of each kind beforehand.
    """
    seconds = defaultdict(list)
    for index in tqdm(range(warmup + runs), desc="training steps", unit="step", leave=False):
        timed = {"step": step.time(), **step.time_parts()}
        for name, value in timed.items() if index >= warmup else ():
            seconds[name].append(value)
    return dict(seconds)


def measure_loader(loader: DataLoader, batches: int, skipped: int) -> float:
    """Returns the batches per second that a data loader delivers once its workers are running.

    Args:
        loader: a data loader from `train_dataloader`.
        batches: number of batches to time.
        skipped: number of batches to skip first, while the workers start.
    """
    bar = tqdm(total=skipped + batches, desc="data loader", unit="batch", leave=False)
    epoch = 0
    while bar.n < bar.total:
        loader.dataset.set_epoch(epoch)
        for _ in loader:
            bar.update()
            if bar.n == skipped:
                start = benchmark.timer()
            if bar.n == bar.total:
                break
        epoch += 1
    bar.close()
    return batches / (benchmark.timer() - start)


def make_batch(
    config: DETRPoseConfig, batch_size: int, size: int, people: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Returns images of noise with people at random places.

    Args:
        config: the model's configuration.
        batch_size: number of images.
        size: their height and width in pixels.
        people: number of people in each image, at least 0.
        seed: random seed.
        device: device of the tensors.

    Returns:
        `pixel_values` (batch_size, 3, size, size) and `labels`, as the model expects them.
    """
    generator = torch.Generator().manual_seed(seed)

    def make_labels() -> dict[str, torch.Tensor]:
        centers = 0.2 + 0.6 * torch.rand(people, 1, 2, generator=generator)
        points = centers + 0.2 * torch.rand(people, config.num_keypoints, 2, generator=generator)
        keypoints = torch.cat([points, torch.full_like(points[..., :1], 2)], dim=-1)
        classes = torch.full((people,), config.num_labels - 1)
        return {"class_labels": classes, "keypoints": keypoints, "area": torch.full((people,), 0.02)}

    labels = [{key: value.to(device) for key, value in make_labels().items()} for _ in range(batch_size)]
    return {"pixel_values": torch.rand(batch_size, 3, size, size, generator=generator).to(device), "labels": labels}
