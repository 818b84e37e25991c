"""Converts official DETRPose checkpoints."""

import logging
import math
import reprlib
from collections.abc import Mapping

import torch

from ..configuration_detrpose import DETRPoseConfig
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .checkpoints import check_variant, fill, read_state_dict
from .names import COMPUTED, OFFICIAL, translate

logger = logging.getLogger(__name__)


def convert_detrpose(
    checkpoint: str, variant: str, dataset: str = "coco", weights: str = "best"
) -> DETRPoseForPoseEstimation:
    """Returns the model of an official checkpoint.

    Args:
        checkpoint: Path of a `.pth` or safetensors file, folder with safetensors files, or Hub id.
        variant: "n", "s", "m", "l" or "x".
        dataset: Skeleton of the checkpoint, "coco" or "crowdpose".
        weights: Which weights of a `.pth` file, see `read_state_dict`.

    Raises:
        ValueError: if the checkpoint cannot be read; if it is of another variant or dataset; or if a tensor is missing,
            unexpected, of the wrong shape, or has invalid values.
    """
    official = read_state_dict(checkpoint, weights)
    computed = [name for name in official if COMPUTED.match(name)]
    tensors = translate({name: tensor for name, tensor in official.items() if name not in computed}, OFFICIAL)
    check_variant(tensors, checkpoint, variant, dataset)
    config = DETRPoseConfig.from_variant(variant, skeleton=dataset)
    _check_scales(official, config, checkpoint)

    model = DETRPoseForPoseEstimation(config)
    not_needed = computed + fill(model, tensors)
    logger.info("%s: %d tensors, of which not needed: %s", checkpoint, len(official), ", ".join(not_needed) or "none")
    return model


def _check_scales(official: Mapping[str, torch.Tensor], config: DETRPoseConfig, checkpoint: str):
    """Raises `ValueError` if the weighting function of a checkpoint is not that of the configuration."""
    for field in ("reg_scale", "up"):
        name, expected = f"transformer.{field}", getattr(config, field)
        values = official[name].flatten().tolist() if name in official else [expected]
        # 0 cannot be a real value, so it is treated like a missing entry.
        if len(values) != 1 or not (values[0] == 0 or math.isclose(values[0], expected, rel_tol=1e-6)):
            raise ValueError(f"{checkpoint}: {name} is {reprlib.repr(values)}, but the variant has {expected}.")


def describe_origin(variant: str, dataset: str) -> str:
    """Returns the sentence of the model card on the origin of converted weights."""
    return f"Converted from the official DETRPose-{variant.upper()} weights for {dataset}."
