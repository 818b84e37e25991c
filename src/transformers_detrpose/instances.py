"""COCO annotations as arrays: their validation, and the rule for which of them are people to train on and to score.

Files, datasets and the image processor all read annotations with `parse_instances`.
"""

import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from .keypoint_schemas import PERSON_TO_BOX_AREA, ClassKeypoints

# Pixels. Larger coordinates are rejected; the square of this one still fits into float32.
LARGEST_COORDINATE = 1_000_000
# Square pixels. Dividing by a smaller area overflows.
SMALLEST_AREA, LARGEST_AREA = 1e-6, LARGEST_COORDINATE**2

_AT_MOST = f"at most {LARGEST_COORDINATE}"
_SHOWN_PROBLEMS = 10


class DataError(ValueError):
    """Invalid annotations or images; the message has one line for each of the first problems."""


class Problems:
    """Collects the problems of annotations, to report them in a single error.

    Args:
        source: name of the file or other source of the annotations; omitted if empty.
    """

    def __init__(self, source: str = ""):
        self.source = source
        self.lines: list[str] = []
        self.count = 0

    def add(self, where: str, what: str, accepted: str, found: Any, remark: str = ""):
        """Adds one problem.

        Args:
            where: the image, annotation or category.
            what: the field, in backticks.
            accepted: valid values of the field.
            found: value of the field.
            remark: further information about `found`.
        """
        self.count += 1
        if self.count <= _SHOWN_PROBLEMS:
            prefix = f"{self.source}: " if self.source else ""
            self.lines.append(f"{prefix}{where}: {what} must be {accepted}, but got {reprlib.repr(found)}{remark}.")

    def raise_any(self):
        """Raises `DataError` if there are any problems."""
        if self.count > _SHOWN_PROBLEMS:
            raise DataError("\n".join([*self.lines, f"... and {self.count - _SHOWN_PROBLEMS} more problems."]))
        if self.count:
            raise DataError("\n".join(self.lines))


@dataclass
class Instances:
    """n annotations of one or more images, in pixels.

    Three rules decide how an annotation is used:

    - `is_target`: training targets have a labeled keypoint and are not crowds. Others are not trained on.
    - `is_counted`: ground truth of the metrics are targets whose `num_keypoints` is not 0. In COCO, which counts
      labeled keypoints, these are all targets; CrowdPose counts only visible ones. The metrics ignore everyone else.
    - Annotations of categories without keypoints are dropped if other categories have keypoints.

    Args:
        names: the name of each annotation in messages, such as "annotation 5 of image 3".
        image_index (`np.ndarray` of shape `(n,)`): int64, index of the image in the dataset.
        category_ids (`np.ndarray` of shape `(n,)`): int64.
        keypoints (`np.ndarray` of shape `(n, K, 3)`): float64, x, y and visibility (0 not labeled, in which case x = y
        = 0; 1 labeled but not visible; 2 visible). boxes (`np.ndarray` of shape `(n, 4)`): float64, x, y, width,
        height; NaN where missing. areas (`np.ndarray` of shape `(n,)`): float64; NaN where missing. is_crowd
        (`np.ndarray` of shape `(n,)`): bool. num_keypoints (`np.ndarray` of shape `(n,)`): int64, as annotated, or else
        the number of labeled keypoints.
    """

    names: np.ndarray
    image_index: np.ndarray
    category_ids: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    num_keypoints: np.ndarray

    def __getitem__(self, index) -> "Instances":
        return Instances(*(getattr(self, column.name)[index] for column in fields(self)))

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def is_labelled(self) -> np.ndarray:
        """`np.ndarray` of shape `(n,)`: whether a keypoint is labeled."""
        return (self.keypoints[..., 2] > 0).any(-1)

    @property
    def is_target(self) -> np.ndarray:
        """`np.ndarray` of shape `(n,)`: whether this is a training target."""
        return self.is_labelled & ~self.is_crowd

    @property
    def is_counted(self) -> np.ndarray:
        """`np.ndarray` of shape `(n,)`: whether this is ground truth of the metrics."""
        return self.is_target & (self.num_keypoints > 0)

    @property
    def has_box(self) -> np.ndarray:
        """`np.ndarray` of shape `(n,)`: whether there is a nonempty bounding box."""
        return (self.boxes[:, 2:] > 0).all(-1)

    def completed(self) -> "Instances":
        """Returns the instances with missing or empty boxes and areas filled in, see `complete`."""
        keypoints, boxes, areas = map(torch.from_numpy, (self.keypoints, self.boxes, self.areas))
        boxes, areas = complete(keypoints[..., :2], keypoints[..., 2] > 0, boxes, areas)
        return replace(self, boxes=boxes.numpy(), areas=areas.numpy())


