"""Draws the poses of a video, with the numbers and trails of people who are followed."""

import numpy as np
import supervision as sv

from ..pose_arrays import Poses
from ..visualization import PALETTE_ON_RGB
from .models import Predictor

TRAIL_SECONDS = 2.0


class VideoDrawer:
    """Draws the frames of one video in order.

    Args:
        predictor: The model.
        fps: Frames per second.
    """

    def __init__(self, predictor: Predictor, fps: float):
        self.predictor = predictor
        self.trails = sv.TraceAnnotator(
            color=PALETTE_ON_RGB,
            position=sv.Position.BOTTOM_CENTER,
            trace_length=max(2, round(TRAIL_SECONDS * fps)),
            color_lookup=sv.ColorLookup.TRACK,
        )

    def __call__(self, frame, poses: Poses) -> np.ndarray:
        """Returns the pixels of a frame, RGB (height, width, 3), with its poses drawn."""
        pixels = frame.pixels
        if "track_id" in poses:
            pixels = self._draw_trails(pixels, poses)
        return self.predictor.draw(pixels, poses)

    def _draw_trails(self, pixels: np.ndarray, poses: Poses) -> np.ndarray:
        """Draws where the lower edges of the boxes, the feet of most people, were."""
        detections = sv.Detections(
            xyxy=poses["boxes"].numpy().reshape(-1, 4), tracker_id=poses["track_id"].numpy().astype(int)
        )
        return self.trails.annotate(pixels.copy(), detections)
