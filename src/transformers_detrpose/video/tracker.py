"""Identities: the same person has the same number in all frames."""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..keypoint_schemas import KeypointSchema
from .poses import Poses, check_time, keypoint_array, pairwise_similarity, pose_areas, to_array

UNTRACKED = -1


class PoseTracker:
    """Gives the poses of the same person in consecutive frames the same number.

    Args:
        schema: Keypoint schema of the model, or the name of a known one ("coco", "crowdpose").
        new_threshold: Minimum score of a pose that begins a track, from 0 to 1; poses with lower scores only continue
            one.
        min_similarity: Minimum keypoint similarity of a pose and the prediction of a track, from 0 to 1.
        max_gap: Seconds for which an unseen person is remembered.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        schema: KeypointSchema | dict | str,
        new_threshold: float = 0.5,
        min_similarity: float = 0.2,
        max_gap: float = 1.0,
    ):
        self.schema = KeypointSchema.of(schema)
        self.new_threshold, self.min_similarity, self.max_gap = new_threshold, min_similarity, max_gap
        self.sigmas = np.array(self.schema.sigmas)
        self.reset()

    def reset(self):
        """Forgets everybody, before another video."""
        self.next_id, self.time = 0, -np.inf
        self.ids, self.seen = np.empty(0, dtype=np.int64), np.empty(0)
        self.keypoints = np.empty((0, self.schema.num_keypoints, 2))

    def update(self, poses: Mapping[str, torch.Tensor], timestamp: float) -> Poses:
        """Returns the poses of the next frame with their identities.

        Args:
            poses: Poses of one image, as `post_process_keypoint_detection` returns them.
            timestamp: Time of the frame in seconds, not before that of the previous one.

        Returns:
            All poses, in the same order, with `track_id` (n,) int64, from 0. It is -1 for poses that belong to no
            confirmed track.

        Raises:
            ValueError: if the poses do not fit the schema, or the time goes back. Tracks are unchanged then.
        """
        keypoints, scores = keypoint_array(poses, self.schema.num_keypoints), to_array(poses["scores"])
        check_time(timestamp, self.time)
        self.time = timestamp
        self._keep(timestamp - self.seen <= self.max_gap)
        track_ids = np.full(len(keypoints), UNTRACKED, dtype=np.int64)
        finite = np.flatnonzero(np.isfinite(keypoints).all(axis=(1, 2)))
        tracks, matched = self._associate(keypoints[finite])
        matched = finite[matched]
        track_ids[matched] = self.ids[tracks]
        self.keypoints[tracks], self.seen[tracks] = keypoints[matched], timestamp
        new = np.setdiff1d(finite[scores[finite] >= self.new_threshold], matched)
        track_ids[new] = np.arange(self.next_id, self.next_id + len(new))
        self.next_id += len(new)
        self.ids = np.concatenate([self.ids, track_ids[new]])
        self.seen = np.concatenate([self.seen, np.full(len(new), timestamp)])
        self.keypoints = np.concatenate([self.keypoints, keypoints[new]])
        return {**poses, "track_id": torch.from_numpy(track_ids).to(torch.as_tensor(poses["scores"]).device)}

    def _keep(self, mask: np.ndarray):
        self.ids, self.seen, self.keypoints = self.ids[mask], self.seen[mask], self.keypoints[mask]

    def _associate(self, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of tracks and of the poses that continue them."""
        if not len(self.ids) or not len(keypoints):
            return np.empty(0, dtype=int), np.empty(0, dtype=int)
        areas = pose_areas(self.keypoints)[:, None]
        similarity = pairwise_similarity(self.keypoints, keypoints, areas, self.sigmas, looseness=2.0)
        tracks, poses = linear_sum_assignment(similarity, maximize=True)
        accepted = similarity[tracks, poses] >= self.min_similarity
        return tracks[accepted], poses[accepted]
