"""Pictures of predicted poses beside the truth."""

import os

import numpy as np
from PIL import Image

from ..images import load_rgb_image
from ..keypoint_schemas import KeypointSchema
from ..visualization import draw_poses
from .matching import MatchedPoses

_LONGER_SIDE = 480  # pixels
_GAP = 8


def draw_beside_truth(
    image_file: str | os.PathLike, matches: MatchedPoses, image_id: int, schema: KeypointSchema, threshold: float
) -> tuple[Image.Image, int]:
    """Draws the predicted poses on the left and the annotated people, in the colors of their poses, on the right.

    Args:
        image_file: The image.
        matches: The poses and people of all images; crowds are not drawn.
        image_id: Id of the image.
        schema: The keypoint schema.
        threshold: Poses with a lower score are not drawn.

    Returns:
        An RGB image, each half of which is scaled to 480 pixels on its longer side, and the number of poses drawn.
    """
    image = load_rgb_image(image_file)
    scale = _LONGER_SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    people = matches.people
    poses = np.flatnonzero((matches.image_ids == image_id) & (matches.scores >= threshold))
    shown = np.flatnonzero((people.image_ids == image_id) & ~people.is_crowd & (people.visibility > 0).any(axis=1))
    color_of = {person: color for color, person in enumerate(matches.person[poses].tolist())}
    colors = [color_of.get(person, len(poses) + index) for index, person in enumerate(shown.tolist())]
    seen = np.ones((len(poses), schema.num_keypoints))
    predicted = _as_result(matches.keypoints[poses] * scale, seen, matches.labels[poses])
    truth = _as_result(people.keypoints[shown] * scale, people.visibility[shown] > 0, people.labels[shown])
    left = draw_poses(image, predicted, schema)
    right = draw_poses(image, truth, schema, keypoint_threshold=0.5, color_indices=colors)
    both = Image.new("RGB", (2 * image.width + _GAP, image.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (image.width + _GAP, 0))
    return both, len(poses)


def _as_result(keypoints: np.ndarray, is_shown: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns poses (n, K, 2) as `draw_poses` needs them, with the boxes around the keypoints shown (n, K)."""
    hidden = ~is_shown.astype(bool)[..., None]
    low = np.where(hidden, np.inf, keypoints).min(axis=1, initial=np.inf)
    high = np.where(hidden, -np.inf, keypoints).max(axis=1, initial=-np.inf)
    return {
        "scores": np.ones(len(keypoints)),
        "labels": labels,
        "keypoints": keypoints,
        "keypoint_scores": is_shown.astype(float),
        "boxes": np.concatenate([low, high], axis=1),
    }
