"""Converts official DETRPose and ECPose checkpoints."""

import logging
import math
import reprlib
from collections.abc import Mapping

import torch

from ..configuration_detrpose import DETRPoseConfig, model_name
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .checkpoints import check_variant, fill, read_state_dict
from .names import COMPUTED, official_table, translate

logger = logging.getLogger(__name__)


def convert_detrpose(
    checkpoint: str, variant: str, dataset: str = "coco", weights: str = "best"
) -> DETRPoseForPoseEstimation:
    """Returns the model of an official checkpoint.

    Args:
        checkpoint: Path of a `.pth` or safetensors file, folder with safetensors files, or Hub id.
        variant: Size of the model, a key of `VARIANTS`.
        dataset: Skeleton of the checkpoint, "coco" or "crowdpose".
        weights: Which weights of a `.pth` file, see `read_state_dict`.

    Raises:
        ValueError: if the checkpoint cannot be read; if it is of another variant or dataset; or if a tensor is missing,
            unexpected, of the wrong shape, or has invalid values.
    """
    official = read_state_dict(checkpoint, weights)
    computed = [name for name in official if COMPUTED.match(name)]
    tensors = translate(
        {name: tensor for name, tensor in official.items() if name not in computed}, official_table(official)
    )
    check_variant(tensors, checkpoint, variant, dataset)
    config = DETRPoseConfig.from_variant(variant, skeleton=dataset)
    _check_constants(official, config, checkpoint)

    model = DETRPoseForPoseEstimation(config)
    not_needed = computed + fill(model, tensors)
    logger.info("%s: %d tensors, of which not needed: %s", checkpoint, len(official), ", ".join(not_needed) or "none")
    return model


def _check_constants(official: Mapping[str, torch.Tensor], config: DETRPoseConfig, checkpoint: str):
    """Raises `ValueError` if the weighting function or the periods of a checkpoint are not the configuration's."""
    expected = {f"{part}.{field}": [getattr(config, field)] for part in _DECODERS for field in ("reg_scale", "up")}
    backbone = config.backbone_config
    if backbone.model_type == "ecvit":
        number = backbone.hidden_size // backbone.num_attention_heads // 4
        expected["backbone.backbone.rope_embed.periods"] = [backbone.rope_theta ** (i / number) for i in range(number)]
    for name, numbers in expected.items():
        values = official[name].flatten().tolist() if name in official else numbers
        # Zeros cannot be real values, so they are treated like a missing entry.
        if values == [0] * len(numbers):
            continue
        is_same = all(math.isclose(value, number, rel_tol=1e-6) for value, number in zip(values, numbers, strict=False))
        if len(values) != len(numbers) or not is_same:
            accepted = numbers[0] if len(numbers) == 1 else reprlib.repr(numbers)
            raise ValueError(f"{checkpoint}: {name} is {reprlib.repr(values)}, but the variant has {accepted}.")


_DECODERS = ("transformer", "decoder")  # in DETRPose and in ECPose


def describe_origin(variant: str, dataset: str) -> str:
    """Returns the sentence of the model card on the origin of converted weights."""
    return f"Converted from the official {model_name(variant)} weights for {dataset}."
