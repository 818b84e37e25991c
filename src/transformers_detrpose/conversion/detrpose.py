"""Converts official DETRPose and ECPose checkpoints."""

import logging
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path

import torch

from ..configuration_detrpose import DETRPoseConfig
from ..configuration_ecvit import is_ecvit
from ..modeling_detrpose import DETRPoseForPoseEstimation
from ..variants import DETRPOSE_VARIANTS, model_name
from .checkpoints import StateDict, check_variant, fill, read_state_dict
from .names import COMPUTED, is_bare_ecvit, is_dfine, official_table, translate
from .saving import Origin

ECVIT_PARTS = ("backbone.embeddings.", "backbone.layers.")
UNKNOWN_LICENSE = (
    "Their license is that of their source, which is not known here: ECPose weights published before August 2026 came "
    "out under the Apache License 2.0, later ones are non-commercial."
)

logger = logging.getLogger(__name__)


def convert_detrpose(
    checkpoint: str, variant: str, dataset: str = "coco", weights: str = "best"
) -> DETRPoseForPoseEstimation:
    """Returns the model of an official DETRPose or ECPose checkpoint.

    Args:
        checkpoint: Path of a `.pth` or safetensors file, folder with safetensors files, or Hub id.
        variant: Size of the model, a key of `VARIANTS`.
        dataset: Skeleton of the checkpoint, "coco" or "crowdpose".
        weights: Which weights of a `.pth` file, see `read_state_dict`.

    Raises:
        ValueError: if the checkpoint cannot be read; if it is of another variant or dataset; or if a tensor is missing,
            unexpected, of the wrong shape, or has invalid values.
    """
    return _convert(read_state_dict(checkpoint, weights), checkpoint, variant, dataset)


def convert_file(
    checkpoint: str, variant: str, dataset: str = "coco", weights: str = "best", seed: int = 0
) -> tuple[DETRPoseForPoseEstimation, Origin]:
    """Returns the model of an official checkpoint, or a new one with the backbone of an official ECViT checkpoint.

    Args:
        checkpoint: see `convert_detrpose`; or the ViT alone, from which training starts.
        variant: Size of the model, a key of `VARIANTS`.
        dataset: Skeleton of the model, "coco" or "crowdpose".
        weights: Which weights of a `.pth` file, see `read_state_dict`.
        seed: Seed of the initial values around the ViT.

    Returns:
        The model, and where its weights come from.

    Raises:
        ValueError: as `convert_detrpose`.
    """
    official = read_state_dict(checkpoint, weights)
    if not is_bare_ecvit(official):
        return _convert(official, checkpoint, variant, dataset), describe_origin(variant, dataset, checkpoint)
    model = _initialize(official, checkpoint, variant, dataset, seed)
    text = f"The vision transformer comes from {file_name(checkpoint)}; everything else is untrained. {UNKNOWN_LICENSE}"
    return model, Origin(text, "unknown")


def _convert(official: StateDict, checkpoint: str, variant: str, dataset: str) -> DETRPoseForPoseEstimation:
    """Returns the model of a complete official checkpoint."""
    if is_dfine(official):
        raise ValueError(f"{checkpoint} is a D-FINE detector: use `detrpose convert-dfine`.")
    computed = [name for name in official if COMPUTED.match(name)]
    needed = {name: tensor for name, tensor in official.items() if name not in computed}
    tensors = translate(needed, official_table(official))
    check_variant(tensors, checkpoint, variant, dataset)
    config = DETRPoseConfig.from_variant(variant, skeleton=dataset)
    _check_constants(official, config, checkpoint)

    model = DETRPoseForPoseEstimation(config)
    not_needed = computed + fill(model, tensors)
    logger.info("%s: %d tensors, of which not needed: %s", checkpoint, len(official), ", ".join(not_needed) or "none")
    return model


def _initialize(
    official: StateDict, checkpoint: str, variant: str, dataset: str, seed: int
) -> DETRPoseForPoseEstimation:
    """Returns a new model with the ViT of a checkpoint."""
    named = {f"backbone.backbone.{name}": tensor for name, tensor in official.items()}
    tensors = translate(
        {name: tensor for name, tensor in named.items() if not COMPUTED.match(name)}, official_table(named)
    )
    check_variant(tensors, checkpoint, variant, parts=ECVIT_PARTS)
    config = DETRPoseConfig.from_variant(variant, skeleton=dataset)
    _check_constants(named, config, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DETRPoseForPoseEstimation(config)
    fill(model, tensors)
    logger.info("%s: %d tensors of the backbone; everything else is untrained", checkpoint, len(tensors))
    return model


def _check_constants(official: Mapping[str, torch.Tensor], config: DETRPoseConfig, checkpoint: str):
    """Raises `ValueError` if the weighting function or the periods of a checkpoint are not the configuration's."""
    expected = {f"{part}.{field}": [getattr(config, field)] for part in _DECODERS for field in ("reg_scale", "up")}
    backbone = config.backbone_config
    if is_ecvit(backbone):
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


def file_name(checkpoint: str) -> str:
    """Returns the name of a file or folder without its path, or the Hub id."""
    return Path(checkpoint).name if Path(checkpoint).exists() else checkpoint


def describe_origin(variant: str, dataset: str, checkpoint: str | None = None) -> Origin:
    """Returns the origin of converted weights.

    Args:
        variant: Size of the model.
        dataset: Skeleton of the model.
        checkpoint: The file, folder or Hub id, of unknown license in the case of ECPose; the published weights if not
            given.
    """
    text = f"Converted from the official {model_name(variant)} weights for {dataset}."
    if variant in DETRPOSE_VARIANTS:
        return Origin(text)
    if checkpoint is not None:
        return Origin(
            f"Converted from {file_name(checkpoint)}, {model_name(variant)} weights for {dataset}. {UNKNOWN_LICENSE}",
            "unknown",
        )
    return Origin(f"{text} They were published as release `edgecrafterv1` under the Apache License 2.0.", "apache-2.0")
