"""The building blocks of `detrpose train`: recipes, optimization, steps, checkpoints and interruption."""

from .checkpoints import Checkpoints
from .interruption import Interrupted, SignalWatch
from .optimization import WeightAverage, build_optimizer, build_scheduler, convert_sync_batch_norms
from .processes import on_first_process
from .progress import Progress
from .recipes import FINE_TUNING, RECIPES, Recipe, variant_of
from .settings import Settings
from .steps import LoadingError, StepReport, StepReports, batches_by_step, loaded, prepare_inputs, step_if_finite

__all__ = [
    "FINE_TUNING",
    "RECIPES",
    "Checkpoints",
    "Interrupted",
    "LoadingError",
    "Progress",
    "Recipe",
    "Settings",
    "SignalWatch",
    "StepReport",
    "StepReports",
    "WeightAverage",
    "batches_by_step",
    "build_optimizer",
    "build_scheduler",
    "convert_sync_batch_norms",
    "loaded",
    "on_first_process",
    "prepare_inputs",
    "step_if_finite",
    "variant_of",
]
