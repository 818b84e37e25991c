"""The poses of all images in one array, each with the person that it shows."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..pose_arrays import keypoint_similarity
from .keypoint_metrics import KeypointMetric, Poses

# Below the least OKS of average precision, to judge poses that are wrong but show somebody; Ronchi and Perona's value.
MATCHING_OKS = 0.1
ANY_AREA = (0.0, 1e10)  # square pixels; "all" in pycocotools


@dataclass(frozen=True)
class People:
    """The p annotated people of all images.

    Args:
        image_ids (`np.ndarray` of shape `(p,)`): id of the image.
        labels (`np.ndarray` of shape `(p,)`): category ids.
        keypoints (`np.ndarray` of shape `(p, K, 2)`): x, y in pixels.
        visibility (`np.ndarray` of shape `(p, K)`): 0 not labeled, 1 labeled but not visible, 2 visible.
        areas (`np.ndarray` of shape `(p,)`): areas for the OKS in square pixels.
        boxes (`np.ndarray` of shape `(p, 4)`): x, y, width, height in pixels.
        is_crowd (`np.ndarray` of shape `(p,)`): whether this is a group of people.
        is_counted (`np.ndarray` of shape `(p,)`): whether the metric counts this person.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    is_crowd: np.ndarray
    is_counted: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class MatchedPoses:
    """The n poses of all images, in the order of image ids and, in each image, of the metric.

    Args:
        image_ids (`np.ndarray` of shape `(n,)`): id of the image.
        labels (`np.ndarray` of shape `(n,)`): category ids.
        scores (`np.ndarray` of shape `(n,)`): scores of the poses.
        keypoints (`np.ndarray` of shape `(n, K, 2)`): x, y in pixels.
        keypoint_scores (`np.ndarray` of shape `(n, K)`): or `None`.
        keypoint_std (`np.ndarray` of shape `(n, K, 2)`): standard deviations in pixels, or `None`.
        person (`np.ndarray` of shape `(n,)`): index of the person in `people`, -1 if the pose has none.
        best_similarity (`np.ndarray` of shape `(n,)`): the largest OKS with anybody in the image, taken or not.
        ideal_scores (`np.ndarray` of shape `(n,)`): the OKS of each pose if poses and people are paired for the largest
            sum, 0 for poses that are left over.
        people (`People`): the people in the images.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    keypoints: np.ndarray
    keypoint_scores: np.ndarray | None
    keypoint_std: np.ndarray | None
    person: np.ndarray
    best_similarity: np.ndarray
    ideal_scores: np.ndarray
    people: People

    @property
    def is_matched(self) -> np.ndarray:
        """`np.ndarray` of shape `(n,)`: whether the pose has a person whom the metric counts."""
        return np.append(self.people.is_counted, False)[self.person]

    @property
    def is_wrong(self) -> np.ndarray:
        """`np.ndarray` of shape `(n,)`: whether the pose has no person. Poses of people whom the metric ignores are
        neither matched nor wrong."""
        return self.person < 0

    @property
    def is_background(self) -> np.ndarray:
        """`np.ndarray` of shape `(n,)`: whether the pose resembles nobody; other wrong poses are duplicates."""
        return self.is_wrong & (self.best_similarity < MATCHING_OKS)


def match_poses(metric: KeypointMetric, predictions: Mapping[int, Poses]) -> MatchedPoses:
    """Matches poses with people as pycocotools does, at an OKS of at least 0.1.

    Poses choose in the order of their scores. Each takes the person with the highest OKS who is still free.

    Args:
        metric: its ground truth and areas are used.
        predictions: the result of `metric.gather`.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        evaluator = metric.make_evaluator(predictions, library=(COCO, COCOeval))
        evaluator.params.iouThrs = np.array([MATCHING_OKS])
        evaluator.params.maxDets = [metric.max_poses]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [ANY_AREA], ["all"]
        evaluator.evaluate()
    image_ids, fields = _concatenate(predictions, metric.keypoint_schema.num_keypoints)
    person, best_similarity, ideal_scores = np.full(len(image_ids), -1), *np.zeros((2, len(image_ids)))
    for result in filter(None, evaluator.evalImgs):  # `None` for images without people and poses
        # Poses and people have ids from 1; a match with 0 is none.
        poses = np.array(result["dtIds"], dtype=int) - 1
        person[poses] = result["dtMatches"][0].astype(int) - 1
        similarity = evaluator.ious[result["image_id"], result["category_id"]]
        if len(similarity):  # an empty list without poses or people
            best_similarity[poses] = similarity.max(axis=1)
            rows, columns = linear_sum_assignment(similarity, maximize=True)
            ideal_scores[poses[rows]] = similarity[rows, columns]
    people = _list_people(metric, predictions)
    return MatchedPoses(
        image_ids,
        **fields,
        person=person,
        best_similarity=best_similarity,
        ideal_scores=ideal_scores,
        people=people,
    )


