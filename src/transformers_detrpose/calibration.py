"""The calibration of a model's scores and standard deviations, fitted by `detrpose calibrate`."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .heads import without_autocast


class DETRPoseCalibration(nn.Module):
    """Maps scores and standard deviations to what was observed in annotated images.

    The score s of a pose is replaced according to "beta calibration" (Kull, Silva Filho and Flach, AISTATS 2017):

        logit(s') = a log(s) - b log(1 - s) + c, with a, b > 0,

    which keeps the order of scores. Standard deviations are multiplied by a factor for each keypoint k. It depends on
    the score of the pose, because poses with a low score are less accurate, and on the token x_k of the keypoint after
    the last decoder layer, which knows how accurate this one is:

        σ' = σ exp(f_k + g logit(s) + w x_k).

    As initialized, it changes nothing.

    Args:
        config ([`DETRPoseConfig`]): the configuration.
    """

    def __init__(self, config):
        super().__init__()
        for name, value in initial_values(config.num_keypoints, config.d_model).items():
            self.register_buffer(name, value)

    def forward(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs of the model with `logits` (B, Q, C) and `pred_keypoint_std` (B, Q, K, 2) calibrated."""
        logits, deviations = outputs["logits"], outputs["pred_keypoint_std"]
        fitted = {name: value.float() for name, value in self.named_buffers()}
        scores = calibrate_logits(logits.float(), fitted["score_exponents"], fitted["score_bias"])
        best, tokens = logits.float().amax(dim=-1), outputs["last_hidden_state"][:, :, 1:].float()
        with without_autocast(logits.device):
            factors = deviation_factors(best, tokens, fitted)
        return {**outputs, "logits": scores.to(logits.dtype), "pred_keypoint_std": deviations * factors.unsqueeze(-1)}


# `nn.Identity` takes and ignores the configuration.
CALIBRATIONS = {True: DETRPoseCalibration, False: nn.Identity}


def initial_values(num_keypoints: int, d_model: int) -> dict[str, torch.Tensor]:
    """Returns the buffers of a [`DETRPoseCalibration`] that changes nothing."""
    return {
        "score_exponents": torch.ones(2),
        "score_bias": torch.zeros(()),
        "log_factors": torch.zeros(num_keypoints),
        "log_factor_slope": torch.zeros(()),
        "log_factor_weights": torch.zeros(d_model),
    }


def calibrate_logits(logits: torch.Tensor, exponents: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Returns calibrated logits of the same shape; `exponents` are (2,), a and b, and `bias` is (), c."""
    return exponents[0] * F.logsigmoid(logits) - exponents[1] * F.logsigmoid(-logits) + bias


def deviation_factors(logits: torch.Tensor, tokens: torch.Tensor, fitted: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the factors of standard deviations of poses.

    Args:
        logits: (...), of the poses.
        tokens: (..., K, D), of their keypoints.
        fitted: the buffers of the calibration, `log_factors` (K,), `log_factor_slope` () and `log_factor_weights` (D,).

    Returns:
        (..., K).
    """
    of_poses = fitted["log_factor_slope"] * logits.unsqueeze(-1)
    return (fitted["log_factors"] + of_poses + tokens @ fitted["log_factor_weights"]).exp()
