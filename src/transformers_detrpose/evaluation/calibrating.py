"""Fits a calibration to annotated images, without training the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..calibration import DETRPoseCalibration, calibrate_logits, deviation_factors, initial_values
from ..image_processing_detrpose import MINIMUM_SIDE_PIXELS, rank_poses, take_queries
from ..keypoint_confidence import expected_keypoint_similarity, scale_deviations
from ..keypoint_schemas import KeypointSchema
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .keypoint_metrics import Poses
from .matching import MatchedPoses, matched_errors, matched_similarity, pose_similarity
from .reliability import LEVELS, area_under_curve, normalized_distances, reliability

MINIMUM_POSES = 50

# Keeps scores away from 0 and 1, whose logits are infinite.
_SMALLEST_SCORE = 1e-7
# Weight of the penalties that keep parameters finite which the data do not determine.
_PENALTY = 1e-4
# Of 0.001 to 0.1, with the largest area under the curve on generated people that nothing was fitted to.
_PENALTY_OF_WEIGHTS = 1e-2


@dataclass
class Observations:
    """What is known of N poses of any score, M of which match a person.

    Args:
        logits (`torch.Tensor` of shape `(N,)`): of all poses.
        pose_similarities (`torch.Tensor` of shape `(N,)`): keypoint similarity (KS) to the person, 0 if unmatched.
        matched_logits (`torch.Tensor` of shape `(M,)`).
        deviations (`torch.Tensor` of shape `(M, K, 2)`): predicted standard deviations in x and y in pixels.
        boxes (`torch.Tensor` of shape `(M, 4)`): x1, y1, x2, y2 around the predicted keypoints in pixels.
        errors (`torch.Tensor` of shape `(M, K, 2)`): predicted minus labeled position in pixels.
        similarities (`torch.Tensor` of shape `(M, K)`): KS of each keypoint.
        visibility (`torch.Tensor` of shape `(M, K)`): int64, COCO's values; without a label, of value 0, errors and
            similarities have no meaning.
        sigmas (`torch.Tensor` of shape `(M, K)`): fall-off of each keypoint.
        is_own (`torch.Tensor` of shape `(M, K)`): bool, whether the class of the pose has the keypoint.
        tokens (`torch.Tensor` of shape `(M, K, D)`): of the keypoints after the last decoder layer.
    """

    logits: Tensor
    pose_similarities: Tensor
    matched_logits: Tensor
    deviations: Tensor
    boxes: Tensor
    errors: Tensor
    similarities: Tensor
    visibility: Tensor
    sigmas: Tensor
    is_own: Tensor
    tokens: Tensor

    @property
    def is_labelled(self) -> Tensor:
        """`torch.Tensor` of shape `(M, K)`: bool, which keypoints are labeled."""
        return self.visibility > 0


class PoseTokens:
    """Collects the tokens of the keypoints of all poses during [`evaluate_model`], in half precision.

    For 60 poses of 17 keypoints, the number of the published models, they take 0.5 MB for each image.
    """

    def __init__(self):
        self._by_image: dict[int, Tensor] = {}

    def observe(self, batch: dict[str, Any], outputs: Any):
        """Adds the tokens of a batch; the argument `observe` of `evaluate_model`."""
        tokens = take_queries(outputs.last_hidden_state[:, :, 1:], rank_poses(outputs.logits)[1]).half().cpu()
        image_ids = [int(labels["image_id"]) for labels in batch["labels"]]
        self._by_image.update(zip(image_ids, tokens, strict=True))

    def gather(self, predictions: Mapping[int, Poses]) -> Tensor:
        """Returns the tokens (N, K, D) of the poses that `evaluate_model` returned, in the order of [`match_poses`]."""
        # Scores that have become 0 are left out; they are the last ones.
        return torch.cat([self._by_image[id_][: len(predictions[id_]["scores"])] for id_ in sorted(predictions)])


def observe(matches: MatchedPoses, schema: KeypointSchema, tokens: Tensor) -> Observations:
    """Returns what a calibration is fitted to; poses of people whom the metric ignores are left out.

    Args:
        matches: the poses with their people, and with the standard deviations as the model predicts them, unscaled.
        schema: the keypoint schema.
        tokens: (N, K, D), of the keypoints of all poses.
    """
    sigmas, is_own = schema.by_label(matches.labels)
    similarities = matched_similarity(matches, sigmas)[0]
    is_own = np.ones(similarities.shape, dtype=bool) if is_own is None else is_own
    is_matched, is_judged = matches.is_matched, matches.is_matched | matches.is_wrong
    logits = torch.logit(torch.from_numpy(matches.scores), eps=_SMALLEST_SCORE)
    keypoints, hidden = matches.keypoints[is_matched], ~is_own[is_matched, :, None]
    low, high = (np.where(hidden, bound, keypoints) for bound in (np.inf, -np.inf))
    boxes = np.concatenate([low.min(axis=1), high.max(axis=1)], axis=1)
    return Observations(
        logits=logits[is_judged],
        pose_similarities=torch.from_numpy(pose_similarity(matches, sigmas)[is_judged]),
        matched_logits=logits[is_matched],
        deviations=torch.from_numpy(matches.keypoint_std[is_matched]),
        boxes=torch.from_numpy(boxes),
        errors=torch.from_numpy(matched_errors(matches)[is_matched]),
        similarities=torch.from_numpy(similarities[is_matched]),
        visibility=torch.from_numpy(matches.people.visibility[matches.person[is_matched]].astype(np.int64)),
        sigmas=torch.from_numpy(np.broadcast_to(sigmas, is_own.shape)[is_matched]),
        is_own=torch.from_numpy(is_own[is_matched]),
        tokens=tokens[torch.from_numpy(is_matched)].double(),
    )


def fit_calibration(poses: Observations) -> dict[str, Tensor]:
    """Returns the buffers of a [`DETRPoseCalibration`] fitted to poses.

    The score is fitted to the KS of all poses, 0 if they match nobody; the expected KS of each keypoint to its KS in
    matched poses. Both by cross entropy, whose minimum is the expectation. Fitting the KS itself, rather than the
    likelihood of the errors, keeps outliers, which no Gaussian describes, from widening all distributions.

    Args:
        poses: the matched poses.

    Raises:
        ValueError: if too few poses match a person.
    """
    if len(poses.matched_logits) < MINIMUM_POSES:
        raise ValueError(
            f"only {len(poses.matched_logits)} poses match a person, but a calibration needs {MINIMUM_POSES}: "
            "give more images, or a model that finds the people in them."
        )
    fitted = {name: value.double() for name, value in initial_values(*poses.tokens.shape[1:]).items()}
    exponents, bias = fitted["score_exponents"].log(), fitted["score_bias"]

    def score_loss():
        logits = calibrate_logits(poses.logits, exponents.exp(), bias)
        loss = F.binary_cross_entropy_with_logits(logits, poses.pose_similarities)
        return loss + _PENALTY * exponents.square().sum()

    minimize(score_loss, [exponents, bias])

    factors, slope, weights = fitted["log_factors"], fitted["log_factor_slope"], fitted["log_factor_weights"]
    common = torch.zeros((), dtype=torch.float64)
    targets = poses.similarities[poses.is_labelled]

    def keypoint_loss():
        deviations = calibrated_confidence(poses, {**fitted, "log_factors": common + factors})[1]
        expected = expected_keypoint_similarity(deviations, poses.boxes, poses.sigmas, MINIMUM_SIDE_PIXELS)
        expected = expected[poses.is_labelled]
        loss = F.binary_cross_entropy(expected.clamp(_SMALLEST_SCORE, 1 - _SMALLEST_SCORE), targets)
        return loss + _PENALTY * factors.square().sum() + _PENALTY_OF_WEIGHTS * weights.square().sum()

    minimize(keypoint_loss, [common, factors, slope, weights])
    fitted |= {"score_exponents": exponents.exp(), "log_factors": common + factors}
    return {name: value.detach() for name, value in fitted.items()}


def minimize(loss: Callable[[], Tensor], parameters: list[Tensor]):
    """Minimizes a loss by changing parameters in place."""
    optimizer = torch.optim.LBFGS(
        [parameter.requires_grad_() for parameter in parameters], max_iter=200, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)


def calibrated_confidence(poses: Observations, fitted: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the calibrated scores of all poses, (N,), and standard deviations of the matched ones, (M, K, 2)."""
    scores = calibrate_logits(poses.logits, fitted["score_exponents"], fitted["score_bias"]).sigmoid()
    factors = deviation_factors(poses.matched_logits, poses.tokens, fitted)
    return scores, poses.deviations * factors.unsqueeze(-1)


