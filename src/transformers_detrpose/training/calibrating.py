"""Fits a calibration to annotated images, without training the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..calibration import DETRPoseCalibration, calibrate_logits, deviation_factors, initial_values
from ..data import CocoAnnotations
from ..image_processing_detrpose import MINIMUM_SIDE_PIXELS
from ..instances import Instances
from ..keypoint_confidence import expected_keypoint_similarity, scale_deviations
from ..labels import corners_of
from ..loss_detrpose import keypoint_similarity
from ..modeling_detrpose import DETRPoseForPoseEstimation

# A pose belongs to a person if it is at least this similar; below, it might be anyone's.
MINIMUM_SIMILARITY = 0.1
# An unmatched pose is not counted if this part of its box lies in a crowd or a person without labeled keypoints.
_IGNORED_OVERLAP = 0.5
MINIMUM_POSES = 50
COVERAGES = (0.5, 0.9)

# Keeps scores away from 0 and 1, whose logits are infinite.
_SMALLEST_SCORE = 1e-7
# Keeps standard deviations, in pixels, away from 0.
_SMALLEST_DEVIATION = 1e-12
# Weight of the penalties that keep parameters finite which the data do not determine.
_PENALTY = 1e-4


@dataclass
class MatchedPoses:
    """N poses of any score, M of which match a person.

    Args:
        logits (`torch.Tensor` of shape `(N,)`): of all poses.
        pose_similarities (`torch.Tensor` of shape `(N,)`): keypoint similarity (KS) to the person, 0 if unmatched.
        matched_logits (`torch.Tensor` of shape `(M,)`).
        deviations (`torch.Tensor` of shape `(M, K, 2)`): predicted standard deviations in x and y in pixels.
        boxes (`torch.Tensor` of shape `(M, 4)`): x1, y1, x2, y2 around the predicted keypoints in pixels.
        errors (`torch.Tensor` of shape `(M, K, 2)`): predicted minus labeled position in pixels.
        similarities (`torch.Tensor` of shape `(M, K)`): KS of each keypoint.
        is_labelled (`torch.Tensor` of shape `(M, K)`): bool; errors and similarities have no meaning elsewhere.
    """

    logits: Tensor
    pose_similarities: Tensor
    matched_logits: Tensor
    deviations: Tensor
    boxes: Tensor
    errors: Tensor
    similarities: Tensor
    is_labelled: Tensor


class PoseMatcher:
    """Matches poses to people, in the place of a metric for [`evaluate_model`].

    As in COCO's metric, poses of the same image and label choose in the order of their scores, each the most similar
    person left. Poses on crowds and on people without labeled keypoints are left out.

    Args:
        annotations: the annotations, with `instances`.
        sigmas: (K,), fall-off of each keypoint.
    """

    def __init__(self, annotations: CocoAnnotations, sigmas: Tensor):
        self.sigmas = sigmas
        people = annotations.instances.completed()
        self.people = {
            image["id"]: people[people.image_index == index] for index, image in enumerate(annotations.images)
        }
        self.reset()

    def reset(self):
        """Removes all poses."""
        self.parts: list[MatchedPoses] = []

    def update(self, image_ids: Sequence[int], predictions: Sequence[Mapping[str, Any]]):
        """Adds the poses in some images.

        Args:
            image_ids: ids of the images in the annotations.
            predictions: for each image, the result of `post_process_keypoint_detection` with `do_scale_deviations` off.
        """
        for image_id, poses in zip(image_ids, predictions, strict=True):
            poses = {name: values.detach().cpu().double() for name, values in poses.items()}
            self.parts.append(self._match(poses, self.people[image_id]))

    def gather(self) -> MatchedPoses:
        """Returns the poses collected since `reset`."""
        columns = [[getattr(part, field.name) for part in self.parts] for field in fields(MatchedPoses)]
        return MatchedPoses(*map(torch.cat, columns))

    def _match(self, poses: dict[str, Tensor], people: Instances) -> MatchedPoses:
        """Returns the poses in one image with the people that they match."""
        is_usable = people.is_counted & (people.areas > 0)
        ignored = corners_of(torch.from_numpy(people[~is_usable].boxes))
        people = people[is_usable]
        points, areas = torch.from_numpy(people.keypoints), torch.from_numpy(people.areas)
        is_labelled = points[..., 2] > 0
        errors = poses["keypoints"].unsqueeze(1) - points[..., :2]
        falloff = areas.unsqueeze(-1) * (2 * self.sigmas) ** 2
        similarities = (-errors.square().sum(dim=-1) / (2 * falloff)).exp()
        table = keypoint_similarity(
            poses["keypoints"].unsqueeze(1), points[..., :2], is_labelled.double(), areas, self.sigmas
        )
        table = table * (poses["labels"].unsqueeze(1) == torch.from_numpy(people.category_ids))
        pose, person = assign_in_order(table)
        pose_similarities = torch.zeros(len(table), dtype=torch.float64)
        pose_similarities[pose] = table[pose, person]
        is_counted = (pose_similarities > 0) | ~lies_in(poses["boxes"], ignored)
        logits = torch.logit(poses["scores"], eps=_SMALLEST_SCORE)
        return MatchedPoses(
            logits=logits[is_counted],
            pose_similarities=pose_similarities[is_counted],
            matched_logits=logits[pose],
            deviations=poses["keypoint_std"][pose],
            boxes=poses["boxes"][pose],
            errors=errors[pose, person],
            similarities=similarities[pose, person],
            is_labelled=is_labelled[person],
        )


def assign_in_order(table: Tensor) -> tuple[Tensor, Tensor]:
    """Assigns each row of a table of similarities (n, m), in order, the most similar column that is left.

    Returns:
        The assigned rows and columns, int64; similarities below `MINIMUM_SIMILARITY` are not assigned.
    """
    table, pairs = table.clone(), []
    for row in range(len(table) if table.shape[1] else 0):
        similarity, column = table[row].max(dim=0)
        if similarity >= MINIMUM_SIMILARITY:
            pairs.append((row, int(column)))
            table[:, column] = -1
    return tuple(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1))


def lies_in(boxes: Tensor, regions: Tensor) -> Tensor:
    """Returns which boxes (n, 4) lie mostly in one of the regions (m, 4), all x1, y1, x2, y2; (n,) bool."""
    lower = torch.maximum(boxes[:, None, :2], regions[:, :2])
    upper = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    overlaps = (upper - lower).clamp(min=0).prod(dim=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)
    return (overlaps > _IGNORED_OVERLAP * areas.unsqueeze(1)).any(dim=1)


def fit_calibration(poses: MatchedPoses, sigmas: Tensor) -> dict[str, Tensor]:
    """Returns the buffers of a [`DETRPoseCalibration`] fitted to poses.

    The score is fitted to the KS of all poses, 0 if they match nobody; the expected KS of each keypoint to its KS in
    matched poses. Both by cross entropy, whose minimum is the expectation. Fitting the KS itself, rather than the
    likelihood of the errors, keeps outliers, which no Gaussian describes, from widening all distributions.

    Args:
        poses: the matched poses.
        sigmas: (K,), fall-off of each keypoint.

    Raises:
        ValueError: if too few poses match a person.
    """
    if len(poses.matched_logits) < MINIMUM_POSES:
        raise ValueError(
            f"only {len(poses.matched_logits)} poses match a person, but a calibration needs {MINIMUM_POSES}: "
            "give more images, or a model that finds the people in them."
        )
    fitted = {name: value.double() for name, value in initial_values(len(sigmas)).items()}
    exponents, bias = fitted["score_exponents"].log(), fitted["score_bias"]

    def score_loss():
        logits = calibrate_logits(poses.logits, exponents.exp(), bias)
        loss = F.binary_cross_entropy_with_logits(logits, poses.pose_similarities)
        return loss + _PENALTY * exponents.square().sum()

    minimize(score_loss, [exponents, bias])

    factors, slope = fitted["log_factors"], fitted["log_factor_slope"]
    common = torch.zeros((), dtype=torch.float64)
    targets = poses.similarities[poses.is_labelled]

    def keypoint_loss():
        deviations = calibrated_confidence(poses, {**fitted, "log_factors": common + factors})[1]
        expected = expected_keypoint_similarity(deviations, poses.boxes, sigmas, MINIMUM_SIDE_PIXELS)
        expected = expected[poses.is_labelled]
        loss = F.binary_cross_entropy(expected.clamp(_SMALLEST_SCORE, 1 - _SMALLEST_SCORE), targets)
        return loss + _PENALTY * factors.square().sum()

    minimize(keypoint_loss, [common, factors, slope])
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


def calibrated_confidence(poses: MatchedPoses, fitted: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the calibrated scores of all poses, (N,), and standard deviations of the matched ones, (M, K, 2)."""
    scores = calibrate_logits(poses.logits, fitted["score_exponents"], fitted["score_bias"]).sigmoid()
    factors = deviation_factors(poses.matched_logits, fitted["log_factors"], fitted["log_factor_slope"])
    return scores, poses.deviations * factors.unsqueeze(-1)


