"""How far confidences can be trusted: reliability of scores, and coverage of predicted distributions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_BINS = 15  # as is usual for the expected calibration error
LEVELS = (0.5, 0.9)


@dataclass(frozen=True)
class Reliability:
    """Scores compared with what they promise, in bins of equal width from 0 to 1.

    Args:
        counts (`np.ndarray` of shape `(bins,)`): number of scores.
        scores (`np.ndarray` of shape `(bins,)`): mean score; NaN in empty bins.
        outcomes (`np.ndarray` of shape `(bins,)`): mean outcome; NaN in empty bins.
        calibration_error (`float`): expected calibration error, the mean over all scores of the difference between the
            two means of their bin; NaN without scores.
        mean_score (`float`): over all scores; NaN without any.
        mean_outcome (`float`): over all outcomes; NaN without any.
    """

    counts: np.ndarray
    scores: np.ndarray
    outcomes: np.ndarray
    calibration_error: float
    mean_score: float
    mean_outcome: float


def reliability(scores: np.ndarray, outcomes: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Compares scores with outcomes, as in Guo et al., "On Calibration of Modern Neural Networks" (2017).

    Args:
        scores: (n,), from 0 to 1.
        outcomes: (n,), from 0 to 1: what each score predicts, such as the keypoint similarity reached.
        num_bins: number of bins. A score on the edge of two bins belongs to the upper one.
    """
    scores, outcomes = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    bins = np.clip((scores * num_bins).astype(int), 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=values, minlength=num_bins) for values in (scores, outcomes)]
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        means = [total / counts for total in sums]
        error, mean_score, mean_outcome = (
            float(total / np.float64(len(scores))) for total in (abs(sums[0] - sums[1]).sum(), *map(np.sum, sums))
        )
    return Reliability(counts, *means, error, mean_score, mean_outcome)


def area_under_curve(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Returns the area under the ROC curve: the probability that a positive has a higher score than a negative.

    Args:
        scores: (n,).
        is_positive: (n,) bool.

    Returns:
        The area, to which ties contribute a half; NaN if there are not both kinds.
    """
    negatives, positives = np.sort(scores[~is_positive]), scores[is_positive]
    if not (len(negatives) and len(positives)):
        return float("nan")
    below = np.searchsorted(negatives, positives) + np.searchsorted(negatives, positives, side="right")
    return float(below.mean() / (2 * len(negatives)))


def normalized_distances(errors: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Returns √((dx/sx)² + (dy/sy)²), the radius of the ellipse on which a keypoint lies, in standard deviations.

    Args:
        errors: (..., 2), dx, dy from the predicted to the true keypoint.
        deviations: (..., 2), predicted standard deviations sx, sy, in the same unit.

    Returns:
        (...).
    """
    # The smallest normal number stands for a deviation of 0, outside of which all errors but 0 are.
    return np.linalg.norm(errors / np.maximum(deviations, np.finfo(np.float32).tiny), axis=-1)


def ellipse_coverage(errors: np.ndarray, deviations: np.ndarray, levels: Sequence[float] = LEVELS) -> list[float]:
    """Returns the fraction of keypoints inside the ellipses that should contain given fractions of them.

    The ellipse that contains a fraction p of a two-dimensional Gaussian has (dx/sx)² + (dy/sy)² ≤ -2 log(1 - p).

    Args:
        errors: (n, 2), dx, dy from the predicted to the true keypoint.
        deviations: (n, 2), predicted standard deviations sx, sy, in the same unit.
        levels: fractions below 1.

    Returns:
        One fraction for each level; NaN without keypoints.
    """
    if len(errors) == 0:
        return [float("nan")] * len(levels)
    distances = normalized_distances(errors, deviations)
    return [float((distances <= np.sqrt(-2 * np.log1p(-level))).mean()) for level in levels]
