"""The poses of an image as arrays, and their similarity.

Poses are the dictionaries of `post_process_keypoint_detection`: tensors whose first axis are the n poses of one image.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from ..keypoint_schemas import PERSON_TO_BOX_AREA

Poses = dict[str, torch.Tensor]

SMALLEST_SIDE = 4.0  # pixels; the box of a pose counts as at least that wide and high


def keypoint_array(poses: Mapping[str, torch.Tensor], num_keypoints: int) -> np.ndarray:
    """Returns the keypoints of poses as float64 (n, K, 2), x, y in pixels.

    Raises:
        ValueError: if `keypoints` or `scores` is missing or has another shape.
    """
    if "keypoints" not in poses or "scores" not in poses:
        raise ValueError(f"poses need `scores` and `keypoints`, but have {sorted(poses)}.")
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
    sides = np.maximum(keypoints.max(axis=1) - keypoints.min(axis=1), SMALLEST_SIDE)
    return PERSON_TO_BOX_AREA * sides.prod(axis=1)


def pairwise_similarity(
    first: np.ndarray, second: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, looseness: float = 1.0
) -> np.ndarray:
    """Returns the keypoint similarity of all pairs of poses: the mean of exp(-d² / (2 · area · (2σ)²)).

    Args:
        first: (n, K, 2), x, y in pixels.
        second: (m, K, 2), x, y in pixels.
        areas: (n, m) or broadcast to it, in square pixels.
        sigmas: (K,), fall-off of each keypoint.
        looseness: factor of the sigmas.

    Returns:
        (n, m), from 0 to 1.
    """
    squared = np.square(first[:, None] - second[None]).sum(axis=-1)
    falloff = 2 * np.square(2 * looseness * sigmas) * np.asarray(areas)[..., None]
    return np.exp(-squared / falloff).mean(axis=-1)


def check_time(timestamp: float, previous: float):
    """Checks the time of a frame.

    Raises:
        ValueError: if it is not finite or is before that of the previous frame.
    """
    if not math.isfinite(timestamp):
        raise ValueError(f"`timestamp` must be a number of seconds, but got {timestamp}.")
    if timestamp < previous:
        raise ValueError(
            f"`timestamp` went back from {previous} to {timestamp} s: skip the frame, or call `reset` if another video "
            "begins."
        )
