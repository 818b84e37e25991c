"""Smoothing of whole tracks, which looks ahead: a Kalman smoother that fills gaps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..pose_arrays import Poses
from .body_motion import BodyMotion
from .poses import check_range, check_time, noise_array, tracked_keypoints, with_keypoints

# Frames that are smoothed at once, and as many before and after as they depend on: a track may be hours long.
BLOCK, MARGIN = 500, 100


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
    noise = np.stack([noise_array(_one(frames[frame], pose), keypoints[frame][pose][None])[0] for frame, pose in part])
    times = np.array(timestamps[first : last + 1], dtype=float)
    position, deviation = smooth(times, seen, measured, noise)
    before = first
    for frame in range(first, last + 1):
        if frame in pose_of:
            keypoints[frame][pose_of[frame]], before = position[frame - first], frame
            continue
        after = next(later for later in range(frame, last + 1) if later in pose_of)
        share = (frame - before) / (after - before)
        ends = _one(frames[before], pose_of[before]), _one(frames[after], pose_of[after])
        added[frame].append(_filled(*ends, share, position[frame - first], deviation[frame - first]))


def smooth(
    times: np.ndarray, seen: np.ndarray, measured: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Smooths the K keypoints of a track in T frames, of which m have measurements.

    Args:
        times: (T,), in seconds.
        seen: (T,), whether a frame has a measurement, as the first has.
        measured: (m, K, 2), in pixels.
        noise: (m, K), variances of the measurements in x and in y.

    Returns:
        The positions (T, K, 2) and their standard deviations (T, K, 2).
    """
    seen_frames = np.flatnonzero(seen)
    positions, deviations = [], []
    for start in range(0, len(times), BLOCK):
        first = seen_frames[seen_frames <= max(start - MARGIN, 0)][-1]
        block = slice(first, start + BLOCK + MARGIN)
        rows = slice(seen[:first].sum(), seen[: block.stop].sum())
        smoothed = _smooth_block(times[block], seen[block], measured[rows], noise[rows])
        kept = smoothed[start - first : start - first + BLOCK]
        positions += [motion.position for motion in kept]
        deviations += [np.sqrt(np.maximum(motion.variance, 0)) for motion in kept]
    return np.stack(positions), np.repeat(np.stack(deviations)[..., None], 2, axis=-1)


def _smooth_block(times: np.ndarray, seen: np.ndarray, measured: np.ndarray, noise: np.ndarray) -> list[BodyMotion]:
    """Returns the smoothed motion in each frame; the arguments are those of `smooth`."""
    measurements = zip(measured, noise, strict=True)
    motions = [BodyMotion.begin(*next(measurements))]
    elapsed = np.diff(times)
    for time, is_seen in zip(elapsed, seen[1:], strict=True):
        motion = motions[-1].predicted(time)
        motions.append(motion.corrected(*next(measurements)) if is_seen else motion)
    for frame in range(len(times) - 2, -1, -1):
        # Predicted anew, as keeping all predictions would double the memory.
        predicted = motions[frame].predicted(elapsed[frame])
        motions[frame] = motions[frame].looked_back(elapsed[frame], predicted, motions[frame + 1])
    return motions


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
