"""The progress of a training, and the results of its steps."""

import logging
from dataclasses import dataclass, field

from .steps import StepReport

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10


@dataclass
class Progress:
    """The progress of a training.

    Args:
        epoch: completed epochs, including their evaluation.
        epoch_step: completed steps of the current epoch.
        step: completed steps in total.
        best_ap: the best AP so far, or -1.
        skipped: steps skipped because of non-finite gradients.
        skipped_in_a_row: number of consecutive skipped steps up to now.
        loss_sums: the losses of the current epoch by name, summed over `num_losses` steps.
        num_losses: steps of the current epoch that were not skipped.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best_ap: float = -1.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    num_losses: int = 0

    def begin_epoch(self):
        """Clears the losses of the previous epoch."""
        self.loss_sums, self.num_losses = {}, 0

    def count_step(self):
        """Counts a completed optimizer step."""
        self.step, self.epoch_step = self.step + 1, self.epoch_step + 1

    def count_epoch(self):
        """Counts a completed epoch."""
        self.epoch, self.epoch_step = self.epoch + 1, 0

    def take(self, report: StepReport):
        """Records the result of a step.

        Raises:
            ValueError: if too many consecutive steps were skipped.
        """
        if report.is_finite:
            self.skipped_in_a_row = 0
            self.num_losses += 1
            self.loss_sums = {name: self.loss_sums.get(name, 0.0) + loss for name, loss in report.losses.items()}
            return
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        what = f"step {report.step}, images {report.image_ids}: the gradients are not finite"
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"{what}, like those of the {MAX_SKIPPED_IN_A_ROW - 1} steps before: lower the learning rate"
            )
        logger.warning("%s; the step is skipped", what)

    def mean_losses(self) -> dict[str, float]:
        """Returns the losses by name, averaged over the current epoch."""
        return {name: total / self.num_losses for name, total in self.loss_sums.items()}