def uncalibrated_confidence(poses: Observations) -> tuple[Tensor, Tensor]:
    """Returns the same of the model without calibration, see [`scale_deviations`]."""
    matched_scores = poses.matched_logits.sigmoid()
    deviations = scale_deviations(
        poses.deviations, matched_scores, poses.boxes, poses.sigmas, MINIMUM_SIDE_PIXELS, poses.is_own
    )
    return poses.logits.sigmoid(), deviations


def normalized_errors(poses: Observations, deviations: Tensor) -> np.ndarray:
    """Returns the errors of all labeled keypoints in standard deviations, (L,)."""
    labelled = poses.is_labelled
    return normalized_distances(poses.errors[labelled].numpy(), deviations[labelled].numpy())


def fit_radii(poses: Observations, fitted: Mapping[str, Tensor]) -> list[float]:
    """Returns the radii of the ellipses that contain 50 % and 90 % of the labeled keypoints.

    They are quantiles of the errors ("conformal prediction"), and so hold whatever the errors' distribution is.
    """
    errors = normalized_errors(poses, calibrated_confidence(poses, fitted)[1])
    return np.quantile(errors, LEVELS).tolist()


def calibrated(
    model: DETRPoseForPoseEstimation, fitted: Mapping[str, Tensor], radii: list[float]
) -> DETRPoseForPoseEstimation:
    """Calibrates a model, in place, and returns it."""
    model.config.use_calibration, model.config.ellipse_radii = True, radii
    model.calibration = DETRPoseCalibration(model.config)
    model.calibration.load_state_dict(fitted)
    model.calibration.to(model.device, model.dtype)
    return model


