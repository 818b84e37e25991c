"""The parts of a training step that keep the host from waiting for a GPU: only the matching does.

A step has one batch, or several where gradients are accumulated.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ..data import to_device
from ..loading import first_line
from ..loss_detrpose import average_over_processes, count_matches
from ..modeling_detrpose import DETRPoseForPoseEstimation
from ..pose_targets import validate_labels
from .interruption import SignalWatch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .progress import Progress

# The losses that are reported: the sum of all, and those of the last decoder layer.
LOSSES = ("loss", "loss_class", "loss_keypoints", "loss_similarity")


class LoadingError(Exception):
    """Images could not be loaded, for example because one is broken."""


def loaded(loader: Iterable[Any]) -> Iterator[Any]:
    """Yields the batches of a data loader.

    Raises:
        LoadingError: if the loader fails.
    """
    try:
        yield from loader
    except (OSError, ValueError) as error:
        raise LoadingError(f"images could not be loaded: {first_line(error)}") from error


def batches_by_step(loader: Iterable[Any], batches_per_step: int) -> Iterator[list[Any]]:
    """Yields the batches of each step, as `loaded` does; those of the last step may be fewer."""
    iterator = loaded(loader)
    while batches := list(islice(iterator, batches_per_step)):
        yield batches


def prepare_inputs(model: DETRPoseForPoseEstimation, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns the batches of a step into what the model takes, so that accumulated gradients are those of one batch.

    Both divisors of the losses, people and union matches, are those of all batches together. Matches are known only
    once the model has seen the images, so several batches are predicted once more, without gradients.

    Args:
        model: the model to train, not wrapped, in training mode.
        batches: batches of a data loader, on the host, where checking the labels does not wait for a GPU.

    Returns:
        For each batch the keyword arguments of the model, on its device.

    Raises:
        ValueError: if the labels are malformed, or predictions are not finite.
    """
    for batch in batches:
        validate_labels(batch["labels"], model.config, len(batch["pixel_values"]))
    inputs = [{**to_device(batch, model.device), "inputs_are_valid": True} for batch in batches]
    if len(inputs) > 1:
        counts = sum(_count_matches(model, batch) for batch in inputs)
        divisors = average_over_processes(counts)
        inputs = [{**batch, "loss_divisors": divisors} for batch in inputs]
    return inputs


@torch.no_grad()
def _count_matches(model: DETRPoseForPoseEstimation, batch: dict[str, Any]) -> torch.Tensor:
    # Batch norms update copies of their statistics, for they will see the same images again.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs = torch.func.functional_call(model, buffers, (batch["pixel_values"],))
    return count_matches(model.output_sets(outputs), batch["labels"], model.config)


def step_if_finite(accelerator: "Accelerator", optimizer: torch.optim.Optimizer, grad_norm: torch.Tensor):
    """Takes an optimiser step unless the norm of the gradients is not finite, which the device itself decides.

    Args:
        accelerator: has prepared the optimiser; with float16 its scaler decides in the same way.
        optimizer: AdamW of `build_optimizer`; fused optimisers know this flag from PyTorch's `GradScaler`.
        grad_norm: norm of all gradients, on their device.
    """
    if accelerator.scaler is None:
        optimizer.optimizer.found_inf = (~grad_norm.isfinite()).float()
    optimizer.step()
    optimizer.zero_grad()


@dataclass
class StepReport:
    """What a step has come to.

    Args:
        step: number of the step, from 1.
        image_ids: its images, of this process.
        losses: by the names of `LOSSES`, averaged over processes.
        grad_norm: norm of the gradients before clipping.
    """

    step: int
    image_ids: list[int]
    losses: dict[str, float]
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step has changed the weights."""
        return math.isfinite(self.grad_norm)


class StepReports:
    """Brings what steps have come to from the device, each while the next one is computed, so that nobody waits.

    Args:
        accelerator: knows the processes, which all see the same reports but for the images.
        progress: takes note of every report.
        watch: notices signals to this process.
    """

    def __init__(self, accelerator: "Accelerator", progress: "Progress", watch: SignalWatch):
        self.accelerator = accelerator
        self.progress = progress
        self.watch = watch
        self._sent: tuple | None = None
        self._stop_is_reported = False

    @property
    def must_stop(self) -> bool:
        """Whether training has to stop after this step. Several processes agree on it, and hence a step later."""
        return self._stop_is_reported if self.accelerator.num_processes > 1 else self.watch.number is not None

    def send(
        self, step: int, image_ids: list[int], losses: dict[str, torch.Tensor], grad_norm: torch.Tensor
    ) -> StepReport | None:
        """Sends what a step has come to on its way; returns the report of the one before, if it was still due.

        Args:
            step: number of the step, from 1.
            image_ids: its images.
            losses: tensors by the names of `LOSSES`.
            grad_norm: norm of the gradients.

        Raises:
            ValueError: see `Progress.take`.
        """
        values = torch.stack([*(losses[name].detach() for name in LOSSES), grad_norm.detach()]).float()
        values = F.pad(values, (0, 1), value=float(self.watch.number is not None))
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        sent = step, image_ids, *copy_to_host(values)
        report = self.receive()
        self._sent = sent
        return report

    def receive(self) -> StepReport | None:
        """Returns the report that is on its way, if there is one.

        Raises:
            ValueError: see `Progress.take`.
        """
        if self._sent is None:
            return None
        (step, image_ids, values, arrived), self._sent = self._sent, None
        if arrived is not None:
            arrived.synchronize()  # no wait where the matching of the next step has waited
        *losses, grad_norm, stop = values.tolist()
        report = StepReport(step, image_ids, dict(zip(LOSSES, losses, strict=True)), grad_norm)
        self._stop_is_reported |= stop > 0
        self.progress.take(report)
        return report


def copy_to_host(values: torch.Tensor) -> tuple[torch.Tensor, "torch.cuda.Event | None"]:
    """Returns a copy on the host, and the event to wait for before reading it, if it is still on its way."""
    if values.device.type != "cuda":
        return values.cpu(), None
    # Only pinned memory is written while the host goes on.
    values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return values, event
