"""The model's labels, made from dataset samples or COCO annotations."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvF

from .instances import Instances, Problems, is_id, parse_instances
from .keypoint_schemas import ClassKeypoints, KeypointSchema

# Annotation tools round; a point this close to the image is on its border.
TOLERANCE_PIXELS = 1.0


def to_labels(sample: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Converts the people of a sample to labels.

    Keypoints more than a pixel outside the image count as not labeled, and people without any are left out.

    Args:
        sample: `keypoints`, `visibility`, `class_labels`, `area`, `boxes`, `image_id` and `orig_size`, as in the
            samples of `data.PoseDataset`.

    Returns:
        For n people `class_labels` (n,) int64; `keypoints` (n, K, 3), x, y as fractions of the image and visibility (0
        not labeled, in which case x = y = 0; 1 labeled but not visible; 2 visible); `area` (n,), as a fraction of the
        image area; `boxes` (n, 4), center x, center y, width, height as fractions of the image; all float32. Also
        `image_id` (1,) and `orig_size` (2,), height and width of the original image in pixels; both int64.
    """
    height, width = sample["keypoints"].canvas_size
    size_wh = torch.tensor([width, height], dtype=torch.float32)
    points = sample["keypoints"].as_subclass(torch.Tensor)
    visibility = hide_outside(points, sample["visibility"], size_wh)
    keep = (visibility > 0).any(-1)
    fractions = (points / size_wh).clamp(0, 1) * (visibility > 0).unsqueeze(-1)
    boxes = tvF.clamp_bounding_boxes(sample["boxes"])
    boxes = tvF.convert_bounding_box_format(boxes, new_format="CXCYWH").as_subclass(torch.Tensor)
    return {
        "class_labels": sample["class_labels"][keep],
        "keypoints": torch.cat([fractions, visibility.unsqueeze(-1)], dim=-1)[keep],
        "area": sample["area"][keep] / (height * width),
        "boxes": (boxes / size_wh.repeat(2))[keep],
        "image_id": torch.tensor([sample["image_id"]]),
        "orig_size": torch.tensor(sample["orig_size"]),
    }


def hide_outside(keypoints: torch.Tensor, visibility: torch.Tensor, size_wh: torch.Tensor) -> torch.Tensor:
    """Returns the visibility, set to 0 for keypoints more than a pixel outside the image.

    Args:
        keypoints: (..., 2), x, y in pixels.
        visibility: (...), 0, 1 or 2.
        size_wh: width and height in pixels, (2,) or with leading axes for broadcasting.
    """
    is_outside = (keypoints < -TOLERANCE_PIXELS) | (keypoints > size_wh + TOLERANCE_PIXELS)
    return visibility.masked_fill(is_outside.any(-1), 0)


def corners_of(boxes: torch.Tensor) -> torch.Tensor:
    """Converts boxes (n, 4) from x, y, width, height to x1, y1, x2, y2."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def prepare_labels(
    annotations: Mapping | Sequence[Mapping],
    sizes_hw: Sequence[tuple[int, int]],
    schema: KeypointSchema | None = None,
    device: str | torch.device | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Converts the COCO annotations of a batch to labels.

    Args:
        annotations: One dictionary per image, see `prepare_coco_labels`; or one dictionary for a single image.
        sizes_hw: Height and width of each image in pixels, before resizing.
        schema: The keypoint schema; if not given, K is that of the first annotation in the batch.
        device: Device of the tensors.

    Raises:
        ValueError: if an annotation is invalid, or there is not one dictionary per image.
    """
    targets = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(targets) != len(sizes_hw):
        raise ValueError(f"got {len(sizes_hw)} images but {len(targets)} annotations: one per image is needed.")
    for index, target in enumerate(targets):
        _check_target(target, index)
    num_keypoints, classes = _count_keypoints(targets), None
    if schema is not None:
        num_keypoints, classes = schema.num_keypoints, schema.classes
    return [
        prepare_coco_labels(target, size_hw, num_keypoints, device, classes)
        for target, size_hw in zip(targets, sizes_hw, strict=True)
    ]


