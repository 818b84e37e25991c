"""Poses of the frames of a video: checks of their times, and what tracking and smoothing need of them."""

import math
from collections.abc import Mapping

import numpy as np
import torch

from ..pose_arrays import Poses, pose_areas, squared_length, to_array

# Standard deviation of keypoints without a known one, and the least one, relative to the root of the person's area.
DEFAULT_DEVIATION, LEAST_DEVIATION = 0.04, 0.005


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


def noise_array(poses: Mapping[str, torch.Tensor], keypoints: np.ndarray) -> np.ndarray:
    """Returns the variances (n, K) of keypoints (n, K, 2) in x and in y, for smoothing all of a person together.

    Keypoints that the class of a pose lacks, which have a standard deviation of 0, tell nothing about the others: they
    count as if they might be anywhere on the person.
    """
    noise = squared_length(deviation_array(poses, keypoints)) / 2
    if "keypoint_std" not in poses:
        return noise
    is_lacking = (to_array(poses["keypoint_std"]) == 0).all(axis=-1)
    return np.where(is_lacking, pose_areas(keypoints)[:, None], noise)


def with_keypoints(poses: Mapping[str, torch.Tensor], keypoints: np.ndarray) -> Poses:
    """Returns poses with other keypoints (n, K, 2), and the boxes around them."""
    moved = torch.from_numpy(keypoints).to(poses["keypoints"])
    boxes = torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=-1) if len(moved) else poses["boxes"]
    return {**poses, "keypoints": moved, "boxes": boxes}
