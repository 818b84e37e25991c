"""Training steps that do not make the host wait for the GPU, except for the matching.

A step has one batch, or several if gradients are accumulated.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ..data import to_device
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..loading import first_line
from ..loss_detrpose import average_over_processes, count_matches
from ..modeling_detrpose import DETRPoseForPoseEstimation
from ..pose_targets import validate_labels
from .interruption import SignalWatch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .progress import Progress

# The reported losses: the sum of all, those of the last decoder layer, and that of the visibility head if there is one.
LOSSES = ("loss", "loss_class", "loss_keypoints", "loss_similarity", "loss_visibility")


class LoadingError(Exception):
    """Raised when images cannot be loaded, for example because a file is corrupt."""


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
    """Yields the batches of each step, as `loaded` does; the last step may have fewer."""
    iterator = loaded(loader)
    while batches := list(islice(iterator, batches_per_step)):
        yield batches


def prepare_inputs(
    model: DETRPoseForPoseEstimation,
    batches: Sequence[dict[str, Any]],
    image_processor: DETRPoseImageProcessor | None = None,
) -> list[dict[str, Any]]:
    """Turns the batches of a step into model inputs, such that accumulated gradients equal those of one large batch.

    Both normalizers of the losses, the numbers of people and of union matches, are counted over all batches. Matches
    require predictions, so several batches take an additional forward pass without gradients.

    Args:
        model: the model to train, unwrapped and in training mode.
        batches: batches from a data loader, on the host, where checking the labels does not wait for a GPU.
        image_processor: see `data.batches.scale`.

    Returns:
        The model's keyword arguments for each batch, on its device.

    Raises:
        ValueError: if the labels are malformed, or predictions are not finite.
    """
    for batch in batches:
        validate_labels(batch["labels"], model.config, len(batch["pixel_values"]))
    inputs = [{**to_device(batch, model.device, image_processor), "inputs_are_valid": True} for batch in batches]
    if len(inputs) > 1:
        counts = sum(_count_matches(model, batch) for batch in inputs)
        divisors = average_over_processes(counts)
        inputs = [{**batch, "loss_divisors": divisors} for batch in inputs]
    return inputs


@torch.no_grad()
def _count_matches(model: DETRPoseForPoseEstimation, batch: dict[str, Any]) -> torch.Tensor:
    # Batch norms update copies of their statistics, because they will see the same images again.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs = torch.func.functional_call(model, buffers, (batch["pixel_values"],))
    return count_matches(model.output_sets(outputs), batch["labels"], model.config)


def step_if_finite(accelerator: "Accelerator", optimizer: torch.optim.Optimizer, grad_norm: torch.Tensor):
    """Takes an optimizer step if the gradient norm is finite, which is decided on the device.

    Args:
        accelerator: the accelerator that prepared the optimizer; with float16 its gradient scaler does the same.
        optimizer: AdamW from `build_optimizer`; fused optimizers support the flag that PyTorch's `GradScaler` sets.
        grad_norm: norm of all gradients, on their device.
    """
    if accelerator.scaler is None:
        optimizer.optimizer.found_inf = (~grad_norm.isfinite()).float()
    optimizer.step()
    optimizer.zero_grad()


@dataclass
class StepReport:
    """The result of a step.

    Args:
        step: number of the step, from 1.
        image_ids: ids of the images that this process trained on.
        losses: losses by the names in `LOSSES`, averaged over processes.
        grad_norm: gradient norm before clipping.
    """

    step: int
    image_ids: list[int]
    losses: dict[str, float]
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step updated the weights."""
        return math.isfinite(self.grad_norm)


class StepReports:
    """Copies the results of each step to the host while the next step is computed.

    Args:
        accelerator: the accelerator; all processes receive the same reports, except for the image ids.
        progress: records every report.
        watch: records signals to this process.
    """

    def __init__(self, accelerator: "Accelerator", progress: "Progress", watch: SignalWatch):
        self.accelerator = accelerator
        self.progress = progress
        self.watch = watch
        self._sent: tuple | None = None
        self._stop_is_reported = False

    @property
    def must_stop(self) -> bool:
        """Whether training must stop after this step; several processes agree on it one step later."""
        return self._stop_is_reported if self.accelerator.num_processes > 1 else self.watch.number is not None

    def send(
        self, step: int, image_ids: list[int], losses: dict[str, torch.Tensor], grad_norm: torch.Tensor
    ) -> StepReport | None:
        """Starts copying the results of a step; returns the report of the previous step if it is still pending.

        Args:
            step: number of the step, from 1.
            image_ids: ids of its images.
            losses: tensors by the names in `LOSSES`.
            grad_norm: gradient norm.

        Raises:
            ValueError: see `Progress.take`.
        """
        losses = {name: losses[name].detach() for name in LOSSES if name in losses}
        values = torch.stack([*losses.values(), grad_norm.detach()]).float()
        values = F.pad(values, (0, 1), value=float(self.watch.number is not None))
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        sent = step, image_ids, list(losses), *copy_to_host(values)
        report = self.receive()
        self._sent = sent
        return report

    def receive(self) -> StepReport | None:
        """Returns the pending report, if there is one.

        Raises:
            ValueError: see `Progress.take`.
        """
        if self._sent is None:
            return None
        (step, image_ids, names, values, arrived), self._sent = self._sent, None
        if arrived is not None:
            arrived.synchronize()  # returns at once if the matching of the next step has already waited
        *losses, grad_norm, stop = values.tolist()
        report = StepReport(step, image_ids, dict(zip(names, losses, strict=True)), grad_norm)
        self._stop_is_reported |= stop > 0
        self.progress.take(report)
        return report


def copy_to_host(values: torch.Tensor) -> tuple[torch.Tensor, "torch.cuda.Event | None"]:
    """Returns a copy on the host, and the event to wait for before reading it, if the copy is asynchronous."""
    if values.device.type != "cuda":
        return values.cpu(), None
    # Only copies to pinned memory are asynchronous.
    values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return values, event
