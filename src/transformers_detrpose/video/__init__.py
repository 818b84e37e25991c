"""Poses over time: identities, smoothing, and the removal of duplicates."""

from .duplicates import remove_duplicates
from .offline import smooth_tracks
from .smoothing import PoseSmoother
from .tracker import PoseTracker

__all__ = ["PoseSmoother", "PoseTracker", "remove_duplicates", "smooth_tracks"]
