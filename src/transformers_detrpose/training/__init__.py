"""What `detrpose train` is made of: recipes, parameter groups and schedule, averaged weights, checkpoints."""

from .checkpoints import Checkpoints, Progress
from .optimization import build_average, build_optimizer, build_scheduler, convert_sync_batch_norms
from .recipes import FINE_TUNING, RECIPES, Recipe, variant_of

__all__ = [
    "FINE_TUNING",
    "RECIPES",
    "Checkpoints",
    "Progress",
    "Recipe",
    "build_average",
    "build_optimizer",
    "build_scheduler",
    "convert_sync_batch_norms",
    "variant_of",
]
