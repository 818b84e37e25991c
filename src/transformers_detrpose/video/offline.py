"""Smoothing of whole tracks, which looks ahead: a Kalman smoother (Rauch, Tung and Striebel, 1965) that fills gaps.

Each coordinate has a position, a velocity and an acceleration, and the acceleration changes at random. `keypoint_std`
is the noise of the measured position. All coordinates of a track are smoothed at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..pose_arrays import Poses, pose_areas
from .poses import check_range, check_time, deviation_array, tracked_keypoints, with_keypoints

JERK = 25.0  # of keypoints, in person sizes per second^2.5; a person's size is the root of their area
FIRST_SPEED, FIRST_ACCELERATION = 3.0, 20.0  # standard deviations at the beginning, in sizes and seconds
OUTLIER = 3.0  # standard deviations; keypoints further off are trusted less


def smooth_tracks(
    frames: Sequence[Mapping[str, torch.Tensor]], timestamps: Sequence[float], max_gap: float = 0.5
) -> list[Poses]:
    """Smooths whole tracks, and fills their gaps.

    Args:
        frames: Poses of each frame with `track_id`, as `PoseTracker.update` returns them.
        timestamps: Times of the frames in seconds, not descending.
        max_gap: Longest gap to fill, in seconds; after a longer one a track is smoothed anew.

    Returns:
        For each frame the poses in the same order, with smoothed `keypoints` and `boxes` around them, followed by those
        filled in; `filled` (n,) bool marks the latter. Their scores are interpolated, and their `keypoint_std` is that
        of the smoother. Poses that belong to no track are unchanged.

    Raises:
        ValueError: if a frame has no `track_id`, or the times descend or are not one per frame.
    """
    check_range("max_gap", max_gap, 0)
    if len(frames) != len(timestamps):
        raise ValueError(f"there are {len(frames)} frames, but {len(timestamps)} timestamps.")
    for previous, timestamp in zip([-np.inf, *timestamps], timestamps, strict=False):
        check_time(timestamp, previous)
    frames = [{**poses, "filled": torch.zeros_like(poses["scores"], dtype=torch.bool)} for poses in frames]
    keypoints, tracks = _find_tracks(frames)
    added: list[list[Poses]] = [[] for _ in frames]
    for track in tracks.values():
        for part in _split_at_gaps(track, timestamps, max_gap):
            _smooth_part(part, frames, timestamps, keypoints, added)
    smoothed = [with_keypoints(poses, points) for poses, points in zip(frames, keypoints, strict=True)]
    return [_joined(poses, new) for poses, new in zip(smoothed, added, strict=True)]


def _find_tracks(frames: list[Poses]) -> tuple[list[np.ndarray], dict[int, list[tuple[int, int]]]]:
    """Returns the keypoints of each frame, and of each track the indices of the frames and of its poses in them."""
    keypoints, tracks = [], {}
    for frame, poses in enumerate(frames):
        points, is_tracked = tracked_keypoints(poses)
        keypoints.append(points)
        for pose in np.flatnonzero(is_tracked).tolist():
            tracks.setdefault(int(poses["track_id"][pose]), []).append((frame, pose))
    return keypoints, tracks


def _split_at_gaps(
    track: list[tuple[int, int]], timestamps: Sequence[float], max_gap: float
) -> list[list[tuple[int, int]]]:
    parts = [[track[0]]]
    for before, now in zip(track, track[1:], strict=False):
        if timestamps[now[0]] - timestamps[before[0]] > max_gap and now[0] > before[0] + 1:
            parts.append([])
        parts[-1].append(now)
    return parts


def _smooth_part(
    part: list[tuple[int, int]],
    frames: list[Poses],
    timestamps: Sequence[float],
    keypoints: list[np.ndarray],
    added: list[list[Poses]],
):
    """Smooths a part of a track without long gaps: replaces its keypoints, and adds poses where it is not seen."""
    pose_of, first, last = dict(part), part[0][0], part[-1][0]
    seen = np.array([frame in pose_of for frame in range(first, last + 1)])
    measured = np.stack([keypoints[frame][pose] for frame, pose in part])
    noise = np.concatenate([
        np.square(deviation_array(_one(frames[frame], pose), keypoints[frame][pose][None])) for frame, pose in part
    ])  # fmt: skip
    size = float(np.sqrt(np.median(pose_areas(measured))))
    shape = (len(part), -1)
    times = np.array(timestamps[first : last + 1], dtype=float)
    position, variance = smooth(times, seen, measured.reshape(shape), noise.reshape(shape), size)
    position, variance = (values.reshape(-1, *measured.shape[1:]) for values in (position, variance))
    before = first
    for frame in range(first, last + 1):
        if frame in pose_of:
            keypoints[frame][pose_of[frame]], before = position[frame - first], frame
            continue
        after = next(later for later in range(frame, last + 1) if later in pose_of)
        share = (frame - before) / (after - before)
        ends = _one(frames[before], pose_of[before]), _one(frames[after], pose_of[after])
        added[frame].append(_filled(*ends, share, position[frame - first], np.sqrt(variance[frame - first])))


def smooth(
    times: np.ndarray, seen: np.ndarray, measured: np.ndarray, noise: np.ndarray, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Smooths the C coordinates of a track in T frames, of which m have measurements.

    Args:
        times: (T,), in seconds.
        seen: (T,), whether a frame has a measurement, as the first has.
        measured: (m, C), in pixels.
        noise: (m, C), variances of the measurements.
        size: Size of the person in pixels.

    Returns:
        The positions (T, C) and their variances (T, C).
    """
    means, covariances, predictions = [], [], []
    mean = np.zeros((measured.shape[1], 3))
    mean[:, 0] = measured[0]
    covariance = np.zeros((measured.shape[1], 3, 3)) + np.diag([0, FIRST_SPEED**2, FIRST_ACCELERATION**2]) * size**2
    covariance[:, 0, 0] = noise[0]
    row = 0
    for frame in range(len(times)):
        transition, push = _dynamics(times[frame] - times[frame - 1] if frame else 0.0, size)
        mean, covariance = mean @ transition.T, transition @ covariance @ transition.T + push
        predictions.append((transition, mean, covariance))
        if seen[frame]:
            if frame:
                mean, covariance = _correct(mean, covariance, measured[row], noise[row])
            row += 1
        means.append(mean)
        covariances.append(covariance)
    for frame in range(len(times) - 2, -1, -1):
        transition, predicted, predicted_covariance = predictions[frame + 1]
        gain = np.linalg.solve(predicted_covariance, transition @ covariances[frame]).swapaxes(-1, -2)
        change = covariances[frame + 1] - predicted_covariance
        means[frame] = means[frame] + (gain @ (means[frame + 1] - predicted)[..., None])[..., 0]
        covariances[frame] = covariances[frame] + gain @ change @ gain.swapaxes(-1, -2)
    return np.stack(means)[..., 0], np.maximum(np.stack(covariances)[..., 0, 0], 0)


