"""The people used for training as dense tensors, grouped by image and fitted to it."""

from dataclasses import dataclass, fields

import numpy as np
import torch

from ..instances import Instances, complete
from ..labels import TOLERANCE_PIXELS, corners_of, hide_outside


@dataclass
class People:
    """n people with at least one labeled keypoint, in one or several images; coordinates in pixels of their image.

    Args:
        image_index (`torch.LongTensor` of shape `(n,)`): index of the image in the dataset.
        class_labels (`torch.LongTensor` of shape `(n,)`): category ids.
        keypoints (`torch.FloatTensor` of shape `(n, K, 2)`): x, y, 0 where not labeled.
        visibility (`torch.LongTensor` of shape `(n, K)`): 0 not labeled, 1 hidden, 2 visible.
        area (`torch.FloatTensor` of shape `(n,)`): NaN where the dataset has none, until `fit_to_image`.
        boxes (`torch.FloatTensor` of shape `(n, 4)`): x1, y1, x2, y2; likewise.
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
class PeopleOfImages:
    """The people of a dataset, sorted by image.

    Args:
        people: all people used for training.
        names: one per person, for messages: "annotation 5 of image 3".
        starts (`torch.LongTensor` of shape `(images + 1,)`): index of the first person of each image.
    """

    people: People
    names: list[str]
    starts: torch.Tensor

    def of_image(self, index: int) -> People:
        """Returns the people of one image."""
        return self.people[self.starts[index] : self.starts[index + 1]]


def group_by_image(instances: Instances, num_images: int) -> PeopleOfImages:
    """Selects the people used for training and sorts them by image.

    Args:
        instances: annotations of all images.
        num_images: number of images in the dataset.
    """
    targets = instances[instances.is_target]
    targets = targets[np.argsort(targets.image_index, kind="stable")]
    people = People(
        image_index=torch.from_numpy(targets.image_index),
        class_labels=torch.from_numpy(targets.category_ids),
        keypoints=torch.from_numpy(targets.keypoints[..., :2]).float(),
        visibility=torch.from_numpy(targets.keypoints[..., 2]).long(),
        area=torch.from_numpy(targets.areas).float(),
        boxes=corners_of(torch.from_numpy(targets.boxes)).float(),
    )
    starts = torch.searchsorted(people.image_index, torch.arange(num_images + 1))
    return PeopleOfImages(people, targets.names.tolist(), starts)


def fit_to_image(people: People, size_hw: torch.Tensor) -> tuple[People, torch.Tensor, dict[str, torch.Tensor]]:
    """Repairs what does not fit into the image, as listed in the table of `check_dataset`.

    Args:
        people: n people.
        size_hw: height and width of their images in pixels, (2,) for all or (n, 2).

    Returns:
        The n people, with boxes inside the image and finite areas; a mask (n,) of those to keep; and for each kind of
        finding a mask (n,) of the people concerned.
    """
    size_wh = size_hw.flip(-1).float().expand(len(people), 2)
    visibility = hide_outside(people.keypoints, people.visibility, size_wh[:, None])
    labelled = visibility > 0
    keypoints = people.keypoints.clamp(min=0).minimum(size_wh[:, None]) * labelled[..., None]

    limits = size_wh.repeat(1, 2)
    clipped = people.boxes.clamp(min=0).minimum(limits)
    is_empty = ~(clipped[:, 2:] > clipped[:, :2]).all(-1)  # also true for missing boxes, which are NaN
    is_clipped = ((people.boxes - clipped).abs() > TOLERANCE_PIXELS).any(1) & ~is_empty
    boxes = torch.cat([people.boxes[:, :2], people.boxes[:, 2:] - people.boxes[:, :2]], dim=1)
    boxes, area = complete(keypoints, labelled, boxes.masked_fill(is_empty[:, None], 0), people.area)
    boxes = torch.where(is_empty[:, None], corners_of(boxes), clipped)

    remains = labelled.any(1) & (area > 0)
    findings = {
        "keypoint_outside": (visibility != people.visibility).any(1),
        "box_outside": is_clipped,
        "box_empty": is_empty,
        "area_zero": (people.area <= 0) & remains,
        "no_extent": labelled.any(1) & ~remains,
    }
    return People(people.image_index, people.class_labels, keypoints, visibility, area, boxes), remains, findings
