"""How well identities are kept, and how smooth and how late tracks are.

Poses are compared by keypoint similarity. HOTA, IDF1, MOTA and identity switches are computed by the package
`trackers`, which follows TrackEval.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..keypoint_schemas import KeypointSchema
from ..pose_arrays import (
    SMALLEST_SIDE,
    keypoint_array,
    keypoint_similarity,
    pairwise_similarity,
    pose_areas,
    to_array,
)

MATCHED = 0.5  # minimum keypoint similarity of a pose and the person it is


class People(Protocol):
    """The n people in a frame of a video, such as `synthetic.scenes.FrameTruth`.

    `track_ids` (n,) int64 are the same for a person in all frames, `keypoints` (n, K, 2) are x, y in pixels, and
    `visible` (n, K) bool says which of them to compare.
    """

    track_ids: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray


class TrackingMetric:
    """Collects the tracks of one or more videos, and compares them with the truth.

    Args:
        schema: Keypoint schema of the model, or the name of a known one ("coco", "crowdpose"); its sigmas are used for
            the keypoint similarity.

    Raises:
        ImportError: if the package `trackers` is not installed.
    """

    def __init__(self, schema: KeypointSchema | dict | str):
        try:
            import trackers.eval
        except ImportError as error:
            raise ImportError(f'tracking metrics need `pip install "transformers-detrpose[dev]"`: {error}.') from error
        self._library = trackers.eval
        self.schema = KeypointSchema.of(schema)
        self.videos: list[tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]] = []

    def update(self, truth: Sequence[People], found: Sequence[Mapping[str, Any]]):
        """Adds a video.

        Args:
            truth: The people in each frame.
            found: The poses in each frame with `track_id`, as `PoseTracker.update` returns them. Poses that belong to
                no track are ignored.

        Raises:
            ValueError: if there are not as many frames, or poses do not fit the schema.
        """
        true_ids, found_ids, similarities = [], [], []
        for people, poses in zip(truth, found, strict=True):
            keypoints = keypoint_array(poses, self.schema.num_keypoints)
            track_ids = np.asarray(poses["track_id"], dtype=np.int64)
            is_tracked = track_ids >= 0
            true_ids.append(people.track_ids)
            found_ids.append(track_ids[is_tracked])
            similarities.append(similarity_to_truth(people, keypoints[is_tracked], np.array(self.schema.sigmas)))
        self.videos.append((true_ids, found_ids, similarities))

    def compute(self) -> dict[str, float]:
        """Compares the tracks with the truth.

        Returns:
            `HOTA`, `AssA` (its part for identities), `IDF1` and `MOTA`, from 0 to 1 (MOTA may be negative), `IDSW`, the
            number of identity switches, and `false_tracks`, the number of tracks most of whose poses are no person.

        Raises:
            ValueError: if there are no videos.
        """
        if not self.videos:
            raise ValueError("there are no videos to score: pass them to `update` first.")
        library = self._library
        hota = library.aggregate_hota_metrics([library.compute_hota_metrics(*video) for video in self.videos])
        clear = library.aggregate_clear_metrics(
            [library.compute_clear_metrics(*video, threshold=MATCHED) for video in self.videos]
        )
        identity = library.aggregate_identity_metrics(
            [library.compute_identity_metrics(*video, threshold=MATCHED) for video in self.videos]
        )
        return {
            "HOTA": float(hota["HOTA"]),
            "AssA": float(hota["AssA"]),
            "IDF1": float(identity["IDF1"]),
            "MOTA": float(clear["MOTA"]),
            "IDSW": int(clear["IDSW"]),
            "false_tracks": sum(_count_false_tracks(ids, similarities) for _, ids, similarities in self.videos),
        }


def similarity_to_truth(people: People, keypoints: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Returns the keypoint similarity of people and poses, in the visible keypoints of the people.

    Args:
        people: n people.
        keypoints: (m, K, 2), x, y in pixels.
        sigmas: (K,), fall-off of each keypoint.

    Returns:
        (n, m), from 0 to 1.
    """
    return pairwise_similarity(people.keypoints, keypoints, pose_areas(people.keypoints), sigmas, people.visible)


def _count_false_tracks(track_ids: list[np.ndarray], similarities: list[np.ndarray]) -> int:
    """Returns the number of tracks most of whose poses are similar to nobody."""
    seen, matched = {}, {}
    for ids, similarity in zip(track_ids, similarities, strict=True):
        is_person = similarity.max(axis=0, initial=0) >= MATCHED
        for track_id, is_matched in zip(ids.tolist(), is_person.tolist(), strict=True):
            seen[track_id] = seen.get(track_id, 0) + 1
            matched[track_id] = matched.get(track_id, 0) + is_matched
    return sum(matched[track_id] < 0.5 * count for track_id, count in seen.items())


def measure_smoothness(
    truth: Sequence[People], found: Sequence[Mapping[str, Any]], schema: KeypointSchema | dict | str
) -> dict[str, float]:
    """Measures how much tracks tremble, how late they are, and how accurate.

    Args:
        truth: The people in each frame of a video at a constant frame rate.
        found: The poses in each frame with `track_id`.
        schema: Keypoint schema of the model, or the name of a known one ("coco", "crowdpose").

    Returns:
        Means over visible keypoints of people who are found by the same track in three frames in a row: `jitter`, the
        length of the difference between the accelerations of the track and of the truth, in heights of the person per
        frame²; `lag`, by how many frames the track is late; and `KS`, the keypoint similarity.
    """
    sigmas = np.array(KeypointSchema.of(schema).sigmas)
    matches = [_match(people, poses, sigmas) for people, poses in zip(truth, found, strict=True)]
    jitter, late, moved, similarities = [], 0.0, 0.0, []
    for frames in zip(matches, matches[1:], matches[2:], strict=False):
        for key in frames[0].keys() & frames[1].keys() & frames[2].keys():
            true, errors, visible = (np.stack(values) for values in zip(*(frame[key] for frame in frames), strict=True))
            visible = visible.all(axis=0)
            height = max(np.ptp(true[1, :, 1]), SMALLEST_SIDE)
            acceleration = errors[0] - 2 * errors[1] + errors[2]
            jitter += (np.linalg.norm(acceleration, axis=-1)[visible] / height).tolist()
            # The lag is the factor of the velocity that explains the errors best.
            velocity = 0.5 * (true[2] - true[0])[visible] / height
            late -= (velocity * errors[1][visible] / height).sum()
            moved += np.square(velocity).sum()
            similarity = keypoint_similarity(errors[1], pose_areas(true[1:2])[0], sigmas)
            similarities += similarity[visible].tolist()
    if not jitter:
        raise ValueError("nobody is found by the same track in three frames in a row.")
    return {"jitter": float(np.mean(jitter)), "lag": float(late / moved), "KS": float(np.mean(similarities))}


def _match(
    people: People, poses: Mapping[str, Any], sigmas: np.ndarray
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns true keypoints (K, 2), errors (K, 2) and visibility (K,) by (person, track)."""
    keypoints, track_ids = to_array(poses["keypoints"]), np.asarray(poses["track_id"])
    similarity = similarity_to_truth(people, keypoints, sigmas) * (track_ids >= 0)
    pairs = zip(*linear_sum_assignment(similarity, maximize=True), strict=True)
    return {
        (int(people.track_ids[i]), int(track_ids[j])): (
            people.keypoints[i],
            keypoints[j] - people.keypoints[i],
            people.visible[i],
        )
        for i, j in pairs
        if similarity[i, j] >= MATCHED
    }
