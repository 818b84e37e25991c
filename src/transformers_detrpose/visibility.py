"""The visibility head: whether each keypoint is visible, occluded or absent."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .heads import DETRPoseMLP
from .keypoint_schemas import VISIBILITIES

# The logit of a class that is not predicted; its probability is 0 in float32.
_IMPOSSIBLE = -100.0


class DETRPoseVisibilityHead(nn.Module):
    """Classifies each keypoint, from its token after the last decoder layer, by COCO's values of visibility.

    The classes are 0 absent, 1 occluded and 2 visible. Without `predict_absent_keypoints`, a keypoint is never absent,
    and the probabilities are those of a keypoint that is in the image.

    Args:
        config ([`DETRPoseConfig`]): the configuration.
    """

    def __init__(self, config):
        super().__init__()
        self.num_unpredicted = 0 if config.predict_absent_keypoints else 1
        self.mlp = DETRPoseMLP(config, config.d_model, config.d_model, len(VISIBILITIES) - self.num_unpredicted, 2)

    def forward(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs of the model with `pred_visibility` (B, Q, K, 3) added."""
        return {**outputs, "pred_visibility": self.classify(outputs["last_hidden_state"][:, :, 1:])}

    def classify(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the classes, (..., 3) in float32, of keypoint tokens (..., D)."""
        return F.pad(self.mlp(tokens), (self.num_unpredicted, 0), value=_IMPOSSIBLE)


# `nn.Identity` takes and ignores the configuration.
VISIBILITY_HEADS = {True: DETRPoseVisibilityHead, False: nn.Identity}
