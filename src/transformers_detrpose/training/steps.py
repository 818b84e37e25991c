"""What a training step is made of that a reader of the loop need not see: nothing here waits for a GPU but the matching.

A step has one batch, or several where gradients are accumulated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ..data import to_device
from ..loss_detrpose import average_over_processes, count_matches
from ..modeling_detrpose import DETRPoseForPoseEstimation
from ..pose_targets import validate_labels

if TYPE_CHECKING:
    from accelerate import Accelerator

# The losses that are reported: the sum of all, and those of the last decoder layer.
LOSSES = ("loss", "loss_class", "loss_keypoints", "loss_similarity")


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
    inputs = [{**to_device(batch, model.device), "labels_are_valid": True} for batch in batches]
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
        stop: whether a process wants all of them to stop.
    """

    step: int
    image_ids: list[int]
    losses: dict[str, float]
    grad_norm: float
    stop: bool

    @property
    def is_finite(self) -> bool:
        """Whether the step has changed the weights."""
        return math.isfinite(self.grad_norm)


class StepReports:
    """Brings what steps have come to from the device, each while the next one is computed, so that nobody waits."""

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self._sent: tuple | None = None

    def send(
        self, step: int, image_ids: list[int], losses: dict[str, torch.Tensor], grad_norm: torch.Tensor, stop: bool
    ) -> StepReport | None:
        """Sends what a step has come to on its way; returns the report of the one before, once.

        Args:
            step: number of the step, from 1.
            image_ids: its images.
            losses: tensors by the names of `LOSSES`.
            grad_norm: norm of the gradients.
            stop: whether this process wants all of them to stop.
        """
        values = torch.stack([*(losses[name].detach() for name in LOSSES), grad_norm.detach()]).float()
        values = F.pad(values, (0, 1), value=float(stop))
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        arrived = None
        if values.device.type == "cuda":
            on_host = torch.empty(values.shape, pin_memory=True)
            values = on_host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        report = self.receive()
        self._sent = (step, image_ids, values, arrived)
        return report

    def receive(self) -> StepReport | None:
        """Returns the report that is on its way, if there is one."""
        if self._sent is None:
            return None
        (step, image_ids, values, arrived), self._sent = self._sent, None
        if arrived is not None:
            arrived.synchronize()  # long past, unless training is over: the matching of the next step has waited
        *losses, grad_norm, stop = values.tolist()
        return StepReport(step, image_ids, dict(zip(LOSSES, losses, strict=True)), grad_norm, stop > 0)
