"""Smoothing of tracks in a stream: a Kalman filter with the uncertainty of each keypoint."""

from collections.abc import Mapping

import numpy as np
import torch

from ..pose_arrays import Poses
from .motion import Motion
from .poses import check_range, check_time, deviation_array, enlargement, tracked_keypoints, with_keypoints


class PoseSmoother:
    """Smooths the keypoints of tracks in a stream by a Kalman filter, with `keypoint_std` as the noise of keypoints.

    An uncertain keypoint, or one far from where it was expected, changes the estimate less than a certain one. As each
    keypoint has a velocity, steady movements are not late.

    Args:
        acceleration: How suddenly keypoints move, above 0, in person sizes per second^1.5, a person's size being the
            root of their area; the lower, the smoother and the later.
        max_gap: Seconds after which a track begins anew.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, acceleration: float = 1.5, max_gap: float = 0.5):
        self.acceleration = check_range("acceleration", acceleration, 1e-6)
        self.max_gap = check_range("max_gap", max_gap, 0)
        self.reset()

    def reset(self):
        """Forgets all tracks, before another video."""
        self.time, self.image_size = -np.inf, None
        self.ids, self.seen, self.motion = np.empty(0, dtype=np.int64), np.empty(0), None

    def update(
        self, poses: Mapping[str, torch.Tensor], timestamp: float, image_size: tuple[int, int] | None = None
    ) -> Poses:
        """Returns the poses of the next frame with smoothed keypoints.

        Args:
            poses: Poses of one image with `track_id`, as `PoseTracker.update` returns them.
            timestamp: Time of the frame in seconds, not before that of the previous one.
            image_size: (height, width) of the frame in pixels; needed only if it may change, as for `PoseTracker`.

        Returns:
            The poses in the same order, with smoothed `keypoints` and `boxes` around them. Poses that belong to no
            track are unchanged.

        Raises:
            ValueError: if there is no `track_id`, or the time goes back.
        """
        keypoints, is_tracked = tracked_keypoints(poses)
        check_time(timestamp, self.time)
        if self.motion is not None and image_size != self.image_size:
            self.motion = self.motion.scaled(enlargement(self.image_size, image_size))
        self.time, self.image_size = timestamp, image_size
        if is_tracked.any():
            noise = np.square(deviation_array(poses, keypoints)[is_tracked]).mean(axis=-1)
            track_ids = np.asarray(torch.as_tensor(poses["track_id"]).cpu())[is_tracked]
            keypoints[is_tracked] = self._filter(track_ids, keypoints[is_tracked], noise)
        return with_keypoints(poses, keypoints)

    def _filter(self, track_ids: np.ndarray, keypoints: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Returns the smoothed keypoints (n, K, 2) of n tracks, given the variances (n, K) of their keypoints."""
        now = Motion.begin(keypoints, noise)
        row_of = {track_id: row for row, track_id in enumerate(self.ids.tolist()) if self._is_recent(row)}
        known = np.array([track_id in row_of for track_id in track_ids.tolist()])
        rows = np.array([row_of[track_id] for track_id in track_ids[known].tolist()], dtype=int)
        if len(rows):
            expected = self.motion[rows].predicted(self.time - self.seen[rows], self.acceleration)
            now[known] = expected.corrected(keypoints[known], noise[known])
        rest = np.array([row for track_id, row in row_of.items() if track_id not in track_ids], dtype=int)
        self.ids = np.concatenate([track_ids, self.ids[rest]])
        self.seen = np.concatenate([np.full(len(track_ids), self.time), self.seen[rest]])
        self.motion = now.joined(self.motion[rest]) if len(rest) else now
        return now.position

    def _is_recent(self, row: int) -> bool:
        return self.time - self.seen[row] <= self.max_gap
