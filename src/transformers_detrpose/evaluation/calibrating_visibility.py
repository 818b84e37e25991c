"""Fits a visibility head to annotated images, without training the network."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..configuration_detrpose import DETRPoseConfig
from ..keypoint_schemas import VISIBILITIES
from ..modeling_detrpose import DETRPoseForPoseEstimation
from ..visibility import DETRPoseVisibilityHead
from .calibrating import Observations
from .reliability import area_under_curve

MINIMUM_KEYPOINTS = 500

# With the smallest cross entropy on generated people that the head was not fitted to.
_EPOCHS = 50
_BATCH_SIZE = 512
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1.0


@dataclass(frozen=True)
class VisibilityMeasures:
    """How well a visibility head does on some keypoints.

    Args:
        count (`int`): number of keypoints.
        accuracy (`float`): part of them whose visibility is predicted; NaN without any, like the others.
        balanced_accuracy (`float`): the mean over the visibilities that occur of the same part of their keypoints.
        majority (`float`): part of the keypoints with the most frequent visibility, the accuracy of predicting always
            that.
        auc (`float`): how well the probability of being visible separates visible keypoints from others.
    """

    count: int
    accuracy: float
    balanced_accuracy: float
    majority: float
    auc: float


def known_visibility(config: DETRPoseConfig, poses: Observations) -> tuple[Tensor, Tensor]:
    """Returns the tokens (n, D) and the visibility (n,) of the keypoints whose visibility is known.

    The rule is that of [`visibility_targets`], by which `train` fits the head.

    Args:
        config: the configuration of the model with a visibility head; without `predict_absent_keypoints`, a visibility
            of 0 means that nobody labeled the keypoint.
        poses: the matched poses.
    """
    is_known = poses.is_own if config.predict_absent_keypoints else poses.is_labelled
    return poses.tokens[is_known].float(), poses.visibility[is_known]


def fit_visibility(config: DETRPoseConfig, tokens: Tensor, values: Tensor) -> DETRPoseVisibilityHead:
    """Fits a visibility head by cross entropy, whose minimum is the probability.

    Args:
        config: the configuration of the model with a visibility head.
        tokens: (n, D), the tokens of keypoints.
        values: (n,) int64, their visibility.

    Returns:
        The head in float32, on the CPU.

    Raises:
        ValueError: if there are too few keypoints, or only one visibility.
    """
    if len(values) < MINIMUM_KEYPOINTS or len(values.unique()) < 2:
        numbers = ", ".join(f"{int((values == value).sum())} {name}" for value, name in enumerate(VISIBILITIES))
        raise ValueError(
            f"the keypoints of the people found are {numbers}, but a visibility head needs {MINIMUM_KEYPOINTS} of more "
            "than one kind: give more images, or annotations that say which keypoints are occluded."
        )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = DETRPoseVisibilityHead(config)
    torch.nn.init.zeros_(head.mlp.layers[-1].weight)
    torch.nn.init.zeros_(head.mlp.layers[-1].bias)
    optimizer = torch.optim.AdamW(head.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    num_batches = -(-len(values) // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * num_batches)
    for _ in range(_EPOCHS):
        for indices in torch.randperm(len(values), generator=generator).split(_BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(head.classify(tokens[indices]), values[indices]).backward()
            optimizer.step()
            schedule.step()
    return head.requires_grad_(False)


def with_visibility(model: DETRPoseForPoseEstimation, head: DETRPoseVisibilityHead) -> DETRPoseForPoseEstimation:
    """Gives a model a visibility head, in place, and returns it."""
    model.config.use_visibility_head = True
    model.config.predict_absent_keypoints = head.num_unpredicted == 0
    model.visibility_head = head.to(model.device, model.dtype)
    return model


@torch.no_grad()
def measure_visibility(head: DETRPoseVisibilityHead, tokens: Tensor, values: Tensor) -> VisibilityMeasures:
    """Measures how often a head is right about keypoints with tokens (n, D) and visibility (n,)."""
    logits = head.classify(tokens)
    is_right = (logits.argmax(-1) == values).double()
    is_visible = values == VISIBILITIES.index("visible")
    shares = [is_right[values == value].mean() for value in values.unique()]
    counts = values.bincount(minlength=len(VISIBILITIES))
    return VisibilityMeasures(
        count=len(values),
        accuracy=float(is_right.mean()),
        balanced_accuracy=float(torch.stack(shares).mean()) if shares else float("nan"),
        majority=float(counts.double().max() / counts.sum()),
        auc=area_under_curve(logits.softmax(-1)[:, VISIBILITIES.index("visible")].numpy(), is_visible.numpy()),
    )
