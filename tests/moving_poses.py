"""Poses of people who move in straight lines."""

import numpy as np
import torch

from transformers_detrpose.keypoint_schemas import COCO_PERSON

HEIGHT = 100.0  # pixels
# Nose to ankles of a standing person, x and y relative to the middle, in heights.
STANDING = np.array([
    (0, -0.45), (0.02, -0.47), (-0.02, -0.47), (0.05, -0.46), (-0.05, -0.46), (0.1, -0.32), (-0.1, -0.32),
    (0.13, -0.17), (-0.13, -0.17), (0.14, -0.02), (-0.14, -0.02), (0.06, 0), (-0.06, 0), (0.07, 0.23), (-0.07, 0.23),
    (0.08, 0.45), (-0.08, 0.45),
])  # fmt: skip


def poses_at(centers, scores=None, labels=None, std=1.0, keypoints=None):
    """The result of `post_process_keypoint_detection` for people at centers (n, 2) in pixels, or with keypoints."""
    if keypoints is None:
        keypoints = HEIGHT * STANDING + np.asarray(centers, dtype=float).reshape(-1, 1, 2)
    keypoints = torch.tensor(np.asarray(keypoints)).float()
    count = len(keypoints)
    scores = torch.full((count,), 0.9) if scores is None else torch.tensor(scores)
    return {
        "scores": scores,
        "labels": torch.zeros(count, dtype=torch.int64) if labels is None else torch.tensor(labels),
        "keypoints": keypoints,
        "keypoint_scores": scores[:, None].expand(-1, COCO_PERSON.num_keypoints),
        "keypoint_std": torch.full_like(keypoints, std),
        "boxes": torch.cat([keypoints.amin(dim=1), keypoints.amax(dim=1)], dim=-1),
    }
