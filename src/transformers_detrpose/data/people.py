"""Annotations in COCO format, parsed into dense tensors: who is in which image, and what is wrong with them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ..keypoint_schemas import PERSON_TO_BOX_AREA

# Annotation tools round; a point that is this close to the image lies on its border.
TOLERANCE_PIXELS = 1.0

# What was found, by a short name, to the annotations or images where it was found.
Findings = dict[str, list[str]]


@dataclass
class People:
    """n people with at least one labelled keypoint, of one image or of many; coordinates in pixels of their image.

    Args:
        image_index (`torch.LongTensor` of shape `(n,)`): index of the image in the dataset.
        class_labels (`torch.LongTensor` of shape `(n,)`): category ids.
        keypoints (`torch.FloatTensor` of shape `(n, K, 2)`): x, y, 0 where not labelled.
        visibility (`torch.LongTensor` of shape `(n, K)`): 0 not labelled, 1 hidden, 2 visible.
        area (`torch.FloatTensor` of shape `(n,)`): NaN where the dataset has none, until `fit_to_image`.
        boxes (`torch.FloatTensor` of shape `(n, 4)`): x1, y1, x2, y2.
    """

    image_index: torch.Tensor
    class_labels: torch.Tensor
    keypoints: torch.Tensor
    visibility: torch.Tensor
    area: torch.Tensor
    boxes: torch.Tensor

    def __getitem__(self, index) -> "People":
        return People(*(getattr(self, column.name)[index] for column in fields(self)))

    def __len__(self) -> int:
        return len(self.image_index)


@dataclass
class Annotations:
    """The people of a dataset, sorted by image, with the names of their annotations and what could not be used.

    Args:
        people: all people of the dataset as they are in the file.
        names: one per person, for messages: "annotation 5 of image 3".
        findings: what is wrong with annotations that are not among the people.
        starts (`torch.LongTensor` of shape `(images + 1,)`): first person of each image.
    """

    people: People
    names: list[str]
    findings: Findings
    starts: torch.Tensor

    def of_image(self, index: int) -> People:
        """Returns the people of one image."""
        return self.people[self.starts[index] : self.starts[index + 1]]


@dataclass
class _Rows:
    """Columns of `People` while they are collected."""

    image_index: list[int] = field(default_factory=list)
    class_labels: list[int] = field(default_factory=list)
    keypoints: list[np.ndarray] = field(default_factory=list)
    area: list[float] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def parse_annotations(
    annotations: Iterable[tuple[int, str, Mapping[str, Any]]], num_images: int, num_keypoints: int, labels: set[int]
) -> Annotations:
    """Parses annotations in COCO format.

    Crowds (`iscrowd`) and people without a labelled keypoint are no targets and are left out; nothing else about them
    is looked at.

    Args:
        annotations: index of the image, name for messages and the annotation itself: `keypoints` (x, y, visibility for
            each of K keypoints), `category_id`, and optionally `bbox` (x, y, width, height), `area` and `iscrowd`;
            lengths in pixels.
        num_images: images in the dataset.
        num_keypoints: K.
        labels: the category ids that may appear.
    """
    rows, findings = _Rows(), {}
    for image_index, name, annotation in annotations:
        faults = _parse_person(annotation, num_keypoints, labels, rows)
        if faults is None:
            rows.image_index.append(image_index)
            rows.names.append(name)
        for fault in faults or ():
            findings.setdefault(fault, []).append(name)

    keypoints = _stacked(rows.keypoints, (num_keypoints, 3))
    people = People(
        image_index=torch.tensor(rows.image_index, dtype=torch.int64),
        class_labels=torch.tensor(rows.class_labels, dtype=torch.int64),
        keypoints=keypoints[..., :2].clone(),
        visibility=keypoints[..., 2].long(),
        area=torch.tensor(rows.area, dtype=torch.float32),
        boxes=_stacked(rows.boxes, (4,)),
    )
    order = people.image_index.argsort(stable=True)
    people = people[order]
    starts = torch.searchsorted(people.image_index, torch.arange(num_images + 1))
    return Annotations(people, [rows.names[index] for index in order.tolist()], findings, starts)


def _stacked(arrays: list[np.ndarray], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.array(arrays, dtype=np.float32).reshape(-1, *shape))


def _parse_person(annotation: Mapping[str, Any], num_keypoints: int, labels: set[int], rows: _Rows) -> list[str] | None:
    """Appends a person to the rows; returns `None` then, else the faults that prevent it, none for a non-target."""
    given = annotation.get("keypoints")
    if annotation.get("iscrowd") or given is None or len(given) == 0:
        return []
    keypoints = _numbers(given)
    if keypoints.size != 3 * num_keypoints:
        return ["keypoint_count"]
    keypoints = keypoints.reshape(num_keypoints, 3)
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        return ["visibility"]
    labelled = keypoints[:, 2] > 0
    if not labelled.any():
        return []

    label, area, box = annotation.get("category_id"), annotation.get("area"), annotation.get("bbox")
    box_xywh = np.zeros(4, dtype=np.float32) if box is None else _numbers(box)
    area_given = None if area is None else _numbers([area])
    faults = []
    if not isinstance(label, Integral) or label not in labels:
        faults.append("category")
    numbers = [keypoints[labelled], box_xywh] + ([] if area_given is None else [area_given])
    if box_xywh.size != 4 or not all(values.size and np.isfinite(values).all() for values in numbers):
        faults.append("number")
    if faults:
        return faults

    rows.class_labels.append(int(label))
    rows.keypoints.append(np.where(labelled[:, None], keypoints, np.float32(0)))
    rows.area.append(float("nan") if area_given is None else float(area_given[0]))
    rows.boxes.append(np.concatenate([box_xywh[:2], box_xywh[:2] + box_xywh[2:]]))
    return None


def _numbers(values: Any) -> np.ndarray:
    """Returns values as a flat float32 array, empty if they are no numbers."""
    try:
        return np.asarray(values, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        return np.empty(0, dtype=np.float32)


def fit_to_image(people: People, size_hw: torch.Tensor) -> tuple[People, torch.Tensor, dict[str, torch.Tensor]]:
    """Repairs what does not fit into the image, as the table of `check_dataset` says.

    Args:
        people: n people.
        size_hw: height and width of their images in pixels, (2,) for all or (n, 2).

    Returns:
        The n people with finite areas; a mask (n,) of those that remain people; and for each kind of finding a mask
        (n,) of whom it concerns.
    """
    size_wh = size_hw.flip(-1).float().expand(len(people), 2)
    visibility = hide_outside(people.keypoints, people.visibility, size_wh[:, None])
    labelled = visibility > 0
    keypoints = people.keypoints.clamp(min=0).minimum(size_wh[:, None]) * labelled[..., None]

    corners = people.boxes.unflatten(-1, (2, 2))
    clipped = corners.clamp(min=0).minimum(size_wh[:, None])
    is_empty = (clipped[:, 1] <= clipped[:, 0]).any(-1)
    is_clipped = ((corners - clipped).abs() > TOLERANCE_PIXELS).flatten(1).any(1) & ~is_empty
    around_keypoints = _boxes_around(keypoints, labelled)
    box_corners = torch.where(is_empty[:, None, None], around_keypoints, corners)
    area_of_box = (box_corners[:, 1] - box_corners[:, 0]).prod(-1)
    area = torch.where(people.area > 0, people.area, PERSON_TO_BOX_AREA * area_of_box)

    was_moved_out = (visibility != people.visibility).any(1)
    remains = labelled.any(1) & (area > 0)
    findings = {
        "keypoint_outside": was_moved_out,
        "box_outside": is_clipped,
        "box_empty": is_empty,
        "area_zero": (people.area <= 0) & remains,
        "no_extent": labelled.any(1) & ~remains,
    }
    boxes = torch.where(is_empty[:, None, None], around_keypoints, clipped).flatten(1)
    fitted = People(people.image_index, people.class_labels, keypoints, visibility, area, boxes)
    return fitted, remains, findings


def hide_outside(keypoints: torch.Tensor, visibility: torch.Tensor, size_wh: torch.Tensor) -> torch.Tensor:
    """Returns the visibility with 0 for keypoints more than a pixel outside the image.

    Args:
        keypoints: (..., 2), x, y in pixels.
        visibility: (...), 0, 1 or 2.
        size_wh: width and height in pixels, (2,) or with leading axes to broadcast.
    """
    is_outside = (keypoints < -TOLERANCE_PIXELS) | (keypoints > size_wh + TOLERANCE_PIXELS)
    return visibility.masked_fill(is_outside.any(-1), 0)


def _boxes_around(keypoints: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Returns the top left and bottom right corners (n, 2, 2) of the labelled ones of keypoints (n, K, 2)."""
    infinity = keypoints.new_tensor(float("inf"))
    top_left = torch.where(labelled[..., None], keypoints, infinity).amin(1)
    bottom_right = torch.where(labelled[..., None], keypoints, -infinity).amax(1)
    corners = torch.stack([top_left, bottom_right], dim=1)
    return torch.where(labelled.any(1)[:, None, None], corners, 0.0)