def _dynamics(elapsed: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrices (3, 3) that move a state ahead, and the covariance that this adds."""
    transition = np.array([[1, elapsed, elapsed**2 / 2], [0, 1, elapsed], [0, 0, 1]])
    t = elapsed
    push = np.array([[t**5 / 20, t**4 / 8, t**3 / 6], [t**4 / 8, t**3 / 3, t**2 / 2], [t**3 / 6, t**2 / 2, t]])
    # The small addition keeps the covariance regular if no time elapses.
    return transition, (JERK * size) ** 2 * push + 1e-9 * size**2 * np.eye(3)


def _correct(
    mean: np.ndarray, covariance: np.ndarray, measured: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns means (C, 3) and covariances (C, 3, 3) after a measurement (C,) of the positions."""
    offset = measured - mean[:, 0]
    surprise = np.square(offset) / (OUTLIER**2 * (covariance[:, 0, 0] + noise))
    gain = covariance[..., 0] / (covariance[:, 0, 0] + noise * np.maximum(1, surprise))[:, None]
    return mean + gain * offset[:, None], covariance - gain[..., None] * covariance[:, None, 0]


def _one(poses: Mapping[str, torch.Tensor], pose: int) -> Poses:
    """Returns one of the poses, with a first axis of 1."""
    return {name: values[pose : pose + 1] for name, values in poses.items()}


def _filled(before: Poses, after: Poses, share: float, keypoints: np.ndarray, deviations: np.ndarray) -> Poses:
    """Returns a pose between two others, with given keypoints and standard deviations (K, 2)."""
    pose = {**before, "filled": torch.ones_like(before["filled"])}
    for name in ("scores", "keypoint_scores"):
        if name in pose:
            pose[name] = torch.lerp(before[name], after[name], share)
    if "keypoint_std" in pose:
        pose["keypoint_std"] = torch.from_numpy(deviations[None]).to(before["keypoint_std"])
    return with_keypoints(pose, keypoints[None])


def _joined(poses: Poses, added: list[Poses]) -> Poses:
    """Returns poses followed by those added."""
    return {name: torch.cat([values, *(each[name] for each in added)]) for name, values in poses.items()}
