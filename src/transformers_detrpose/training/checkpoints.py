"""The output folder of a training: weights, scores and the state to resume from, each written whole or not at all."""

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model, save_model
from torch.optim.swa_utils import AveragedModel

from ..files import restore_folder, whole_file, whole_folder
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..model_card import model_card

if TYPE_CHECKING:
    from accelerate import Accelerator

AVERAGE_FILE = "average.safetensors"
PROGRESS_FILE = "progress.json"


@dataclass
class Progress:
    """Where a training is.

    Args:
        epoch: epochs that are done.
        epoch_step: steps that are done in the current epoch.
        step: steps that are done in all.
        best_ap: the best AP so far, or -1.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best_ap: float = -1.0

    def count_step(self):
        """Counts an optimiser step."""
        self.step, self.epoch_step = self.step + 1, self.epoch_step + 1

    def count_epoch(self):
        """Counts an epoch."""
        self.epoch, self.epoch_step = self.epoch + 1, 0


class Checkpoints:
    """Writes and reads the output folder of a training.

    It holds `last` and `best`, the averaged weights for `from_pretrained`; `metrics.jsonl`, a line of scores per
    evaluation; and `state`, everything that resuming needs: what accelerate saves, the averaged weights in safetensors,
    progress and schedule in JSON. Nothing in it is read by running pickled code.

    Args:
        output: the folder.
        accelerator: has prepared model and optimiser.
        average: the averaged weights.
        scheduler: of the learning rates.
        progress: of the training; updated when resuming.
    """

    def __init__(
        self,
        output: Path,
        accelerator: "Accelerator",
        average: AveragedModel,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        progress: Progress,
    ):
        self.output = output
        self.accelerator = accelerator
        self.average = average
        self.scheduler = scheduler
        self.progress = progress
        self.metrics_file = output / "metrics.jsonl"

    def save_weights(self, name: str, image_processor: DETRPoseImageProcessor, origin: str, scores: dict[str, float]):
        """Writes the averaged weights, the image processor and a model card into a folder for `from_pretrained`.

        Args:
            name: of the folder.
            image_processor: to save beside the weights.
            origin: a sentence for the model card that says how the weights came about.
            scores: for the model card.
        """
        if not self.accelerator.is_main_process:
            return
        model = self.average.module
        with whole_folder(self.output / name, replace=True) as folder:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
            card = model_card(model.config, str(self.output / name), origin, metrics=scores)
            (folder / "README.md").write_text(card, encoding="utf-8")

    def add_scores(self, scores: dict[str, float]) -> dict[str, Any]:
        """Appends the scores to `metrics.jsonl`, behind epoch and step; returns the line."""
        line = {"epoch": self.progress.epoch, "step": self.progress.step, **scores}
        if self.accelerator.is_main_process:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def save_state(self):
        """Writes everything that resuming needs; all processes have to call this."""
        from accelerate.utils import broadcast_object_list

        is_main = self.accelerator.is_main_process
        with whole_folder(self.output / "state", replace=True) if is_main else nullcontext() as folder:
            folder = broadcast_object_list([folder])[0]
            self.accelerator.save_state(folder)
            if is_main:
                save_model(self.average, str(folder / AVERAGE_FILE))
                content = {"progress": asdict(self.progress), "scheduler": self.scheduler.state_dict()}
                (folder / PROGRESS_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()

    def load_state(self):
        """Goes back to the last saved state; all processes have to call this.

        Raises:
            ValueError: if there is none.
        """
        if self.accelerator.is_main_process:
            for name in ("last", "best", "state"):
                restore_folder(self.output / name)
        self.accelerator.wait_for_everyone()
        folder = self.output / "state"
        if not (folder / PROGRESS_FILE).is_file():
            raise ValueError(f"--resume: {self.output} holds no state to resume from")
        self.accelerator.load_state(folder)
        load_model(self.average, folder / AVERAGE_FILE)
        content = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        self.scheduler.load_state_dict(content["scheduler"])
        self.progress.__dict__.update(content["progress"])
        if self.accelerator.is_main_process:
            self._forget_later_scores()
        self.accelerator.wait_for_everyone()

    def _forget_later_scores(self):
        """Drops what a training that was killed has written after the state: later scores, and a broken last line."""
        if not self.metrics_file.exists():
            return

        def is_known(line: str) -> bool:
            try:
                return json.loads(line)["epoch"] <= self.progress.epoch
            except ValueError:
                return False

        lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
        kept = [line + "\n" for line in lines if is_known(line)]
        with whole_file(self.metrics_file) as path:
            path.write_text("".join(kept), encoding="utf-8")
