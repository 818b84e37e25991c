"""Labels: what the model takes as people, made of COCO annotations."""

import reprlib
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from .keypoint_schemas import PERSON_TO_BOX_AREA, KeypointSchema


def prepare_labels(
    annotations: Mapping | Sequence[Mapping],
    sizes_hw: Sequence[tuple[int, int]],
    schema: KeypointSchema | None = None,
    device: str | torch.device | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Turns the COCO annotations of a batch into labels.

    Args:
        annotations: One dictionary per image, see `prepare_coco_labels`; or one dictionary for a single image.
        sizes_hw: Height and width of each image in pixels, before it is resized.
        schema: The keypoints; without it K is that of the first annotation of the batch.
        device: Where the tensors shall be.

    Raises:
        ValueError: if an annotation is malformed, or there is not one dictionary per image.
    """
    targets = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(targets) != len(sizes_hw):
        raise ValueError(f"got {len(sizes_hw)} images but {len(targets)} annotations: one per image is needed.")
    for index, target in enumerate(targets):
        _check_target(target, index)
    num_keypoints = _count_keypoints(targets) if schema is None else schema.num_keypoints
    return [
        prepare_coco_labels(target, size_hw, num_keypoints, device)
        for target, size_hw in zip(targets, sizes_hw, strict=True)
    ]


def prepare_coco_labels(
    target: Mapping[str, Any],
    size_hw: tuple[int, int],
    num_keypoints: int,
    device: str | torch.device | None = None,
) -> dict[str, torch.Tensor]:
    """Turns the COCO annotations of one image into labels; crowds and people without a labelled keypoint are left out.

    Args:
        target: `image_id` (an integer) and `annotations`, as for `DETRPoseImageProcessor.preprocess`.
        size_hw: height and width of the image that the annotations were made on, in pixels.
        num_keypoints: K.
        device: where the tensors shall be.

    Returns:
        For n people, n >= 0:

        - `class_labels` (n,) int64, the `category_id`.
        - `keypoints` (n, K, 3) float32, x, y as fractions of the image and visibility (0 not labelled, then x = y = 0;
          1 hidden; 2 visible).
        - `area` (n,) float32, fraction of the image's area.
        - `boxes` (n, 4) float32, center x, center y, width, height as fractions.
        - `image_id` (1,) int64.
        - `orig_size` (2,) int64, height and width in pixels.

    Raises:
        ValueError: if an annotation is malformed.
    """
    height, width = size_hw
    image_id = target["image_id"]
    people = [
        _prepare_person(annotation, f"image {image_id}, annotation {annotation.get('id')}", num_keypoints)
        for annotation in target["annotations"]
        if not annotation.get("iscrowd")
    ]
    people = [person for person in people if person is not None]
    class_labels, keypoints, areas, boxes = zip(*people, strict=True) if people else ([], [], [], [])

    keypoints = np.array(keypoints, dtype=np.float32).reshape(len(people), num_keypoints, 3)
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    boxes[:, :2] += boxes[:, 2:] / 2
    labels = {
        "class_labels": np.array(class_labels, dtype=np.int64),
        "keypoints": keypoints / np.float32([width, height, 1]),
        "area": np.array(areas, dtype=np.float32) / np.float32(width * height),
        "boxes": boxes / np.float32([width, height, width, height]),
        "image_id": np.array([image_id], dtype=np.int64),
        "orig_size": np.array([height, width], dtype=np.int64),
    }
    return {key: torch.from_numpy(values).to(device) for key, values in labels.items()}


def _prepare_person(annotation: Mapping[str, Any], where: str, num_keypoints: int):
    """Returns category, keypoints (K, 3), area and box (x, y, width, height) in pixels; None without a keypoint."""
    keypoints = _numbers(
        annotation, "keypoints", 3 * num_keypoints, f"x, y, visibility for each of {num_keypoints} keypoints", where
    ).reshape(-1, 3)
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        found = reprlib.repr(keypoints[:, 2].tolist())
        raise ValueError(f"{where}: visibilities in `keypoints` must be 0, 1 or 2, but got {found}.")
    keypoints = np.where(keypoints[:, 2:] > 0, keypoints, np.float32(0))
    if not keypoints[:, 2].any():
        return None

    category = annotation.get("category_id")
    if not isinstance(category, Integral) or category < 0:
        raise ValueError(f"{where}: `category_id` must be an integer of at least 0, but got {category!r}.")
    box = _numbers(annotation, "bbox", 4, "x, y, width, height", where)
    if annotation.get("area") is None:
        area = PERSON_TO_BOX_AREA * box[2] * box[3]
    else:
        area = _numbers(annotation, "area", 1, "the area in pixels", where)[0]
    if not (area > 0 and (box[2:] >= 0).all()):
        raise ValueError(f"{where}: the person must cover some area, but got area {area:g} and `bbox` {box.tolist()}.")
    return category, keypoints, area, box


def _numbers(annotation: Mapping[str, Any], key: str, count: int, meaning: str, where: str) -> np.ndarray:
    """Returns an entry of an annotation as float32 (count,), or raises `ValueError`."""
    found = annotation.get(key)
    try:
        values = np.asarray(found, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        values = np.empty(0, dtype=np.float32)
    if values.size != count or not np.isfinite(values).all():
        length = f" ({len(found)} values)" if isinstance(found, Sequence) else ""
        raise ValueError(
            f"{where}: `{key}` must be {meaning} ({count} finite numbers), but got {reprlib.repr(found)}{length}."
        )
    return values


def _check_target(target: Any, index: int):
    """Raises `ValueError` unless the annotations of image number `index` have the right form."""
    if not isinstance(target, Mapping):
        raise ValueError(f"annotations of image number {index} must be a dictionary, but got {reprlib.repr(target)}.")
    image_id, annotations = target.get("image_id"), target.get("annotations")
    if not isinstance(image_id, Integral):
        raise ValueError(f"image number {index}: `image_id` must be an integer, but got {image_id!r}.")
    is_list = isinstance(annotations, (list, tuple))
    if not is_list or not all(isinstance(annotation, Mapping) for annotation in annotations):
        raise ValueError(
            f"image {image_id}: `annotations` must be a list of dictionaries, but got {reprlib.repr(annotations)}."
        )


def _count_keypoints(targets: list[Mapping[str, Any]]) -> int:
    """Returns K according to the first annotation of a batch that has keypoints; 0 if none has."""
    lengths = (np.size(a["keypoints"]) for t in targets for a in t["annotations"] if a.get("keypoints") is not None)
    return next(lengths, 0) // 3
