"""The poses of an image as arrays, and their similarity.

Poses are the dictionaries of `post_process_keypoint_detection`: tensors whose first axis are the n poses of one image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .keypoint_schemas import PERSON_TO_BOX_AREA

Poses = dict[str, torch.Tensor]

SMALLEST_SIDE = 4.0  # pixels; the box of a pose counts as at least that wide and high


def keypoint_array(poses: Mapping[str, torch.Tensor], num_keypoints: int) -> np.ndarray:
    """Returns the keypoints of poses as float64 (n, K, 2), x, y in pixels, after checking the poses.

    Raises:
        ValueError: if `keypoints`, `scores` or `labels` is missing, or the keypoints have another shape.
    """
    if not {"keypoints", "scores", "labels"} <= poses.keys():
        raise ValueError(f"poses need `scores`, `labels` and `keypoints`, but have {sorted(poses)}.")
    keypoints = to_array(poses["keypoints"])
    expected = (len(poses["scores"]), num_keypoints, 2)
    if keypoints.shape != expected:
        raise ValueError(f"`keypoints` must have the shape {expected} to go with `scores`, not {keypoints.shape}.")
    return keypoints


def to_array(values: torch.Tensor) -> np.ndarray:
    """Returns a tensor as a float64 array."""
    return torch.as_tensor(values).detach().cpu().double().numpy()


def select(poses: Mapping[str, torch.Tensor], index: np.ndarray) -> Poses:
    """Returns some of the poses, given their indices (m,) or a mask (n,)."""
    index = torch.as_tensor(index)
    return {name: values[index.to(values.device)] for name, values in poses.items()}


def pose_areas(keypoints: np.ndarray) -> np.ndarray:
    """Returns the areas (n,) of people in square pixels, estimated from the boxes around keypoints (n, K, 2)."""
    if not len(keypoints):
        return np.empty(0)
    # Apart, which is three times as fast as both at once.
    width, height = (np.maximum(np.ptp(keypoints[..., axis], axis=1), SMALLEST_SIDE) for axis in (0, 1))
    return PERSON_TO_BOX_AREA * (width * height)


def squared_length(offsets: np.ndarray) -> np.ndarray:
    """Returns the squared lengths (...) of x, y (..., 2); several times as fast as a sum over so short an axis."""
    return np.square(offsets[..., 0]) + np.square(offsets[..., 1])


def own_mean(values: np.ndarray, is_own: np.ndarray | None) -> np.ndarray:
    """Returns the mean (...) of values (..., K) over the keypoints (..., K) that a class has; all of them if `None`."""
    return values.mean(axis=-1) if is_own is None else (values * is_own).sum(axis=-1) / is_own.sum(axis=-1)


def keypoint_similarity(errors: np.ndarray, areas: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """Returns COCO's keypoint similarity, exp(-d² / (2 · area · (2σ)²)).

    Args:
        errors: (..., K, 2), dx, dy in pixels.
        areas: (...), in square pixels.
        sigmas: (K,) or (..., K), fall-off of each keypoint.

    Returns:
        (..., K), from 0 to 1.
    """
    variances = np.asarray(areas)[..., None] * np.square(2 * np.asarray(sigmas))
    return np.exp(-squared_length(errors) / (2 * variances))


def pairwise_similarity(
    first: np.ndarray, second: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the keypoint similarity of all pairs of poses, the mean of that of their keypoints.

    Args:
        first: (n, K, 2), x, y in pixels.
        second: (m, K, 2), x, y in pixels.
        areas: (n,), areas of the first poses in square pixels.
        sigmas: (K,) or, of the first poses, (n, K), fall-off of each keypoint.
        weights: (n, K), weights of the keypoints in the mean, equal by default.

    Returns:
        (n, m), from 0 to 1.
    """
    similarity = keypoint_similarity(first[:, None] - second[None], areas[:, None], np.asarray(sigmas)[..., None, :])
    if weights is None:
        return similarity.mean(axis=-1)
    return (similarity * weights[:, None]).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1e-9)[:, None]
