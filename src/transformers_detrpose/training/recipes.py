"""How the published models were trained, as data (paper, section 4.1, and the published configurations)."""

from dataclasses import dataclass, replace
from typing import Any

from ..configuration_detrpose import VARIANTS, DETRPoseConfig
from ..data import Phase, paper_phases


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and on what images a model is trained. Epochs are counted from 0.

    Args:
        epochs: passes over the training images.
        backbone_lr: learning rate of the backbone.
        mosaic_end: first epoch without mosaic; half-way if not given.
        final_start: first epoch without augmentation and multi-scale; shortly before the end if not given.
        base_size_repeats: how often the base size is among the sizes of multi-scale training; 0 for no other size.
        lr_drop_epoch: first epoch at a tenth of the learning rates, if there is one.
        mosaic_start: first epoch with mosaic and zoom-out; 5, or fewer in short trainings, if not given.
        lr: learning rate of everything but the backbone.
        batch_size: images per optimiser step, of all processes together.
        warmup_share: share of all steps in which the learning rates rise linearly.
        max_warmup_steps: most steps of that warm-up.
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

    def changed(self, **fields: Any) -> "Recipe":
        """Returns the recipe with other values in the fields that are not `None`.

        Another number of epochs moves the phases of the augmentation and the drop of the learning rate in proportion.
        """
        fields = {name: value for name, value in fields.items() if value is not None}
        epochs = fields.get("epochs", self.epochs)
        if epochs != self.epochs:
            fields |= {"mosaic_start": None, "mosaic_end": None, "final_start": None}
            if self.lr_drop_epoch is not None:
                fields.setdefault("lr_drop_epoch", max(1, round(self.lr_drop_epoch * epochs / self.epochs)))
        return replace(self, **fields)

    def phases(self) -> tuple[Phase, ...]:
        """Returns what is done to the images in which epoch."""
        return paper_phases(self.epochs, self.mosaic_start, self.mosaic_end, self.final_start)

    def warmup_steps(self, steps_per_epoch: int) -> int:
        """Returns how many steps the learning rates rise for."""
        return min(self.max_warmup_steps, int(self.warmup_share * self.epochs * steps_per_epoch))


def _published(
    epochs: int, mosaic_end: int, final_start: int, backbone_lr: float, repeats: int, lr_drop=None
) -> Recipe:
    return Recipe(epochs, backbone_lr, mosaic_end, final_start, repeats, lr_drop, mosaic_start=5)


# By dataset and variant: epochs, end of mosaic, end of augmentation, backbone's rate, repeats of the base size, drop.
RECIPES: dict[str, dict[str, Recipe]] = {
    "coco": {
        "n": _published(160, 83, 156, 1e-4, 0),
        "s": _published(100, 53, 96, 1e-4, 20),
        "m": _published(64, 35, 60, 1e-5, 6, lr_drop=15),
        "l": _published(52, 29, 48, 1e-5, 4),
        "x": _published(52, 29, 48, 5e-5, 4),
    },
    "crowdpose": {
        "n": _published(284, 137, 264, 1e-5, 0),
        "s": _published(176, 83, 156, 1e-5, 20),
        "m": _published(76, 41, 72, 1e-5, 6),
        "l": _published(64, 29, 60, 1e-5, 4),
        "x": _published(52, 29, 60, 1e-5, 4),  # 60: augmentation never ends
    },
}

# What there is without a recipe, for small datasets: more steps out of few images, and a warm-up that ends in time.
FINE_TUNING = Recipe(epochs=50, backbone_lr=1e-4, batch_size=8, warmup_share=0.1)


def variant_of(config: DETRPoseConfig) -> str | None:
    """Returns the published size ("n", "s", "m", "l" or "x") that a configuration has, or `None`."""

    def shape(config: DETRPoseConfig) -> tuple:
        backbone = config.backbone_config.to_dict()
        return config.d_model, config.decoder_layers, config.depth_mult, backbone.get("stage_mid_channels")

    shapes = {variant: shape(DETRPoseConfig.from_variant(variant)) for variant in VARIANTS}
    return next((variant for variant in VARIANTS if shapes[variant] == shape(config)), None)
