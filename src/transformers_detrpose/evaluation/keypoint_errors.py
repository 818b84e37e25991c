"""The kinds of errors in keypoints, and what each costs: Ronchi and Perona, "Benchmarking and Error Diagnosis in
Multi-Instance Pose Estimation" (2017)."""

from collections.abc import Mapping

import numpy as np

from ..keypoint_schemas import KeypointSchema
from ..pose_arrays import keypoint_similarity
from .keypoint_metrics import Poses
from .matching import MatchedPoses

GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
NAMES = ("good", "jitter", "inversion", "swap", "miss")
NOT_JUDGED = -1

# Keypoint similarities: people disagree by this much, and a keypoint is near enough to be meant.
_GOOD_SIMILARITY, _NEAR_SIMILARITY = 0.85, 0.5


def classify_keypoints(matches: MatchedPoses, schema: KeypointSchema) -> np.ndarray:
    """Classifies the labeled keypoints of the matched poses.

    By keypoint similarity (KS) with the true keypoint, those from 0.85 are good, and from 0.5 jitter. Others are an
    inversion if their KS with the mirrored keypoint of the same person, such as the other wrist, is at least 0.5; a
    swap if that with the same or the mirrored keypoint of somebody else in the image is; whichever is larger if both
    are; and a miss if none is.

    Args:
        matches: the result of `match_poses`.
        schema: its sigmas and flip pairs are used.

    Returns:
        (n, K) int, `GOOD`, `JITTER`, `INVERSION`, `SWAP` or `MISS`, else `NOT_JUDGED`.
    """
    kinds = np.full(matches.keypoints.shape[:2], NOT_JUDGED)
    people = matches.people
    all_sigmas, mirrored = schema.by_label(matches.labels)[0], np.array(schema.flip_permutation)
    is_labelled = (people.visibility > 0).any(axis=1) & ~people.is_crowd
    neighbours = {id_: np.flatnonzero(is_labelled & (people.image_ids == id_)) for id_ in np.unique(people.image_ids)}
    for pose in np.flatnonzero(matches.is_matched):
        own = matches.person[pose]
        others = neighbours[matches.image_ids[pose]]
        sigmas = np.broadcast_to(all_sigmas, kinds.shape)[pose]
        found = _classify(matches.keypoints[pose], people, own, others[others != own], mirrored, sigmas)
        kinds[pose] = np.where(people.visibility[own] > 0, found, NOT_JUDGED)
    return kinds


def _classify(
    keypoints: np.ndarray, people, own: int, others: np.ndarray, mirrored: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """Classifies the keypoints (K, 2) of the pose of person `own`, with the people `others` in the same image."""

    def similarity(index: np.ndarray, order=slice(None)) -> np.ndarray:
        truth, is_labelled = people.keypoints[index][:, order], people.visibility[index][:, order] > 0
        return keypoint_similarity(keypoints - truth, people.areas[index], sigmas) * is_labelled

    right = similarity(np.array([own]))[0]
    inverted = similarity(np.array([own]), mirrored)[0]
    swapped = np.maximum(similarity(others), similarity(others, mirrored)).max(axis=0, initial=0)
    is_elsewhere = np.maximum(inverted, swapped) >= _NEAR_SIMILARITY
    elsewhere = np.where(is_elsewhere, np.where(inverted >= swapped, INVERSION, SWAP), MISS)
    return np.where(right >= _GOOD_SIMILARITY, GOOD, np.where(right >= _NEAR_SIMILARITY, JITTER, elsewhere))


def correct_keypoints(predictions: Mapping[int, Poses], matches: MatchedPoses, chosen: np.ndarray) -> dict[int, Poses]:
    """Returns the predictions with some keypoints moved to where they should be.

    Args:
        predictions: the predictions of `matches`.
        matches: the result of `match_poses`.
        chosen: (n, K) bool, keypoints of matched poses.
    """
    truth = matches.people.keypoints[matches.person] if len(matches.people) else matches.keypoints
    keypoints = np.where(chosen[..., None], truth, matches.keypoints).astype(np.float32)
    return replace_field(predictions, "keypoints", keypoints)


def replace_field(predictions: Mapping[int, Poses], name: str, values: np.ndarray) -> dict[int, Poses]:
    """Returns the predictions with a field replaced; `values` (n, ...) are in the order of `MatchedPoses`."""
    replaced, start = {}, 0
    for image_id in sorted(predictions):
        end = start + len(predictions[image_id]["scores"])
        replaced[image_id] = {**predictions[image_id], name: values[start:end]}
        start = end
    return replaced
