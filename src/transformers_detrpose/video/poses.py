"""The poses of an image as arrays, and their similarity.

Poses are the dictionaries of `post_process_keypoint_detection`: tensors whose first axis are the n poses of one image.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from ..keypoint_schemas import PERSON_TO_BOX_AREA

Poses = dict[str, torch.Tensor]

# Standard deviation of keypoints without a known one, and the least one, relative to the root of the person's area.
DEFAULT_DEVIATION, LEAST_DEVIATION = 0.04, 0.005
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
    sides = np.maximum(keypoints.max(axis=1) - keypoints.min(axis=1), SMALLEST_SIDE)
    return PERSON_TO_BOX_AREA * sides.prod(axis=1)


def squared_length(offsets: np.ndarray) -> np.ndarray:
    """Returns the squared lengths (...) of x, y (..., 2); several times as fast as a sum over so short an axis."""
    return np.square(offsets[..., 0]) + np.square(offsets[..., 1])


def own_mean(values: np.ndarray, is_own: np.ndarray | None) -> np.ndarray:
    """Returns the mean (...) of values (..., K) over the keypoints (..., K) that a class has; all of them if `None`."""
    return values.mean(axis=-1) if is_own is None else (values * is_own).sum(axis=-1) / is_own.sum(axis=-1)


def pairwise_similarity(
    first: np.ndarray, second: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the keypoint similarity of all pairs of poses: the mean of exp(-d² / (2 · area · (2σ)²)).

    Args:
        first: (n, K, 2), x, y in pixels.
        second: (m, K, 2), x, y in pixels.
        areas: (n,), areas of the first poses in square pixels.
        sigmas: (K,) or, of the first poses, (n, K), fall-off of each keypoint.
        weights: (n, K), weights of the keypoints in the mean, equal by default.

    Returns:
        (n, m), from 0 to 1.
    """
    squared = squared_length(first[:, None] - second[None])
    falloff = 2 * areas[:, None] * np.square(2 * sigmas)
    similarity = np.exp(-squared / falloff[:, None])
    if weights is None:
        return similarity.mean(axis=-1)
    return (similarity * weights[:, None]).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1e-9)[:, None]


def check_time(timestamp: float, previous: float):
    """Checks the time of a frame.

    Raises:
        ValueError: if it is not finite or is before that of the previous frame.
    """
    if not math.isfinite(timestamp):
        raise ValueError(f"`timestamp` must be a number of seconds, but got {timestamp}.")
    if timestamp < previous:
        raise ValueError(
            f"`timestamp` went back from {previous} to {timestamp} s: leave out the frame, or call `reset` if another "
            "video begins."
        )


def check_range(name: str, value: float, least: float, most: float = math.inf) -> float:
    """Returns an argument if it is in a range.

    Raises:
        ValueError: if it is not; the message names it.
    """
    if not least <= value <= most:  # also if it is NaN
        accepted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"`{name}` must be {accepted}, but got {value}.")
    return value


def enlargement(before: tuple[int, int] | None, now: tuple[int, int] | None) -> np.ndarray:
    """Returns by which factors x and y grow, (2,), from one image size (height, width) to the next; 1 if not known."""
    if before is None or now is None:
        return np.ones(2)
    return np.array(now[::-1], dtype=float) / before[::-1]


def tracked_keypoints(poses: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a copy of the keypoints (n, K, 2), and which poses (n,) belong to a track and are finite.

    Raises:
        ValueError: if the poses have no `track_id`.
    """
    if "track_id" not in poses:
        raise ValueError(f"poses need `track_id`, but have {sorted(poses)}: pass them to `PoseTracker` first.")
    keypoints = to_array(poses["keypoints"]).copy()
    is_tracked = np.asarray(torch.as_tensor(poses["track_id"]).cpu()) >= 0
    return keypoints, is_tracked & np.isfinite(keypoints).all(axis=(1, 2))


def deviation_array(poses: Mapping[str, torch.Tensor], keypoints: np.ndarray) -> np.ndarray:
    """Returns the standard deviations of keypoints (n, K, 2) in pixels: `keypoint_std`, or the default without it."""
    size = np.sqrt(pose_areas(keypoints))[:, None, None]
    deviations = np.broadcast_to(DEFAULT_DEVIATION * size, keypoints.shape)
    if "keypoint_std" in poses:
        given = to_array(poses["keypoint_std"])
        deviations = np.where(np.isfinite(given), given, deviations)
    return np.maximum(deviations, LEAST_DEVIATION * size)


def with_keypoints(poses: Mapping[str, torch.Tensor], keypoints: np.ndarray) -> Poses:
    """Returns poses with other keypoints (n, K, 2), and the boxes around them."""
    moved = torch.from_numpy(keypoints).to(poses["keypoints"])
    boxes = torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=-1) if len(moved) else poses["boxes"]
    return {**poses, "keypoints": moved, "boxes": boxes}