def uncalibrated_confidence(poses: MatchedPoses, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the same of the model without calibration, see [`scale_deviations`]."""
    matched_scores = poses.matched_logits.sigmoid()
    deviations = scale_deviations(poses.deviations, matched_scores, poses.boxes, sigmas, MINIMUM_SIDE_PIXELS)
    return poses.logits.sigmoid(), deviations


def normalized_errors(poses: MatchedPoses, deviations: Tensor) -> Tensor:
    """Returns the errors of all labeled keypoints in standard deviations, (L,)."""
    return (poses.errors / deviations.clamp(min=_SMALLEST_DEVIATION)).norm(dim=-1)[poses.is_labelled]


def fit_radii(poses: MatchedPoses, fitted: Mapping[str, Tensor]) -> list[float]:
    """Returns the radii of the ellipses that contain 50 % and 90 % of the labeled keypoints.

    They are quantiles of the errors ("conformal prediction"), and so hold whatever the errors' distribution is.
    """
    errors = normalized_errors(poses, calibrated_confidence(poses, fitted)[1])
    return errors.quantile(torch.tensor(COVERAGES, dtype=torch.float64)).tolist()


def calibrated(
    model: DETRPoseForPoseEstimation, fitted: Mapping[str, Tensor], radii: list[float]
) -> DETRPoseForPoseEstimation:
    """Calibrates a model, in place, and returns it."""
    model.config.use_calibration, model.config.ellipse_radii = True, radii
    model.calibration = DETRPoseCalibration(model.config)
    model.calibration.load_state_dict(fitted)
    model.calibration.to(model.device, model.dtype)
    return model


def measure(
    poses: MatchedPoses, scores: Tensor, deviations: Tensor, radii: Sequence[float], sigmas: Tensor
) -> dict[str, float]:
    """Measures how far confidences are from what they claim.

    Args:
        poses: the poses.
        scores: (N,), of all poses.
        deviations: (M, K, 2), of the matched poses, in pixels.
        radii: of the 50 % and 90 % ellipses, in standard deviations.
        sigmas: (K,), fall-off of each keypoint.

    Returns:
        `pose_error` and `keypoint_error`, the expected calibration errors of pose and keypoint scores; `mean_score` and
        `mean_similarity` of the labeled keypoints; `auc`, how well their scores separate a KS above 0.5 from others;
        and `coverage_50` and `coverage_90`, the part of them within the ellipses.
    """
    expected = expected_keypoint_similarity(deviations, poses.boxes, sigmas, MINIMUM_SIDE_PIXELS)[poses.is_labelled]
    similarities = poses.similarities[poses.is_labelled]
    errors = normalized_errors(poses, deviations)
    return {
        "pose_error": expected_calibration_error(scores, poses.pose_similarities),
        "keypoint_error": expected_calibration_error(expected, similarities),
        "mean_score": expected.mean().item(),
        "mean_similarity": similarities.mean().item(),
        "auc": area_under_curve(expected, similarities > 0.5),
        "coverage_50": (errors <= radii[0]).double().mean().item(),
        "coverage_90": (errors <= radii[1]).double().mean().item(),
    }


def area_under_curve(scores: Tensor, is_positive: Tensor) -> float:
    """Returns the probability that a positive has a higher score than a negative; NaN if there are not both."""
    negatives = scores[~is_positive].sort().values
    positives = scores[is_positive]
    below = torch.searchsorted(negatives, positives) + torch.searchsorted(negatives, positives, right=True)
    return (below.double().mean() / (2 * len(negatives))).item()


def expected_calibration_error(scores: Tensor, similarities: Tensor, num_bins: int = 15) -> float:
    """Returns the mean difference between scores and similarities, both (n,), within bins of equal width.

    Source: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    bins = (scores * num_bins).long().clamp(max=num_bins - 1)
    differences = torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, (scores - similarities).double())
    return (differences.abs().sum() / len(scores)).item()