def matched_similarity(matches: MatchedPoses, sigmas) -> tuple[np.ndarray, np.ndarray]:
    """Returns the similarity (n, K) of each pose's keypoints, and where it is known (n, K).

    It is known for the labeled keypoints of matched poses. The sigmas are (K,) or those of each pose (n, K).
    """
    similarity = np.zeros(matches.keypoints.shape[:2])
    known = np.zeros(similarity.shape, dtype=bool)
    people, index = matches.people, matches.person[matches.is_matched]
    errors = matched_errors(matches)[matches.is_matched]
    sigmas = np.broadcast_to(sigmas, similarity.shape)[matches.is_matched]
    similarity[matches.is_matched] = keypoint_similarity(errors, people.areas[index], sigmas)
    known[matches.is_matched] = people.visibility[index] > 0
    return np.where(known, similarity, 0.0), known


def matched_errors(matches: MatchedPoses) -> np.ndarray:
    """Returns dx, dy (n, K, 2) in pixels from the labeled to the predicted keypoints; 0 for poses not matched."""
    index = matches.person[matches.is_matched]
    errors = np.zeros(matches.keypoints.shape)
    errors[matches.is_matched] = matches.keypoints[matches.is_matched] - matches.people.keypoints[index]
    return errors


def pose_similarity(matches: MatchedPoses, sigmas) -> np.ndarray:
    """Returns the OKS (n,) of each pose with its person; 0 for poses that are not matched."""
    similarity, known = matched_similarity(matches, sigmas)
    return similarity.sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def _concatenate(predictions: Mapping[int, Poses], num_keypoints: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the image ids and the fields of all poses; `None` for a field that some images lack."""
    poses = [predictions[image_id] for image_id in sorted(predictions)]
    image_ids = np.repeat(np.array(sorted(predictions), dtype=np.int64), [len(found["scores"]) for found in poses])
    shapes = {
        "labels": (),
        "scores": (),
        "keypoints": (num_keypoints, 2),
        "keypoint_scores": (num_keypoints,),
        "keypoint_std": (num_keypoints, 2),
    }
    columns = {}
    for name, shape in shapes.items():
        is_complete = all(name in found for found in poses)
        parts = [np.zeros((0, *shape)), *(found[name] for found in poses)] if is_complete else None
        columns[name] = None if parts is None else np.concatenate(parts).astype(np.float64)
    columns["labels"] = columns["labels"].astype(np.int64)
    return image_ids, columns


def _list_people(metric: KeypointMetric, predictions: Mapping[int, Poses]) -> People:
    """Returns the ground truth of the metric; people in other images are not counted."""
    people, num_keypoints = metric.people, metric.keypoint_schema.num_keypoints
    triples = np.array([person["keypoints"] for person in people], dtype=float).reshape(-1, num_keypoints, 3)
    image_ids = np.array([person["image_id"] for person in people], dtype=np.int64)
    labels = np.array([person["category_id"] for person in people], dtype=np.int64)
    is_crowd = np.array([person["iscrowd"] for person in people], dtype=bool)
    has_keypoints = np.array([person["num_keypoints"] > 0 for person in people], dtype=bool)
    return People(
        image_ids,
        labels,
        triples[..., :2],
        triples[..., 2],
        np.array([person["area"] for person in people], dtype=float),
        np.array([person["bbox"] for person in people], dtype=float).reshape(-1, 4),
        is_crowd,
        has_keypoints & ~is_crowd & np.isin(image_ids, list(predictions)),
    )
