"""Initializes DETRPose models from D-FINE detectors, like the published ones."""

import logging

import torch

from ..configuration_detrpose import DETRPoseConfig
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .checkpoints import check_variant, fill, read_state_dict
from .names import OFFICIAL_DFINE, TRANSFORMERS_DFINE, is_ecpose, translate

PARTS = ("backbone.", "encoder.")  # shared by the detector and the pose estimator

logger = logging.getLogger(__name__)


def convert_dfine(
    checkpoint: str, variant: str, dataset: str = "coco", weights: str = "best", seed: int = 0
) -> DETRPoseForPoseEstimation:
    """Returns a model with the backbone and encoder of a D-FINE detector and an untrained decoder.

    Args:
        checkpoint: Path of an official `.pth` or safetensors file, or folder or Hub id of a D-FINE model of
            transformers.
        variant: "n", "s", "m", "l" or "x", of both models.
        dataset: Skeleton of the new model, "coco" or "crowdpose".
        weights: Which weights of a `.pth` file, see `read_state_dict`.
        seed: Seed of the decoder's initial values.

    Raises:
        ValueError: if the checkpoint cannot be read; if it is of another variant; or if a tensor of the backbone or
            encoder is missing, unexpected, or of the wrong shape.
    """
    detector = read_state_dict(checkpoint, weights)
    if is_ecpose(detector):
        raise ValueError(f"{checkpoint} is an ECPose model, not a D-FINE detector: use `detrpose convert`.")
    from_transformers = any(".embedder." in name for name in detector)
    translated = translate(detector, TRANSFORMERS_DFINE if from_transformers else OFFICIAL_DFINE)
    tensors = {name: tensor for name, tensor in translated.items() if name.startswith(PARTS)}
    check_variant(tensors, checkpoint, variant, parts=PARTS)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant(variant, skeleton=dataset))
    counters = fill(model, tensors)
    logger.info(
        "%s: used %d tensors of backbone and encoder; not needed: %d of the detector's decoder, %d counters",
        checkpoint,
        len(tensors) - len(counters),
        len(translated) - len(tensors),
        len(counters),
    )
    return model
