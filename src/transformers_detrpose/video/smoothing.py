"""Smoothing of tracks in a stream: a Kalman filter with the uncertainty of each keypoint."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from ..pose_arrays import Poses
from .body_motion import ACCELERATION, BodyMotion
from .poses import check_range, check_time, enlargement, noise_array, tracked_keypoints, with_keypoints


class PoseSmoother:
    """Smooths the keypoints of tracks in a stream by a Kalman filter, with `keypoint_std` as the noise of keypoints.

    An uncertain keypoint, or one far from where it was expected, changes the estimate less than a certain one. As each
    keypoint has a velocity, steady movements are not late. What a frame tells about the one before makes that much
    smoother: who can wait for one frame takes `previous`.

    Example:

    ```python
    >>> smoother.update(poses, timestamp)  # the poses of this frame, at once
    >>> smoother.previous  # those of the frame before, better than they were
    ```

    Args:
        acceleration: How suddenly keypoints move, above 0, in person sizes per second^1.5, a person's size being the
            root of their area; the lower, the smoother and the later.
        max_gap: Seconds after which a track begins anew.

    Attributes:
        previous: The poses of the frame before the last, smoothed with what the last one tells about them; `None`
            before the second frame.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, acceleration: float = ACCELERATION, max_gap: float = 0.5):
        self.acceleration = check_range("acceleration", acceleration, 1e-6)
        self.max_gap = check_range("max_gap", max_gap, 0)
        self.reset()

    def reset(self):
        """Forgets all tracks, before another video."""
        self.time, self.image_size = -np.inf, None
        self.tracks: dict[int, _Track] = {}
        self.latest: Poses | None = None
        self.pose_of: dict[int, int] = {}  # by track_id, in the latest frame
        self.previous: Poses | None = None

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
        noise = noise_array(poses, keypoints)
        track_ids = torch.as_tensor(poses["track_id"]).tolist()
        factor = enlargement(self.image_size, image_size)
        recent = {key: track for key, track in self.tracks.items() if timestamp - track.time <= self.max_gap}
        self.tracks = {key: _Track(track.motion.scaled(factor), track.time) for key, track in recent.items()}
        previous = None if self.latest is None else tracked_keypoints(self.latest)[0]
        pose_of = {track_ids[pose]: pose for pose in np.flatnonzero(is_tracked).tolist()}
        for key, pose in pose_of.items():
            if key in self.tracks:
                before, elapsed = self.tracks[key].motion, timestamp - self.tracks[key].time
                expected = before.predicted(elapsed, self.acceleration)
                motion = expected.corrected(keypoints[pose], noise[pose])
                if key in self.pose_of:
                    better = before.looked_back(elapsed, expected, motion)
                    previous[self.pose_of[key]] = better.position / factor
            else:
                motion = BodyMotion.begin(keypoints[pose], noise[pose])
            self.tracks[key], keypoints[pose] = _Track(motion, timestamp), motion.position
        if previous is not None:
            self.previous = with_keypoints(self.latest, previous)
        self.time, self.image_size, self.pose_of = timestamp, image_size, pose_of
        self.latest = with_keypoints(poses, keypoints)
        return self.latest


class _Track(NamedTuple):
    """How a person moved when they were last seen, and when that was."""

    motion: BodyMotion
    time: float
