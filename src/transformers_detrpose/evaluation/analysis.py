"""Everything that `detrpose evaluate --report` shows, as numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from ..pose_arrays import own_mean
from .keypoint_errors import INVERSION, JITTER, MISS, NAMES, SWAP, classify_keypoints, correct_keypoints, replace_field
from .keypoint_metrics import UNDEFINED, KeypointMetric, Poses
from .matching import MatchedPoses, match_poses, matched_errors, matched_similarity, pose_similarity
from .precision_recall import (
    Group,
    PrecisionRecall,
    by_crowding,
    by_size,
    by_visible_keypoints,
    precision_recall,
)
from .reliability import LEVELS, Reliability, ellipse_coverage, reliability

ERRORS = (JITTER, INVERSION, SWAP, MISS)
# Of the plot of coverage.
PLOTTED_LEVELS = tuple(np.arange(1, 20) / 20)


@dataclass(frozen=True)
class Cost:
    """What errors of one kind cost.

    Args:
        name (`str`): the kind.
        count (`int`): how many keypoints, poses or people.
        gains (`dict[str, float]`): by how much AP, AP50 and AP75 rise without them; NaN without ground truth.
    """

    name: str
    count: int
    gains: dict[str, float]


@dataclass(frozen=True)
class Coverage:
    """How many keypoints lie inside the ellipses of their predicted distributions.

    Args:
        levels (`tuple[float, ...]`): the fractions that should.
        fractions (`list[float]`): those that do.
        of_keypoints (`dict[str, list[float]]`): the fractions at `LEVELS`, by name of the keypoint.
    """

    levels: tuple[float, ...]
    fractions: list[float]
    of_keypoints: dict[str, list[float]]


@dataclass(frozen=True)
class Analysis:
    """The analysis of a model's poses; see `analyze`.

    Args:
        scores (`dict[str, float]`): those of the metric.
        rescored (`dict[str, float]`): the same if the score of each pose is its mean keypoint score; `None` without.
        ideal (`dict[str, float]`): the same if the score of each pose is the OKS that it reaches, see
            `MatchedPoses.ideal_scores`: what a perfect confidence in the same poses would give.
        pose_reliability (`Reliability`): of the scores of all poses, as predictions of the OKS.
        keypoint_reliability (`Reliability`): of the scores of keypoints, as predictions of the KS; `None` without.
        coverage (`Coverage`): of the predicted distributions; `None` without.
        curves (`PrecisionRecall`): for all people.
        groups (`dict[str, list[Group]]`): scores by "size", "visible keypoints" and "crowding".
        kinds (`np.ndarray` of shape `(K, 5)`): number of good, jittered, inverted, swapped and missed keypoints.
        costs (`list[Cost]`): of errors in keypoints, by kind, of poses of nobody, and of people without a pose.
        keypoint_costs (`np.ndarray` of shape `(K, 4)`): gain in AP without errors of one kind in one keypoint.
        matches (`MatchedPoses`): the poses and people.
        image_costs (`dict[int, float]`): how bad the poses in each image are; see `rank_images`.
    """

    scores: dict[str, float]
    rescored: dict[str, float] | None
    ideal: dict[str, float]
    pose_reliability: Reliability
    keypoint_reliability: Reliability | None
    coverage: Coverage | None
    curves: PrecisionRecall
    groups: dict[str, list[Group]]
    kinds: np.ndarray
    costs: list[Cost]
    keypoint_costs: np.ndarray
    matches: MatchedPoses
    image_costs: dict[int, float]


def analyze(metric: KeypointMetric, predictions: Mapping[int, Poses], progress: bool = True) -> Analysis:
    """Analyzes the poses of a model.

    Args:
        metric: its ground truth is used; it must have some annotations.
        predictions: the result of `evaluate_model` or `metric.gather`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if there are no images or no annotations.
    """
    scores = metric.score(predictions)
    matches = match_poses(metric, predictions)
    sigmas, is_own = metric.keypoint_schema.by_label(matches.labels)
    kinds = classify_keypoints(matches, metric.keypoint_schema)
    curves = precision_recall(metric, predictions)
    groups = {
        "size": by_size(metric, predictions, matches.people),
        "visible keypoints": by_visible_keypoints(metric, predictions, matches.people),
        "crowding": by_crowding(metric, predictions, matches.people),
    }
    costs, keypoint_costs = find_costs(metric, predictions, matches, kinds, curves, progress)
    similarity, known = matched_similarity(matches, sigmas)
    rescore = partial(replace_field, predictions, "scores")
    is_judged = matches.is_matched | matches.is_wrong
    has_scores = matches.keypoint_scores is not None
    return Analysis(
        scores=scores,
        rescored=metric.score(rescore(own_mean(matches.keypoint_scores, is_own))) if has_scores else None,
        ideal=metric.score(rescore(matches.ideal_scores)),
        pose_reliability=reliability(matches.scores[is_judged], pose_similarity(matches, sigmas)[is_judged]),
        keypoint_reliability=reliability(matches.keypoint_scores[known], similarity[known]) if has_scores else None,
        coverage=find_coverage(matches, known, metric.keypoint_schema.names),
        curves=curves,
        groups=groups,
        kinds=np.stack([(kinds == kind).sum(axis=0) for kind in range(len(NAMES))], axis=1),
        costs=costs,
        keypoint_costs=keypoint_costs,
        matches=matches,
        image_costs=rank_images(sorted(predictions), matches, sigmas),
    )


def find_coverage(matches: MatchedPoses, known: np.ndarray, names: tuple[str, ...]) -> Coverage | None:
    """Returns the coverage of the predicted distributions of the keypoints `known` (n, K); `None` without any."""
    if matches.keypoint_std is None:
        return None
    errors = matched_errors(matches)
    levels = tuple(sorted({*PLOTTED_LEVELS, *LEVELS}))
    fractions = ellipse_coverage(errors[known], matches.keypoint_std[known], levels)
    of_keypoints = {
        name: ellipse_coverage(errors[known[:, k], k], matches.keypoint_std[known[:, k], k])
        for k, name in enumerate(names)
    }
    return Coverage(levels, fractions, of_keypoints)


def find_costs(
    metric: KeypointMetric,
    predictions: Mapping[int, Poses],
    matches: MatchedPoses,
    kinds: np.ndarray,
    curves: PrecisionRecall,
    progress: bool = True,
) -> tuple[list[Cost], np.ndarray]:
    """Returns how much each kind of error costs, and (K, 4) how much in each keypoint.

    A cost is the gain in average precision if these errors alone are corrected: keypoints are moved to where they
    should be, poses that resemble nobody are removed, people without a pose are ignored.

    Args:
        metric: its ground truth is used.
        predictions: the predictions of `matches`.
        matches: the result of `match_poses`.
        kinds: (n, K), the result of `classify_keypoints`.
        curves: precision and recall before any correction.
        progress: whether to show a progress bar.
    """

    def corrected(chosen: np.ndarray) -> PrecisionRecall:
        return precision_recall(metric, correct_keypoints(predictions, matches, chosen))

    costs = []
    for kind in ERRORS:
        chosen = kinds == kind
        costs.append(Cost(NAMES[kind], int(chosen.sum()), _gains(curves, corrected(chosen))))
    right = precision_recall(metric, remove_poses(predictions, matches.is_background))
    costs.append(Cost("pose of nobody", int(matches.is_background.sum()), _gains(curves, right)))
    is_found = np.isin(np.arange(len(matches.people)), matches.person)
    is_missed = matches.people.is_counted & ~is_found
    found = precision_recall(metric, predictions, matches.people.is_counted & is_found)
    costs.append(Cost("person without a pose", int(is_missed.sum()), _gains(curves, found)))

    keypoint_costs = np.zeros((kinds.shape[1], len(ERRORS)))
    cells = [(k, column) for k in range(kinds.shape[1]) for column, kind in enumerate(ERRORS) if kind in kinds[:, k]]
    for k, column in tqdm(cells, desc="correcting errors", leave=None, disable=not progress):
        chosen = (kinds == ERRORS[column]) & (np.arange(kinds.shape[1]) == k)
        keypoint_costs[k, column] = _gains(curves, corrected(chosen))["AP"]
    return costs, keypoint_costs


def remove_poses(predictions: Mapping[int, Poses], removed: np.ndarray) -> dict[int, Poses]:
    """Returns the predictions without the poses `removed` (n,), in the order of `MatchedPoses`."""
    marked = replace_field(predictions, "removed", removed)
    return {
        image_id: {name: values[~poses["removed"]] for name, values in poses.items()}
        for image_id, poses in marked.items()
    }


def rank_images(image_ids: list[int], matches: MatchedPoses, sigmas) -> dict[int, float]:
    """Returns how bad the poses in each image are, worst first.

    Each person whom the metric counts adds 1 - score · OKS of the pose, or 1 without a pose; each pose without a person
    adds its score.
    """
    costs = dict.fromkeys(image_ids, 0.0)
    people = matches.people
    for image_id in people.image_ids[people.is_counted].tolist():
        costs[image_id] += 1
    changes = np.where(matches.is_wrong, matches.scores, -matches.scores * pose_similarity(matches, sigmas))
    for image_id, change in zip(matches.image_ids.tolist(), changes.tolist(), strict=True):
        costs[image_id] += change
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def _gains(before: PrecisionRecall, after: PrecisionRecall) -> dict[str, float]:
    gains = {}
    for name, threshold in (("AP", None), ("AP50", 0.5), ("AP75", 0.75)):
        values = [found.average_precision(threshold) for found in (before, after)]
        gains[name] = float("nan") if UNDEFINED in values else values[1] - values[0]
    return gains
