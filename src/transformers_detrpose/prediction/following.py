"""Follows people through the frames of one video."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..pose_arrays import Poses, select
from ..video import PoseSmoother, PoseTracker, smooth_tracks
from ..video_files.reading import Frame
from .models import Predictor

# A person who is half hidden scores lower for a while: such poses continue a track, but begin none (Zhang et al.,
# ByteTrack, 2022, whose value this is).
CONTINUING_SCORE = 0.1


class Predicted(NamedTuple):
    """A frame with its poses."""

    frame: Frame
    poses: Poses


class Follower:
    """Gives poses their numbers and, on request, smooths them as they come.

    Args:
        predictor: The model; its threshold is the minimum score of a pose that begins a track.
        smooth: Whether to smooth poses, each frame when the next one is there.
    """

    def __init__(self, predictor: Predictor, smooth: bool = False):
        self.least_score = min(predictor.threshold, CONTINUING_SCORE)
        self.tracker = PoseTracker(predictor.model.config.keypoint_schema, predictor.threshold)
        self.smoother = PoseSmoother() if smooth else None

    def follow(self, predicted: Iterable[Predicted]) -> Iterator[Predicted]:
        """Yields frames with their poses that belong to a track, with `track_id`; one frame late if it smooths them.

        Args:
            predicted: Frames with all poses with a score of at least `least_score`.
        """
        waiting = None
        for frame, poses in predicted:
            poses = self.tracker.update(poses, frame.timestamp)
            poses = select(poses, poses["track_id"] >= 0)
            if self.smoother is None:
                yield Predicted(frame, poses)
                continue
            poses = self.smoother.update(poses, frame.timestamp)
            if waiting is not None:
                yield Predicted(waiting.frame, self.smoother.previous)
            waiting = Predicted(frame, poses)
        if waiting is not None:
            yield waiting

    def follow_all(self, frames: Sequence[Poses], timestamps: Sequence[float]) -> list[Poses]:
        """Returns the smoothed poses of all frames that belong to a track, see `PoseTracker.track` and `smooth_tracks`.

        Args:
            frames: All poses of each frame with a score of at least `least_score`.
            timestamps: Times of the frames in seconds.
        """
        tracked = [select(poses, poses["track_id"] >= 0) for poses in self.tracker.track(frames, timestamps)]
        return smooth_tracks(tracked, timestamps)
