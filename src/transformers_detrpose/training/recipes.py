"""How the published models were trained, as data (paper, section 4.1, and the published configurations)."""

from dataclasses import dataclass, replace
from typing import Any

from ..configuration_detrpose import DETRPoseConfig
from ..data import Augmentation, Phase, paper_phases
from ..data.augmentation import NO_AUGMENTATION
from ..variants import VARIANTS


@dataclass(frozen=True)
class Recipe:
    """Duration, learning rates, weight decay and augmentation of a training. Epochs are counted from 0.

    Args:
        epochs: passes over the training images.
        backbone_lr: learning rate of the backbone.
        mosaic_end: first epoch without mosaic; halfway through if not given.
        final_start: first epoch without augmentation and multi-scale; shortly before the end if not given.
        final_flip_and_jitter: whether horizontal flips and color jitter go on to the end.
        base_size_repeats: how often the base size is listed among the multi-scale sizes; 0 disables multi-scale.
        lr_drop_epoch: first epoch with a tenth of the learning rates, if any.
        mosaic_start: first epoch with mosaic, MixUp, CopyPaste and zoom-out; 5, or fewer in short trainings, if not
            given.
        mixup: probability of MixUp, until `final_start`; see `data.Augmentation`.
        copy_paste: probability of CopyPaste, until `final_start`.
        lr: learning rate of everything but the backbone.
        batch_size: images per optimizer step, over all processes.
        warmup_share: fraction of all steps that is spent on the linear warm-up.
        max_warmup_steps: upper limit of the warm-up steps.
        weight_decay: weight decay of AdamW.
        decay_norms_and_biases: whether the weights of norms and all biases are decayed as well.
    """

    epochs: int
    backbone_lr: float
    mosaic_end: int | None = None
    final_start: int | None = None
    base_size_repeats: int = 0
    lr_drop_epoch: int | None = None
    mosaic_start: int | None = None
    lr: float = 1e-4
    batch_size: int = 16
    warmup_share: float = 0.0
    max_warmup_steps: int = 500
    weight_decay: float = 1e-4
    decay_norms_and_biases: bool = True
    mixup: float = 0.0
    copy_paste: float = 0.0
    final_flip_and_jitter: bool = False

    def changed(self, **fields: Any) -> "Recipe":
        """Returns a copy of the recipe with the fields that are not `None` replaced.

        Another number of epochs moves the learning-rate drop in proportion, and the end of mosaics to the middle. The
        first and the last augmentation phase keep their lengths, but take at most a tenth of the epochs each.
        """
        fields = {name: value for name, value in fields.items() if value is not None}
        epochs = fields.get("epochs", self.epochs)
        return replace(self, **{**(self._moved(epochs) if epochs != self.epochs else {}), **fields})

    def _moved(self, epochs: int) -> dict[str, int | None]:
        """Returns the fields that count epochs, for another number of epochs."""
        moved: dict[str, int | None] = {"mosaic_end": None}
        if self.mosaic_start is not None:
            moved["mosaic_start"] = min(self.mosaic_start, epochs // 10)
        if self.final_start is not None:
            moved["final_start"] = epochs - min(self.epochs - self.final_start, epochs // 10)
        if self.lr_drop_epoch is not None:
            moved["lr_drop_epoch"] = max(1, round(self.lr_drop_epoch * epochs / self.epochs))
        return moved

    def phases(self) -> tuple[Phase, ...]:
        """Returns the augmentation schedule."""
        full = Augmentation(mixup=self.mixup, copy_paste=self.copy_paste)
        final = full.only_flip_and_jitter() if self.final_flip_and_jitter else NO_AUGMENTATION
        return paper_phases(self.epochs, self.mosaic_start, self.mosaic_end, self.final_start, full, final)

    def warmup_steps(self, steps_per_epoch: int) -> int:
        """Returns the number of warm-up steps."""
        return min(self.max_warmup_steps, int(self.warmup_share * self.epochs * steps_per_epoch))


def _published(
    epochs: int, mosaic_end: int, final_start: int, backbone_lr: float, repeats: int, lr_drop=None
) -> Recipe:
    return Recipe(epochs, backbone_lr, mosaic_end, final_start, repeats, lr_drop, mosaic_start=5)


def _ecpose(epochs: int, mosaic_end: int, final_start: int, backbone_lr: float, weight_decay: float) -> Recipe:
    return Recipe(
        epochs,
        backbone_lr,
        mosaic_end,
        final_start,
        mosaic_start=4,
        lr=5e-4,
        batch_size=32,
        warmup_share=0.1,  # 500 steps on COCO
        weight_decay=weight_decay,
        decay_norms_and_biases=False,
        mixup=0.25,
        copy_paste=0.5,
        final_flip_and_jitter=True,
    )


# By dataset and variant: epochs, end of mosaic, end of augmentation, backbone's rate, repeats of the base size, drop.
# ECPose: epochs, end of mosaic, end of everything but flip and jitter, backbone's rate, weight decay.
RECIPES: dict[str, dict[str, Recipe]] = {
    "coco": {
        "n": _published(160, 83, 156, 1e-4, 0),
        "s": _published(100, 53, 96, 1e-4, 20),
        "m": _published(64, 35, 60, 1e-5, 6, lr_drop=15),
        "l": _published(52, 29, 48, 1e-5, 4),
        "x": _published(52, 29, 48, 5e-5, 4),
        "ecpose-s": _ecpose(92, 44, 90, 2.5e-5, 1e-4),
        "ecpose-m": _ecpose(92, 44, 90, 2.5e-5, 1e-4),
        "ecpose-l": _ecpose(74, 47, 72, 2.5e-6, 1.25e-4),
        "ecpose-x": _ecpose(74, 47, 72, 2.5e-6, 1.25e-4),
    },
    "crowdpose": {
        "n": _published(284, 137, 264, 1e-5, 0),
        "s": _published(176, 83, 156, 1e-5, 20),
        "m": _published(76, 41, 72, 1e-5, 6),
        "l": _published(64, 29, 60, 1e-5, 4),
        "x": _published(52, 29, 60, 1e-5, 4),  # 60: augmentation never ends
    },
}

# The default without a recipe, for small datasets: small batches for more steps, and a warm-up that scales with them.
FINE_TUNING = Recipe(epochs=50, backbone_lr=1e-4, batch_size=8, warmup_share=0.1)


def variant_of(config: DETRPoseConfig) -> str | None:
    """Returns the published size, a key of `VARIANTS`, that a configuration matches, or `None`."""

    def shape(config: DETRPoseConfig) -> tuple:
        backbone = config.backbone_config.to_dict()
        plan = [backbone.get(field) for field in ("stage_mid_channels", "hidden_size", "intermediate_size")]
        return config.d_model, config.decoder_layers, config.depth_mult, plan

    shapes = {variant: shape(DETRPoseConfig.from_variant(variant)) for variant in VARIANTS}
    return next((variant for variant in VARIANTS if shapes[variant] == shape(config)), None)