def complete(
    keypoints: torch.Tensor, labelled: torch.Tensor, boxes: torch.Tensor, areas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills in missing or empty boxes and areas.

    Args:
        keypoints: (n, K, 2), x, y.
        labelled: (n, K) bool.
        boxes: (n, 4), x, y, width, height. Empty boxes and NaN are replaced by the box around the labeled keypoints.
        areas: (n,). Areas of 0 or less and NaN are replaced by 0.53 times the area of the box.

    Returns:
        The boxes (n, 4), unchanged if no keypoint is labeled, and the areas (n,).
    """
    is_replaced = ~(boxes[:, 2:] > 0).all(1) & labelled.any(1)
    if is_replaced.any():
        top_left = keypoints.masked_fill(~labelled[..., None], float("inf")).amin(1)
        bottom_right = keypoints.masked_fill(~labelled[..., None], -float("inf")).amax(1)
        around = torch.cat([top_left, bottom_right - top_left], dim=1)
        boxes = torch.where(is_replaced[:, None], around, boxes)
    return boxes, torch.where(areas > 0, areas, box_areas(boxes))


def box_areas(boxes):
    """Estimates the areas (n,) of people without segmentation from boxes (n, 4), x, y, width, height."""
    return PERSON_TO_BOX_AREA * boxes[:, 2] * boxes[:, 3]


def is_id(value: Any) -> bool:
    """Returns whether a value is a 64-bit integer."""
    # Checking against an abstract class is slow, and there are many ids.
    is_integer = type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
    return is_integer and -(2**63) <= value < 2**63


def parse_instances(
    annotations: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    num_keypoints: int,
    problems: Problems,
    categories: Collection[int] | None = None,
    image_index: Sequence[int] | None = None,
    classes: Mapping[int, ClassKeypoints] | None = None,
) -> Instances:
    """Reads annotations in COCO's format and collects their problems.

    Args:
        annotations: n annotations: `category_id`, and optionally `keypoints` (x, y, visibility of each of K keypoints;
            none are labeled if missing), `bbox` (x, y, width, height), `area`, `iscrowd` and `num_keypoints`; lengths
            in pixels.
        names: the name of each annotation in messages.
        num_keypoints: K.
        problems: collects the problems.
        categories: the valid `category_id`s; any that is at least 0 if not given.
        image_index: index of each annotation's image; 0 if not given.
        classes: the keypoints of each category, `KeypointSchema.classes`, if they have different ones: annotations then
            hold those of their category, and the others are not labeled.

    Returns:
        The instances; those with problems have arbitrary values.
    """
    if classes is None:
        keypoints = _read_keypoints(annotations, names, num_keypoints, problems)
    else:
        keypoints = _read_keypoints_of_classes(annotations, names, num_keypoints, problems, classes)
    labelled = keypoints[..., 2] > 0
    own_counts = _column(annotations, "num_keypoints", names, problems, _is_count, "an integer of at least 0", 0)
    has_count = np.array([annotation.get("num_keypoints") is not None for annotation in annotations], dtype=bool)
    return Instances(
        names=np.array(names, dtype=object),
        image_index=np.array(image_index if image_index is not None else [0] * len(names), dtype=np.int64),
        category_ids=_read_categories(annotations, names, categories, problems),
        keypoints=np.where(labelled[..., None], keypoints, 0.0),
        boxes=_read_boxes(annotations, names, problems),
        areas=_read_areas(annotations, names, problems),
        is_crowd=_column(annotations, "iscrowd", names, problems, _is_flag, "0 or 1", 0).astype(bool),
        num_keypoints=np.where(has_count, own_counts, labelled.sum(-1)),
    )


def _read_categories(annotations, names, categories: Collection[int] | None, problems: Problems) -> np.ndarray:
    if categories is None:
        return _column(annotations, "category_id", names, problems, _is_count, "an integer of at least 0", None)

    def is_category(value: Any) -> bool:
        return is_id(value) and value in categories  # other types may not be hashable

    accepted = f"one of the categories with keypoints, {reprlib.repr(sorted(categories))}"
    return _column(annotations, "category_id", names, problems, is_category, accepted, None)


def _read_keypoints(annotations, names, num_keypoints: int, problems: Problems) -> np.ndarray:
    """Returns keypoints (n, K, 3), zero where missing."""
    count = 3 * num_keypoints
    accepted = f"x, y, visibility for each of {num_keypoints} keypoints ({count} finite numbers, {_AT_MOST})"
    values = [annotation.get("keypoints") for annotation in annotations]
    values = [None if isinstance(value, (list, tuple)) and not value else value for value in values]
    keypoints = _read_numbers(values, ((count,), (num_keypoints, 3)), names, "`keypoints`", accepted, problems)
    keypoints = np.nan_to_num(keypoints).reshape(len(values), num_keypoints, 3)
    visibility = keypoints[..., 2]
    is_wrong = ~np.isin(visibility, (0, 1, 2))
    for index in is_wrong.any(-1).nonzero()[0]:
        found = visibility[index][is_wrong[index]].tolist()
        problems.add(names[index], "visibilities in `keypoints`", "0, 1 or 2", found)
    return keypoints


def _read_keypoints_of_classes(
    annotations, names, num_keypoints: int, problems: Problems, classes: Mapping[int, ClassKeypoints]
) -> np.ndarray:
    """Returns keypoints (n, K, 3), zero where missing and where the category of an annotation lacks them."""
    keypoints = np.zeros((len(annotations), num_keypoints, 3))
    labels = [annotation.get("category_id") for annotation in annotations]
    for label, own in classes.items():
        rows = [row for row, found in enumerate(labels) if is_id(found) and found == label]
        read = _read_keypoints(
            [annotations[row] for row in rows], [names[row] for row in rows], len(own.indices), problems
        )
        keypoints[np.ix_(rows, own.indices)] = read
    return keypoints


def _read_boxes(annotations, names, problems: Problems) -> np.ndarray:
    accepted = f"x, y, width, height (4 finite numbers, {_AT_MOST}, no negative sizes)"
    values = [annotation.get("bbox") for annotation in annotations]
    boxes = _read_numbers(values, ((4,),), names, "`bbox`", accepted, problems)
    for index in (boxes[:, 2:] < 0).any(-1).nonzero()[0]:
        problems.add(names[index], "`bbox`", accepted, values[index])
    return boxes


def _read_areas(annotations, names, problems: Problems) -> np.ndarray:
    """Returns areas (n,), NaN where missing. Areas of 0 or less are accepted, as `completed` replaces them."""
    accepted = f"a finite number of square pixels, at most {LARGEST_AREA:g}"
    values = [None if annotation.get("area") is None else (annotation["area"],) for annotation in annotations]
    areas = _read_numbers(values, ((1,),), names, "`area`", accepted, problems, LARGEST_AREA)[:, 0]
    for index in ((areas > 0) & (areas < SMALLEST_AREA)).nonzero()[0]:
        problems.add(names[index], "`area`", f"0 or at least {SMALLEST_AREA:g} square pixels", float(areas[index]))
    return areas


def _read_numbers(
    values: list,
    shapes: tuple[tuple[int, ...], ...],
    names: Sequence[str],
    what: str,
    accepted: str,
    problems: Problems,
    largest: float = LARGEST_COORDINATE,
) -> np.ndarray:
    """Returns lists of numbers as float64 (n, m), m being the length of the first shape; NaN where missing or
    invalid."""
    rows = np.full((len(values), shapes[0][0]), np.nan)
    is_given = np.array([value is not None for value in values], dtype=bool)
    given = [value for value in values if value is not None]
    rows[is_given] = _as_rows(given, shapes)
    is_wrong = is_given & ~(np.abs(rows) <= largest).all(-1)  # comparisons with NaN are False
    for index in is_wrong.nonzero()[0]:
        problems.add(names[index], what, accepted, *_describe(values[index], largest))
    rows[is_wrong] = np.nan
    return rows


def _as_rows(values: list, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Returns the lists as rows of float64 (n, m), NaN where a list is not numeric or has none of the shapes."""
    length = shapes[0][0]
    try:
        # Usually all values are valid, and a single conversion is fast. Strings must not reach it, as it would parse
        # them.
        is_plain = {length}.issuperset(map(len, values)) and {int, float}.issuperset(
            map(type, chain.from_iterable(values))
        )
        if is_plain:
            return np.array(values, dtype=np.float64).reshape(len(values), length)
    except (TypeError, OverflowError):  # not lists, or integers too large for a float
        pass
    return np.array([_as_row(value, shapes) for value in values]).reshape(len(values), length)


def _as_row(value: Any, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        array = np.empty(0)
    if array.shape not in shapes or array.dtype.kind not in "iuf":
        return np.full(shapes[0], np.nan)
    return array.reshape(-1).astype(np.float64)


def _describe(value: Any, largest: float) -> tuple[Any, str]:
    """Returns the invalid value, and a remark if the value alone does not show the problem."""
    if isinstance(value, tuple):
        return value[0], ""  # an area
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value, ""
    for index, number in enumerate(value):
        if isinstance(number, Real) and not abs(number) <= largest:
            return value, f" ({number} at index {index})"
    return value, f" ({len(value)} values)"


def _column(annotations, field: str, names, problems: Problems, is_accepted, accepted: str, default) -> np.ndarray:
    """Returns an integer field of all annotations (n,), `default` where missing, 0 where invalid."""
    values = [annotation.get(field) for annotation in annotations]
    values = [default if value is None else value for value in values]
    for index, value in enumerate(values):
        if not is_accepted(value):
            problems.add(names[index], f"`{field}`", accepted, value)
            values[index] = 0
    return np.array(values, dtype=np.int64)


def _is_count(value: Any) -> bool:
    return is_id(value) and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, (int, Integral)) and value in (0, 1)
