"""The output folder of a training run: weights, scores and the state to resume from, each written atomically."""

import json
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model, save_model
from torch.optim.swa_utils import AveragedModel

from ..files import naming_full_disk, restore_folder, whole_file, whole_folder
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..loading import first_line
from ..model_card import model_card
from .processes import on_first_process
from .progress import Progress
from .settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator

AVERAGE_FILE = "average.safetensors"
PROGRESS_FILE = "progress.json"


class Checkpoints:
    """Writes and reads the output folder of a training run.

    It holds `last` and `best`, the averaged weights for `from_pretrained`; `metrics.jsonl`, one line of scores per
    evaluation; and `state`, everything needed to resume: what accelerate saves, the averaged weights as safetensors,
    and as JSON the settings, progress, schedule, and size and checksum of every file. Reading it never runs pickled
    code, and non-finite weights are never written.

    Args:
        output: the folder.
        accelerator: the accelerator that prepared the model and the optimizer.
        average: the averaged weights.
        scheduler: the learning-rate scheduler.
        progress: progress of the training; updated when resuming.
        settings: settings of the training; compared when resuming.
    """

    def __init__(
        self,
        output: Path,
        accelerator: "Accelerator",
        average: AveragedModel,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        progress: Progress,
        settings: Settings | None = None,
    ):
        self.output = output
        self.accelerator = accelerator
        self.average = average
        self.scheduler = scheduler
        self.progress = progress
        self.settings = settings or Settings()
        self.metrics_file = output / "metrics.jsonl"
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: check_finite(*weights))

    def save_weights(self, name: str, image_processor: DETRPoseImageProcessor, origin: str, scores: dict[str, float]):
        """Writes the averaged weights, the image processor and a model card into a folder for `from_pretrained`.

        Args:
            name: name of the folder.
            image_processor: saved beside the weights.
            origin: a sentence for the model card on how the weights were trained.
            scores: scores for the model card.
        """
        if not self.accelerator.is_main_process:
            return
        model = self.average.module
        check_finite(model.state_dict())
        with whole_folder(self.output / name, replace=True) as folder:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
            card = model_card(model.config, str(self.output / name), origin, metrics=scores)
            (folder / "README.md").write_text(card, encoding="utf-8")

    def add_scores(self, scores: dict[str, float]) -> dict[str, Any]:
        """Appends epoch, step and scores to `metrics.jsonl`; returns the line."""
        line = {"epoch": self.progress.epoch, "step": self.progress.step, **scores}
        if self.accelerator.is_main_process:
            with naming_full_disk(self.metrics_file), open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def save_state(self):
        """Writes everything needed to resume; must be called by all processes.

        Raises:
            OSError: if the disk is full; the previous state is kept.
            ValueError: if a weight is not finite; the previous state is kept.
        """
        from accelerate.utils import broadcast_object_list

        is_main = self.accelerator.is_main_process
        with whole_folder(self.output / "state", replace=True) if is_main else nullcontext() as folder:
            folder = broadcast_object_list([folder])[0]
            self.accelerator.save_state(folder)
            self.accelerator.wait_for_everyone()
            if is_main:
                check_finite(self.average.state_dict())
                save_model(self.average, str(folder / AVERAGE_FILE))
                content = {"settings": asdict(self.settings), "progress": asdict(self.progress)}
                content |= {"scheduler": self.scheduler.state_dict(), "files": fingerprints(folder)}
                (folder / PROGRESS_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()

    def load_state(self):
        """Restores the last saved state, but keeps the current learning rates; must be called by all processes.

        Raises:
            ValueError: if there is no state, a file is damaged, or the settings of the saved training differ.
        """
        content = on_first_process(self.accelerator, self._read_state)
        folder, optimizer = self.output / "state", self.scheduler.optimizer
        groups = optimizer.param_groups
        present = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        base_lrs = self.scheduler.base_lrs
        self.accelerator.load_state(folder)
        load_model(self.average, folder / AVERAGE_FILE)
        self.scheduler.load_state_dict({**content["scheduler"], "base_lrs": base_lrs})
        step, factors = self.scheduler.last_epoch, self.scheduler.lr_lambdas
        for group, options, lr, factor in zip(optimizer.param_groups, present, base_lrs, factors, strict=True):
            group.update({**options, "lr": lr * factor(step)})
        self.progress.__dict__.update(content["progress"])
        if self.accelerator.is_main_process:
            self._forget_later_scores()
        self.accelerator.wait_for_everyone()

    def _read_state(self) -> dict[str, Any]:
        """Restores a folder whose replacement was killed, and returns the checked content of `progress.json`."""
        for name in ("last", "best", "state"):
            restore_folder(self.output / name)
        file = self.output / "state" / PROGRESS_FILE
        if not file.is_file():
            raise ValueError(f"--resume: {self.output} holds no state to resume from")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            saved, expected = content["settings"], content["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--resume: {file} is damaged: {first_line(error)}") from error
        self.settings.compare(saved)
        found = fingerprints(file.parent)
        for name, fingerprint in expected.items():
            if found.get(name) != fingerprint:
                what = "damaged" if name in found else "missing"
                raise ValueError(f"--resume: {file.parent / name} is {what}; `last` and `best` are not concerned")
        return content

    def _forget_later_scores(self):
        """Drops what a killed training wrote after the saved state: later scores, and an incomplete last line."""
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


def check_finite(tensors: Mapping[str, torch.Tensor]):
    """Raises `ValueError` if a tensor holds NaN or infinity; synchronizes with the device once."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    finite = torch.stack([tensors[name].isfinite().all() for name in names]).tolist()
    bad = [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]
    if bad:
        raise ValueError(f"{len(bad)} of {len(names)} weights are not finite, such as {bad[0]}: they are not saved")


def fingerprints(folder: Path) -> dict[str, list[int]]:
    """Returns size and CRC-32 of each file in a folder by name, except `progress.json`, which stores them."""
    return {path.name: _fingerprint(path) for path in sorted(folder.iterdir()) if path.name != PROGRESS_FILE}


def _fingerprint(path: Path) -> list[int]:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return [path.stat().st_size, checksum]
