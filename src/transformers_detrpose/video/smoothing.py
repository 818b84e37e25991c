"""Smoothing of tracks: online by a One-Euro filter, offline by a Kalman smoother that also fills gaps."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .poses import Poses, check_time, to_array


class PoseSmoother:
    """Smooths the keypoints of tracks in a stream by a One-Euro filter (Casiez et al., 2012).

    Args:
        min_cutoff: Cut-off frequency of a joint at rest, in Hz.
        speed: Increase of the cut-off frequency with the speed of a joint, in Hz per (pose height per second).
        max_gap: Seconds after which a track begins anew.
    """

    def __init__(self, min_cutoff: float = 1.5, speed: float = 20.0, max_gap: float = 0.5):
        self.min_cutoff, self.speed, self.max_gap = min_cutoff, speed, max_gap
        self.reset()

    def reset(self):
        """Forgets all tracks, before another video."""
        self.tracks: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}  # id → time, keypoints, velocities
        self.time = -math.inf

    def update(self, poses: Mapping[str, torch.Tensor], timestamp: float) -> Poses:
        """Returns the poses of the next frame with smoothed keypoints.

        Args:
            poses: Poses of one image with `track_id`, as `PoseTracker.update` returns them.
            timestamp: Time of the frame in seconds, not before that of the previous one.

        Returns:
            The poses in the same order, with smoothed `keypoints` and `boxes` around them. Poses that belong to no
            track are unchanged.

        Raises:
            ValueError: if there is no `track_id`, or the time goes back.
        """
        if "track_id" not in poses:
            raise ValueError(f"poses need `track_id`, but have {sorted(poses)}: pass them to `PoseTracker` first.")
        check_time(timestamp, self.time)
        self.time = timestamp
        self.tracks = {k: track for k, track in self.tracks.items() if timestamp - track[0] <= self.max_gap}
        keypoints = to_array(poses["keypoints"]).copy()
        for index, track_id in enumerate(poses["track_id"].tolist()):
            if track_id >= 0:
                keypoints[index] = self._filter(track_id, keypoints[index], timestamp)
        return with_keypoints(poses, keypoints)

    def _filter(self, track_id: int, keypoints: np.ndarray, timestamp: float) -> np.ndarray:
        """Returns the smoothed keypoints (K, 2) of a track."""
        time, previous, velocity = self.tracks.get(track_id, (timestamp, keypoints, np.zeros_like(keypoints)))
        elapsed = timestamp - time
        if elapsed > 0:
            velocity += _weight(1.0, elapsed) * ((keypoints - previous) / elapsed - velocity)
            height = max(np.ptp(keypoints[:, 1]), 1.0)
            cutoff = self.min_cutoff + self.speed * np.linalg.norm(velocity, axis=-1, keepdims=True) / height
            keypoints = previous + _weight(cutoff, elapsed) * (keypoints - previous)
        self.tracks[track_id] = timestamp, keypoints, velocity
        return keypoints


def _weight(cutoff, elapsed: float):
    """Returns the weight of a new value in a low-pass filter, given its cut-off frequency in Hz and the time step."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * elapsed))


def with_keypoints(poses: Mapping[str, torch.Tensor], keypoints: np.ndarray) -> Poses:
    """Returns poses with other keypoints (n, K, 2), and the boxes around them."""
    moved = torch.from_numpy(keypoints).to(poses["keypoints"])
    boxes = torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=-1) if len(moved) else poses["boxes"]
    return {**poses, "keypoints": moved, "boxes": boxes}


def smooth_tracks(
    frames: Sequence[Mapping[str, torch.Tensor]], timestamps: Sequence[float], max_gap: float = 0.5
) -> list[Poses]:
    """Smooths whole tracks, looking ahead, and fills their gaps.

    Args:
        frames: Poses of each frame with `track_id`, as `PoseTracker.update` returns them.
        timestamps: Times of the frames in seconds, ascending.
        max_gap: Longest gap to fill, in seconds.

    Returns:
        For each frame the poses in the same order, with smoothed `keypoints`, followed by those filled in; `filled`
        (n,) bool tells them apart. The scores of filled poses are interpolated.

    Raises:
        ValueError: if a frame has no `track_id`, or the times do not ascend or are not one per frame.
    """
    if len(frames) != len(timestamps):
        raise ValueError(f"got {len(frames)} frames, but {len(timestamps)} timestamps.")
    smoothed = []
    forward = PoseSmoother(max_gap=max_gap)
    for poses, timestamp in zip(frames, timestamps, strict=True):
        poses = forward.update(poses, timestamp)
        smoothed.append({**poses, "filled": torch.zeros(len(poses["scores"]), dtype=torch.bool)})
    return smoothed
