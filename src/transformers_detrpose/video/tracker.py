"""Identities: the same person has the same number in all frames."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..keypoint_schemas import KeypointSchema
from ..pose_arrays import Poses, keypoint_array, own_mean, pairwise_similarity, pose_areas, squared_length, to_array
from .duplicates import find_distinct
from .motion import Motion
from .poses import check_range, check_time, deviation_array, enlargement

UNTRACKED = -1
ACCELERATION = 3.0  # see `Motion.predicted`
LOCALISATION = 1.0  # pixels; standard deviation that even the fall-off of the smallest person has
SAME_PERSON = 0.5  # minimum similarity of a pose and another that is already tracked, for it not to begin a track
# How much a certain prediction is preferred to an uncertain one, such as that of a person not seen for a while: 0 would
# let them take each other's poses, and 1 is the expected keypoint similarity, which lets go of people too easily.
PREFERENCE = 0.25
REACH = 0.7  # sizes of a person within which they are searched for


class PoseTracker:
    """Gives the poses of the same person in consecutive frames the same number.

    A pose continues the track of its class whose predicted keypoints it resembles most: by keypoint similarity, with a
    fall-off that grows with the uncertainty of the prediction and of the pose. So it is strict for a person just seen,
    and looser for small ones and after a gap. Poses with high scores are assigned first, then those with low scores to
    people who are left over.

    Args:
        schema: Keypoint schema of the model, or the name of a known one ("coco", "crowdpose").
        threshold: Minimum score of a pose that begins a track or is assigned first, from 0 to 1. Poses with lower
            scores only continue tracks.
        confirmation: A track is confirmed once the squared scores of its poses in consecutive frames add up to this:
            after three frames of a clearly visible person, and more of one who is not.
        min_similarity: Minimum similarity of a pose and the track that it continues, from 0 to 1.
        max_gap: Seconds for which an unseen person is remembered.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        schema: KeypointSchema | dict | str,
        threshold: float = 0.5,
        confirmation: float = 2.4,
        min_similarity: float = 0.3,
        max_gap: float = 1.0,
    ):
        self.schema = KeypointSchema.of(schema)
        self.threshold = check_range("threshold", threshold, 0, 1)
        self.confirmation = check_range("confirmation", confirmation, 0)
        self.min_similarity = check_range("min_similarity", min_similarity, 0, 1)
        self.max_gap = check_range("max_gap", max_gap, 0)
        self.reset()

    def reset(self):
        """Forgets everybody, before another video."""
        num_keypoints = self.schema.num_keypoints
        self.next_id, self.time, self.image_size = 0, -np.inf, None
        self.motion = Motion.begin(np.empty((0, num_keypoints, 2)), np.empty((0, num_keypoints)))
        self.ids, self.labels = np.empty(0, dtype=np.int64), np.empty(0)
        self.next_serial, self.serials = 0, np.empty(0, dtype=np.int64)  # numbers that unconfirmed tracks have as well
        self.seen, self.evidence = np.empty(0), np.empty(0)  # time when last seen, sum of squared scores

    def update(
        self, poses: Mapping[str, torch.Tensor], timestamp: float, image_size: tuple[int, int] | None = None
    ) -> Poses:
        """Returns the poses of the next frame with their identities.

        Args:
            poses: Poses of one image, as `post_process_keypoint_detection` returns them, with a low threshold, such
                as 0.1, so that people who are hardly visible stay tracked.
            timestamp: Time of the frame in seconds, not before that of the previous one. Everybody is forgotten if it
                jumps ahead by more than `max_gap`.
            image_size: (height, width) of the frame in pixels; needed only if it may change, as in some streams. Then
                the same view is assumed to be shown in another resolution.

        Returns:
            All poses, in the same order, with `track_id` (n,) int64, from 0. It is -1 for poses that belong to no
            confirmed track: those of a person who just appeared, those with a low score, and those that are not finite.

        Raises:
            ValueError: if the poses do not fit the schema, or the time goes back. Tracks are unchanged then.
        """
        row = self._follow(poses, timestamp, image_size)
        track_ids = np.append(self.ids, UNTRACKED)[row]
        return {**poses, "track_id": torch.from_numpy(track_ids).to(torch.as_tensor(poses["scores"]).device)}

    def track(self, frames: Sequence[Mapping[str, torch.Tensor]], timestamps: Sequence[float]) -> list[Poses]:
        """Returns the poses of a whole video with their identities, also those from before a track was confirmed.

        Args:
            frames: Poses of each frame, as for `update`.
            timestamps: Times of the frames in seconds, not descending.

        Returns:
            For each frame what `update` returns, except that confirmed tracks have their `track_id` from their first
            pose on.

        Raises:
            ValueError: if the poses do not fit the schema, or the times descend or are not one per frame.
        """
        self.reset()
        serials, id_of = [], {UNTRACKED: UNTRACKED}
        for poses, timestamp in zip(frames, timestamps, strict=True):
            row = self._follow(poses, timestamp, None)
            serials.append(np.append(self.serials, UNTRACKED)[row])
            id_of |= dict(zip(self.serials.tolist(), self.ids.tolist(), strict=True))
        track_ids = [torch.tensor([id_of[serial] for serial in each.tolist()], dtype=torch.int64) for each in serials]
        return [
            {**poses, "track_id": ids.to(torch.as_tensor(poses["scores"]).device)}
            for poses, ids in zip(frames, track_ids, strict=True)
        ]

    def _follow(
        self, poses: Mapping[str, torch.Tensor], timestamp: float, image_size: tuple[int, int] | None
    ) -> np.ndarray:
        """Updates the tracks, see `update`, and returns the index of the track of each pose, -1 if it has none."""
        keypoints = keypoint_array(poses, self.schema.num_keypoints)
        scores, labels = to_array(poses["scores"]), to_array(poses["labels"])
        check_time(timestamp, self.time)
        elapsed = timestamp - self.time if len(self.ids) else 0.0
        if image_size != self.image_size:
            self.motion = self.motion.scaled(enlargement(self.image_size, image_size))
        self.time, self.image_size = timestamp, image_size
        self._keep(timestamp - self.seen <= self.max_gap)
        self.motion = self.motion.predicted(elapsed, ACCELERATION)

        usable = np.isfinite(keypoints).all(axis=(1, 2)) & np.isfinite(scores)
        noise = squared_length(deviation_array(poses, keypoints)) / 2
        match = np.full(len(keypoints), UNTRACKED)  # index of the track of each pose
        for chosen in (usable & (scores >= self.threshold), usable & (scores < self.threshold)):
            free = np.ones(len(self.ids), dtype=bool)
            free[match[match >= 0]] = False
            free, chosen = np.flatnonzero(free), np.flatnonzero(chosen)
            tracks, matched = self._assign(free, keypoints[chosen], noise[chosen], labels[chosen])
            match[chosen[matched]] = free[tracks]
        match = self._continue(match, keypoints, noise, scores, timestamp)
        begun = usable & (match < 0) & (scores >= self.threshold)
        begun = self._begin(begun, match >= 0, keypoints, noise, scores, labels)
        match[begun] = len(self.ids) - len(begun) + np.arange(len(begun))
        return match

    def _assign(self, tracks: np.ndarray, keypoints: np.ndarray, noise: np.ndarray, labels: np.ndarray):
        """Returns indices into `tracks`, and of the poses assigned to them."""
        similarity = np.zeros((len(tracks), len(keypoints)))
        if not similarity.size:
            return np.empty(0, dtype=int), np.empty(0, dtype=int)
        motion = self.motion[tracks]
        # Few pairs are near each other; comparing the others would take most of the time.
        offsets = motion.position.mean(axis=1)[:, None] - keypoints.mean(axis=1)
        reach = REACH * motion.size + 2 * np.sqrt(motion.variance[..., 0].mean(axis=1))
        near = (squared_length(offsets) < np.square(reach)[:, None]) & (self.labels[tracks][:, None] == labels)
        track, pose = near.nonzero()
        sigmas, is_own = self.schema.by_label(self.labels[tracks])
        falloff = np.square(motion.size[:, None] * (2 * sigmas)) + LOCALISATION**2
        variance = falloff + motion.variance[..., 0]
        total = variance[track] + noise[pose]
        squared = np.zeros_like(total)
        for axis in (0, 1):  # several times as fast as both at once
            squared += np.square(motion.position[..., axis][track] - keypoints[..., axis][pose])
        own_of_pair = None if is_own is None else is_own[track]
        likely = own_mean(np.exp(-0.5 * squared / total), own_of_pair)
        preferred = likely * own_mean((falloff / variance) ** PREFERENCE, is_own)[track]
        similarity[track, pose] = np.where(likely >= self.min_similarity, preferred, 0)
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        accepted = similarity[rows, columns] > 0
        return rows[accepted], columns[accepted]

    def _continue(
        self, match: np.ndarray, keypoints: np.ndarray, noise: np.ndarray, scores: np.ndarray, timestamp: float
    ) -> np.ndarray:
        """Continues tracks with the poses matched to them, drops unconfirmed others, and returns the new indices."""
        poses = np.flatnonzero(match >= 0)
        tracks = match[poses]
        self.motion[tracks] = self.motion[tracks].corrected(keypoints[poses], noise[poses])
        self.seen[tracks] = timestamp
        self.evidence[tracks] += np.square(scores[poses])
        new = tracks[(self.ids[tracks] < 0) & (self.evidence[tracks] >= self.confirmation)]
        self.ids[new] = np.arange(self.next_id, self.next_id + len(new))
        self.next_id += len(new)
        kept = (self.ids >= 0) | (self.seen == timestamp)
        self._keep(kept)
        match[poses] = np.cumsum(kept)[tracks] - 1
        return match

    def _begin(self, chosen: np.ndarray, tracked: np.ndarray, keypoints, noise, scores, labels) -> np.ndarray:
        """Begins tracks with some of the poses, except those that are the same person as a tracked or a better one.

        Returns:
            The indices of these poses; their tracks are the last ones.
        """
        chosen = np.flatnonzero(chosen)
        if not len(chosen):
            return chosen
        areas, own = pose_areas(keypoints[chosen]), self.schema.by_label(labels[chosen])
        known = pairwise_similarity(keypoints[chosen], keypoints[tracked], areas, *own)
        known *= labels[chosen][:, None] == labels[tracked]
        chosen = chosen[known.max(axis=1, initial=0) < SAME_PERSON]
        if not len(chosen):
            return chosen
        chosen = chosen[find_distinct(keypoints[chosen], scores[chosen], labels[chosen], self.schema, SAME_PERSON)]
        self.motion = self.motion.joined(Motion.begin(keypoints[chosen], noise[chosen]))
        self.ids = np.concatenate([self.ids, np.full(len(chosen), UNTRACKED)])
        self.serials = np.concatenate([self.serials, self.next_serial + np.arange(len(chosen))])
        self.next_serial += len(chosen)
        self.labels = np.concatenate([self.labels, labels[chosen]])
        self.seen = np.concatenate([self.seen, np.full(len(chosen), self.time)])
        self.evidence = np.concatenate([self.evidence, np.square(scores[chosen])])
        return chosen

    def _keep(self, mask: np.ndarray):
        """Drops the other tracks."""
        if mask.all():
            return
        self.motion = self.motion[mask]
        self.ids, self.serials, self.labels = self.ids[mask], self.serials[mask], self.labels[mask]
        self.seen, self.evidence = self.seen[mask], self.evidence[mask]
