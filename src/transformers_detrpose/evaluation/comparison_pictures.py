"""Pictures of predicted poses beside the truth."""

import os

import numpy as np
from PIL import Image

from ..images import load_rgb_image
from ..keypoint_schemas import KeypointSchema
from ..visualization import draw_poses
from .keypoint_metrics import Poses
from .matching import People

_LONGER_SIDE = 480  # pixels
_GAP = 8


def draw_beside_truth(
    image_file: str | os.PathLike,
    poses: Poses,
    people: People,
    image_id: int,
    schema: KeypointSchema,
    threshold: float,
) -> Image.Image:
    """Draws the predicted poses on the left and the annotated people on the right.

    Args:
        image_file: The image.
        poses: Predictions for this image, x, y in pixels.
        people: The people in all images; crowds are not drawn.
        image_id: Id of the image.
        schema: The keypoint schema.
        threshold: Poses with a lower score are not drawn.

    Returns:
        An RGB image. Each half is scaled to 480 pixels on its longer side.
    """
    image = load_rgb_image(image_file)
    scale = _LONGER_SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    shown = poses["scores"] >= threshold
    is_here = (people.image_ids == image_id) & ~people.is_crowd & (people.visibility > 0).any(axis=1)
    predicted = _as_result(poses["keypoints"][shown] * scale, np.ones(poses["keypoints"][shown].shape[:2]))
    truth = _as_result(people.keypoints[is_here] * scale, people.visibility[is_here] > 0)
    halves = [draw_poses(image, result, schema, keypoint_threshold=0.5) for result in (predicted, truth)]
    both = Image.new("RGB", (2 * image.width + _GAP, image.height), "white")
    both.paste(halves[0], (0, 0))
    both.paste(halves[1], (image.width + _GAP, 0))
    return both


def _as_result(keypoints: np.ndarray, is_shown: np.ndarray) -> dict[str, np.ndarray]:
    """Returns poses (n, K, 2) as `draw_poses` needs them, with the boxes around the keypoints shown (n, K)."""
    hidden = ~is_shown.astype(bool)[..., None]
    low = np.where(hidden, np.inf, keypoints).min(axis=1, initial=np.inf)
    high = np.where(hidden, -np.inf, keypoints).max(axis=1, initial=-np.inf)
    return {
        "scores": np.ones(len(keypoints)),
        "labels": np.zeros(len(keypoints), dtype=int),
        "keypoints": keypoints,
        "keypoint_scores": is_shown.astype(float),
        "boxes": np.concatenate([low, high], axis=1),
    }
