"""The settings that a resumed training must share with the interrupted one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

FIXED = (
    "model", "set", "unfreeze_backbone_norms", "recipe", "train_annotations", "val_annotations", "schema",
    "no_share_keypoints", "size", "no_augment", "base_size_repeats", "mixup", "copy_paste", "seed", "batch_size",
    "gradient_accumulation_steps", "num_processes",
)  # fmt: skip
CHANGEABLE = (
    "epochs", "lr", "backbone_lr", "lr_drop_epoch", "warmup_steps", "weight_decay", "max_grad_norm", "ema_decay",
    "mixed_precision",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings of a training by name; values are JSON types.

    Args:
        fixed: settings that must not change when resuming.
        changeable: settings that may change, such as learning rates.
    """

    fixed: dict[str, Any] = field(default_factory=dict)
    changeable: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Selects the settings from all options of a training."""
        return cls({name: options[name] for name in FIXED}, {name: options[name] for name in CHANGEABLE})

    def compare(self, saved: dict[str, dict[str, Any]]):
        """Compares the settings with those of the training to resume; permitted changes are logged.

        Args:
            saved: `dataclasses.asdict` of its settings.

        Raises:
            ValueError: if a fixed setting differs.
        """
        for name, value in self.fixed.items():
            before = saved["fixed"].get(name)
            if before != value:
                raise ValueError(
                    f"--resume: {_option(name)} was {before} and is {value} now, which would be another training"
                )
        for name, value in self.changeable.items():
            before = saved["changeable"].get(name)
            if before != value:
                logger.warning("%s was %s and is %s from now on", _option(name), before, value)


def _option(name: str) -> str:
    return "--multi-scale-repeats" if name == "base_size_repeats" else "--" + name.replace("_", "-")
