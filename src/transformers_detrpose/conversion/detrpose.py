"""Converts official DETRPose checkpoints."""

import logging

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
            is left over, or has another shape.
    """
    official = read_state_dict(checkpoint, weights)
    computed = [name for name in official if COMPUTED.match(name)]
    tensors = translate({name: tensor for name, tensor in official.items() if name not in computed}, OFFICIAL)
    check_variant(tensors, checkpoint, variant, dataset)

    model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant(variant, skeleton=dataset))
    not_needed = computed + fill(model, tensors)
    logger.info("%s: %d tensors, of which not needed: %s", checkpoint, len(official), ", ".join(not_needed) or "none")
    return model


def describe_origin(variant: str, dataset: str) -> str:
    """Returns the sentence of the model card that says where converted weights come from."""
    return f"Converted from the official DETRPose-{variant.upper()} weights for {dataset}."
