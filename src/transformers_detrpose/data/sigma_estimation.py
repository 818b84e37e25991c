"""Estimates the sigmas of keypoints from images that were annotated twice.

COCO defines σ² = E[d² / s²] over images that several people annotated, where s² is the area of a person, and d is, as
in the keypoint similarity exp(-d² / (2 s² (2σ)²)), the distance between two answers: there one of them is the ground
truth and the other the prediction; here both are annotations. Neither is the truth, and neither is it in a metric. So d
is taken between the two annotations, as it is. If each of them deviates from the truth by τ s in x and in y, their
difference has twice the variance in each of two coordinates, E[d²] = 4 τ² s², and σ = 2τ. Someone who annotates as well
as the authors of the ground truth then has a mean similarity of 8/9, if deviations are normal: with d² / (σ s)²
exponential, E[exp(-d² / (8 σ² s²))] = 1 / (1 + 1/8).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..instances import SMALLEST_AREA, DataError, Instances
from ..keypoint_schemas import KeypointSchema
from ..pose_arrays import keypoint_similarity, own_mean, squared_length
from .annotations import CocoAnnotations

# Two people count as one if their keypoints have at least this mean similarity with this sigma for all of them: a
# distance of 0.6 roots of the area, several times that of careless annotations, so that nothing is cut off.
MATCHING_SIGMA, LEAST_SIMILARITY = 0.25, 0.5


@dataclass(frozen=True)
class SigmaEstimates:
    """The sigmas of K keypoints.

    Args:
        sigmas: (K,), roots of the mean of d² / s², see the module; NaN for keypoints without any pair.
        medians: (K,), the same from the median, ln 2 · σ² for normal deviations. Smaller ones than `sigmas` mean that
            there are gross errors, such as left and right swapped.
        counts: (K,), number of distances, which for a keypoint with a left or right partner are those of both.
        num_pairs: number of people who are in both files.
        num_alone: number of people who are in the first file or in the second, but not in both.
    """

    sigmas: np.ndarray
    medians: np.ndarray
    counts: np.ndarray
    num_pairs: int
    num_alone: tuple[int, int]

    @property
    def errors(self) -> np.ndarray:
        """`np.ndarray` of shape `(K,)`: standard errors of `sigmas`, σ / (2 √n) for normal deviations."""
        return self.sigmas / (2 * np.sqrt(np.maximum(self.counts, 1)))


def estimate_sigmas(
    first: CocoAnnotations, second: CocoAnnotations, schema: KeypointSchema, label: int | None = None
) -> SigmaEstimates:
    """Estimates the sigma of each keypoint from two annotations of the same images.

    Images correspond if they have the same `file_name`, or `id` if they have none, and classes if they have the same
    name. In each image, people of a class are assigned to each other such that their mean keypoint similarity is
    highest; the area is the mean of both.
    Left and right keypoints share a sigma, as in COCO.

    Args:
        first: annotations by one person.
        second: annotations of the same images by another, or by the same one at another time.
        schema: the keypoints of both; for `label`, if it is given.
        label: the class whose keypoints are estimated, if classes have different ones; all classes by default.

    Raises:
        DataError: a `ValueError`, if the annotations have no image in common.
    """
    indices = list(range(schema.num_keypoints) if label is None else first.schema.of_class(label).indices)
    label_of = {name: label for label, name in first.categories.items()}
    people = [_people_by_image(annotations, label_of, indices, label) for annotations in (first, second)]
    shared = [name for name in people[0] if name in people[1]]
    if not shared:
        raise DataError(f"{first.source} and {second.source} have no image in common: their file names differ.")
    squares, num_pairs, num_people = [], 0, np.zeros(2, dtype=int)
    for name in shared:
        both = [by_image[name] for by_image in people]
        num_people += [len(each) for each in both]
        for pair in _pairs(*both):
            squares.append(_relative_squares(*pair))
            num_pairs += 1
    squares = np.array(squares).reshape(num_pairs, len(indices))
    # Where one of a pair is not labeled there is NaN.
    squares = np.concatenate([squares, squares[:, schema.flip_permutation]])
    is_double = np.array(schema.flip_permutation) == np.arange(len(indices))
    squares[num_pairs:, is_double] = np.nan
    columns = [column[np.isfinite(column)] for column in squares.T]
    means, medians = (np.array([reduce(x) if len(x) else np.nan for x in columns]) for reduce in (np.mean, np.median))
    counts = np.array([len(column) for column in columns])
    alone = tuple((num_people - num_pairs).tolist())
    return SigmaEstimates(np.sqrt(means), np.sqrt(medians / np.log(2)), counts, num_pairs, alone)


def _people_by_image(
    annotations: CocoAnnotations, label_of: dict[str, int], indices: list[int], label: int | None
) -> dict[str | int, Instances]:
    """Returns the people with labeled keypoints of each image, by its name, with labels for the names of classes."""
    if annotations.instances is None:
        raise DataError(f"{annotations.source}: has no `annotations`.")
    labels = [label_of.get(annotations.categories[index], -1) for index in annotations.instances.category_ids.tolist()]
    people = replace(annotations.instances, category_ids=np.array(labels, dtype=np.int64))
    people = people[people.is_target if label is None else people.is_target & (people.category_ids == label)]
    people = people.completed()
    people = people[people.areas >= SMALLEST_AREA]
    people.keypoints = people.keypoints[:, indices]
    order = np.argsort(people.image_index, kind="stable")
    ends = np.searchsorted(people.image_index[order], np.arange(len(annotations.images) + 1))
    return {
        image.get("file_name") or image["id"]: people[order[start:end]]
        for image, start, end in zip(annotations.images, ends[:-1], ends[1:], strict=True)
    }


def _pairs(first: Instances, second: Instances) -> Iterator[tuple[Instances, Instances]]:
    """Yields the people, as single instances, who are in both annotations of an image."""
    both = (first.keypoints[:, None, :, 2] > 0) & (second.keypoints[None, :, :, 2] > 0)
    errors = first.keypoints[:, None, :, :2] - second.keypoints[None, :, :, :2]
    areas = (first.areas[:, None] + second.areas[None]) / 2
    similarity = keypoint_similarity(errors, areas, np.full(both.shape[-1], MATCHING_SIGMA))
    similarity = np.where(both.any(-1), own_mean(similarity, both | ~both.any(-1, keepdims=True)), 0)
    similarity[first.category_ids[:, None] != second.category_ids[None]] = 0
    for row, column in zip(*linear_sum_assignment(similarity, maximize=True), strict=True):
        if similarity[row, column] >= LEAST_SIMILARITY:
            yield first[row : row + 1], second[column : column + 1]


def _relative_squares(first: Instances, second: Instances) -> np.ndarray:
    """Returns d² / s² of each keypoint (K,) of a person; NaN where it is not labeled in both annotations."""
    squares = squared_length(first.keypoints[0, :, :2] - second.keypoints[0, :, :2])
    is_labeled = (first.keypoints[0, :, 2] > 0) & (second.keypoints[0, :, 2] > 0)
    return np.where(is_labeled, squares, np.nan) / ((first.areas[0] + second.areas[0]) / 2)