def prepare_coco_labels(
    target: Mapping[str, Any],
    size_hw: tuple[int, int],
    num_keypoints: int,
    device: str | torch.device | None = None,
    classes: Mapping[int, ClassKeypoints] | None = None,
) -> dict[str, torch.Tensor]:
    """Converts the COCO annotations of one image to labels, without crowds and people without a labeled keypoint.

    Unlike in datasets, for which `check_dataset` reports repairs, nothing is repaired: everyone except crowds needs
    keypoints, and people with a labeled keypoint need a bounding box and, if an area is given, one above 0.

    Args:
        target: `image_id` (an integer) and `annotations`, as for `DETRPoseImageProcessor.preprocess`.
        size_hw: Height and width of the annotated image in pixels.
        num_keypoints: K.
        device: Device of the tensors.
        classes: The keypoints of each category if they differ, see `parse_instances`.

    Returns:
        See `to_labels`.

    Raises:
        ValueError: if an annotation is invalid.
    """
    annotations = target["annotations"]
    names = [f"image {target['image_id']}, annotation {annotation.get('id')}" for annotation in annotations]
    problems = Problems()
    instances = parse_instances(annotations, names, num_keypoints, problems, classes, classes=classes)
    problems.raise_any()
    _require_all_parts(instances, annotations, num_keypoints, problems)
    problems.raise_any()

    people = instances[instances.is_target].completed()
    sample = {**people_in_image(people, size_hw), "image_id": target["image_id"], "orig_size": size_hw}
    return {key: values.to(device) for key, values in to_labels(sample).items()}


def people_in_image(people: Instances, size_hw: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Returns the (completed) people of one image as fields of a sample, see `data.PoseDataset`."""
    corners = corners_of(torch.from_numpy(people.boxes))
    return {
        "keypoints": tv_tensors.KeyPoints(torch.from_numpy(people.keypoints[..., :2]).float(), canvas_size=size_hw),
        "visibility": torch.from_numpy(people.keypoints[..., 2]).long(),
        "class_labels": torch.from_numpy(people.category_ids),
        "area": torch.from_numpy(people.areas).float(),
        "boxes": tv_tensors.BoundingBoxes(corners.float(), format="XYXY", canvas_size=size_hw),
    }


def _require_all_parts(instances: Instances, annotations: Sequence[Mapping], num_keypoints: int, problems: Problems):
    """Collects problems that a dataset would repair: missing keypoints and boxes, and areas of 0."""
    for index, annotation in enumerate(annotations):
        name, area = instances.names[index], instances.areas[index]
        if annotation.get("keypoints") is None and not instances.is_crowd[index]:
            problems.add(name, "`keypoints`", f"x, y, visibility for each of {num_keypoints} keypoints", None)
        elif not instances.is_target[index]:
            continue
        elif annotation.get("bbox") is None:
            problems.add(name, "`bbox`", "x, y, width, height (4 finite numbers)", None)
        elif area <= 0:
            problems.add(name, "`area`", "above 0", annotation["area"])
        elif np.isnan(area) and not instances.has_box[index]:
            problems.add(name, "`bbox`", "of a size above 0 where there is no `area`", annotation["bbox"])


def _check_target(target: Any, index: int):
    """Raises `ValueError` unless the annotations of image number `index` are a valid dictionary."""
    if not isinstance(target, Mapping):
        raise ValueError(f"annotations of image number {index} must be a dictionary, but got {reprlib.repr(target)}.")
    image_id, annotations = target.get("image_id"), target.get("annotations")
    if not is_id(image_id):
        raise ValueError(f"image number {index}: `image_id` must be an integer, but got {image_id!r}.")
    is_list = isinstance(annotations, (list, tuple))
    if not is_list or not all(isinstance(annotation, Mapping) for annotation in annotations):
        raise ValueError(
            f"image {image_id}: `annotations` must be a list of dictionaries, but got {reprlib.repr(annotations)}."
        )


def _count_keypoints(targets: list[Mapping[str, Any]]) -> int:
    """Returns K, at least 1, from the first annotation in a batch that has keypoints; 0 if none has."""
    for target in targets:
        for annotation in target["annotations"]:
            if annotation.get("keypoints") is not None:
                return max(1, np.array(annotation["keypoints"], dtype=object).size // 3)
    return 0
