"""The confidence of a model in each keypoint, in terms of COCO's object keypoint similarity (OKS)."""

import torch

from .keypoint_schemas import PERSON_TO_BOX_AREA

# Six steps are accurate to 1e-4 in similarity if the variances of a pose differ a thousandfold, and to float32
# precision if they differ tenfold.
_NEWTON_STEPS = 6
_LARGEST_STEP = 4.0
# Keeps scores away from 0 and 1, whose logits are infinite.
_SMALLEST_SCORE = 1e-4
# Keeps standard deviations, relative to the fall-off of their keypoint, away from 0, whose logarithm is infinite.
_SMALLEST_DEVIATION = 1e-6


def scale_deviations(
    deviations: torch.Tensor,
    scores: torch.Tensor,
    boxes: torch.Tensor,
    sigmas: torch.Tensor,
    minimum_side: float,
    is_own: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scales the standard deviations of each pose so that its expected keypoint similarity is its score.

    Training makes the score of a pose its mean keypoint similarity (KS), but supervises only the means of the predicted
    distributions, not their widths. So the score determines the size of the errors of a pose, and the widths their
    distribution over the keypoints: one factor t per pose is found such that the mean of
    1 / sqrt((1 + t sx² / k²) (1 + t sy² / k²)) over the keypoints, see `expected_keypoint_similarity`, is the score.
    Newton's method solves for log t, because the logit of that mean is nearly linear in it.

    Args:
        deviations: (..., K, 2), predicted standard deviations sx, sy.
        scores: (...), pose scores from 0 to 1.
        boxes: (..., 4), x1, y1, x2, y2 around each pose, in the unit of the standard deviations.
        sigmas: (K,) or (..., K), fall-off of each keypoint.
        minimum_side: in the same unit.
        is_own: (..., K) bool, which keypoints the class of each pose has; all of them if not given.

    Returns:
        (..., K, 2), in the same unit.
    """
    falloff = _falloff(boxes, sigmas, minimum_side).sqrt().unsqueeze(-1)
    relative = (deviations / falloff).clamp(min=_SMALLEST_DEVIATION)
    log_variances, target = 2 * relative.log(), torch.logit(scores, eps=_SMALLEST_SCORE)
    is_counted = None if is_own is None else is_own.unsqueeze(-1).expand_as(deviations)
    log_factor = -target - _mean(log_variances, is_counted, dim=(-2, -1))
    for _ in range(_NEWTON_STEPS):
        parts = torch.sigmoid(-log_factor[..., None, None] - log_variances)  # 1 / (1 + t s² / k²)
        similarity = parts.prod(dim=-1).sqrt()
        mean = _mean(similarity, is_own).clamp(_SMALLEST_SCORE / 10, 1 - _SMALLEST_SCORE / 10)
        decline = _mean(similarity * (2 - parts.sum(dim=-1)), is_own) / 2
        step = (torch.logit(mean) - target) * mean * (1 - mean) / decline
        log_factor = log_factor + step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
    return (log_factor / 2).exp()[..., None, None] * relative * falloff


def expected_keypoint_similarity(
    deviations: torch.Tensor, boxes: torch.Tensor, sigmas: torch.Tensor, minimum_side: float
) -> torch.Tensor:
    """Returns the expected keypoint similarity for Gaussian errors with known standard deviations.

    The mean of exp(-(dx² + dy²) / (2 k²)) over independent Gaussian errors dx and dy is
    1 / sqrt((1 + sx² / k²) (1 + sy² / k²)), with k² = area · (2 sigma)² as in COCO's OKS. The area is 0.53 times that
    of the pose's box, whose sides count as at least `minimum_side`.

    Args:
        deviations: (..., K, 2), standard deviations sx, sy.
        boxes: (..., 4), x1, y1, x2, y2 around each pose, in the unit of the standard deviations.
        sigmas: (K,) or (..., K), fall-off of each keypoint.
        minimum_side: in the same unit.

    Returns:
        (..., K), from 0 to 1.
    """
    falloff = _falloff(boxes, sigmas, minimum_side)
    return (1 + deviations.square() / falloff.unsqueeze(-1)).prod(dim=-1).rsqrt()


def _mean(values: torch.Tensor, is_counted: torch.Tensor | None, dim: int | tuple[int, ...] = -1) -> torch.Tensor:
    """Returns the mean of the values that are counted, by default all."""
    if is_counted is None:
        return values.mean(dim=dim)
    return (values * is_counted).sum(dim=dim) / is_counted.sum(dim=dim)


def _falloff(boxes: torch.Tensor, sigmas: torch.Tensor, minimum_side: float) -> torch.Tensor:
    """Returns k² of each keypoint, (..., K)."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=minimum_side)
    area = PERSON_TO_BOX_AREA * sides.prod(dim=-1)
    return area.unsqueeze(-1) * (2 * sigmas) ** 2