def measure(poses: Observations, scores: Tensor, deviations: Tensor, radii: Sequence[float]) -> dict[str, float]:
    """Measures how far confidences are from what they claim.

    Args:
        poses: the poses.
        scores: (N,), of all poses.
        deviations: (M, K, 2), of the matched poses, in pixels.
        radii: of the 50 % and 90 % ellipses, in standard deviations.

    Returns:
        `pose_error` and `keypoint_error`, the expected calibration errors of pose and keypoint scores; `mean_score` and
        `mean_similarity` of the labeled keypoints; `auc`, how well their scores separate a KS above 0.5 from others;
        and `coverage_50` and `coverage_90`, the part of them within the ellipses.
    """
    labelled = poses.is_labelled
    expected = expected_keypoint_similarity(deviations, poses.boxes, poses.sigmas, MINIMUM_SIDE_PIXELS)
    expected = expected[labelled].numpy()
    similarities = poses.similarities[labelled].numpy()
    errors, of_keypoints = normalized_errors(poses, deviations), reliability(expected, similarities)
    return {
        "pose_error": reliability(scores.numpy(), poses.pose_similarities.numpy()).calibration_error,
        "keypoint_error": of_keypoints.calibration_error,
        "mean_score": of_keypoints.mean_score,
        "mean_similarity": of_keypoints.mean_outcome,
        "auc": area_under_curve(expected, similarities > 0.5),
        "coverage_50": float((errors <= radii[0]).mean()),
        "coverage_90": float((errors <= radii[1]).mean()),
    }
