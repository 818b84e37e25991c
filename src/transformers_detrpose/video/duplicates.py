"""Removal of near-identical poses, of which all but one are the same person found twice."""

from collections.abc import Mapping

import numpy as np
import torch

from ..keypoint_schemas import KeypointSchema
from .poses import Poses, check_range, keypoint_array, pairwise_similarity, pose_areas, select, to_array


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
    labels = to_array(poses["labels"])
    similarity = pairwise_similarity(keypoints, keypoints, pose_areas(keypoints), np.array(schema.sigmas))
    similar = np.minimum(similarity, similarity.T) >= threshold  # in terms of the smaller of the two
    similar &= labels[:, None] == labels
    kept = []
    for index in np.argsort(-to_array(poses["scores"]), kind="stable").tolist():
        if not similar[index, kept].any():
            kept.append(index)
    return select(poses, np.sort(kept))
