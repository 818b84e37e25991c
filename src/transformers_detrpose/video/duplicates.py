"""Removal of near-identical poses, of which all but one are the same person found twice."""

from collections.abc import Mapping

import numpy as np
import torch

from ..keypoint_schemas import KeypointSchema
from ..pose_arrays import Poses, keypoint_array, pairwise_similarity, pose_areas, select, to_array
from .poses import check_range


def remove_duplicates(
    poses: Mapping[str, torch.Tensor], schema: KeypointSchema | dict | str, threshold: float = 0.9
) -> Poses:
    """Removes poses that are very similar to one of the same class with a higher score.

    Args:
        poses: Poses of one image, as `post_process_keypoint_detection` returns them.
        schema: Keypoint schema of the model, or the name of a known one ("coco", "crowdpose").
        threshold: Minimum keypoint similarity of duplicates, from 0 to 1.

    Returns:
        The remaining poses, in the same order.

    Raises:
        ValueError: if the poses do not fit the schema, or the threshold is not from 0 to 1.
    """
    schema = KeypointSchema.of(schema)
    check_range("threshold", threshold, 0, 1)
    keypoints = keypoint_array(poses, schema.num_keypoints)
    if len(keypoints) < 2:
        return dict(poses)
    labels, scores = to_array(poses["labels"]), to_array(poses["scores"])
    return select(poses, find_distinct(keypoints, scores, labels, schema, threshold))


def find_distinct(
    keypoints: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    schema: KeypointSchema,
    threshold: float,
    views: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the indices, ascending, of poses that are not similar to one of the same class with a higher score.

    Args:
        keypoints: (n, K, 2), x, y in pixels.
        scores: (n,).
        labels: (n,).
        schema: Keypoint schema of the model; the keypoints of a pose's class are compared.
        threshold: Minimum keypoint similarity of similar poses.
        views: (n,), in which view of the scene each pose was found; those of one view are never similar.
    """
    similarity = pairwise_similarity(keypoints, keypoints, pose_areas(keypoints), *schema.by_label(labels))
    similar = np.minimum(similarity, similarity.T) >= threshold  # in terms of the smaller of the two
    similar &= labels[:, None] == labels
    if views is not None:
        similar &= views[:, None] != views
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if not similar[index, kept].any():
            kept.append(index)
    return np.sort(np.array(kept, dtype=int))
