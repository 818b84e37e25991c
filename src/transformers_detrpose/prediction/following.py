"""Follows people through the frames of one video."""

from collections.abc import Sequence

from ..pose_arrays import Poses, select
from ..video import PoseSmoother, PoseTracker, smooth_tracks
from .models import Predictor

# A person who is half hidden scores lower for a while: such poses continue a track, but begin none (Zhang et al.,
# ByteTrack, 2022, whose value this is).
CONTINUING_SCORE = 0.1


class Follower:
    """Gives poses their numbers and, on request, smooths them as they come.

    Args:
        predictor: The model; its threshold is the minimum score of a pose that begins a track.
        smooth: Whether to smooth poses as they come.
    """

    def __init__(self, predictor: Predictor, smooth: bool = False):
        self.least_score = min(predictor.threshold, CONTINUING_SCORE)
        self.tracker = PoseTracker(predictor.model.config.keypoint_schema, predictor.threshold)
        self.smoother = PoseSmoother() if smooth else None

    def __call__(self, poses: Poses, timestamp: float) -> Poses:
        """Returns the poses of the next frame that belong to a track, with `track_id`.

        Args:
            poses: All poses with a score of at least `least_score`.
            timestamp: Time of the frame in seconds.
        """
        poses = self.tracker.update(poses, timestamp)
        poses = select(poses, poses["track_id"] >= 0)
        return poses if self.smoother is None else self.smoother.update(poses, timestamp)

    def follow_all(self, frames: Sequence[Poses], timestamps: Sequence[float]) -> list[Poses]:
        """Returns the smoothed poses of all frames that belong to a track, see `PoseTracker.track` and `smooth_tracks`.

        Args:
            frames: All poses of each frame with a score of at least `least_score`.
            timestamps: Times of the frames in seconds.
        """
        tracked = [select(poses, poses["track_id"] >= 0) for poses in self.tracker.track(frames, timestamps)]
        return smooth_tracks(tracked, timestamps)
