"""Validation of labels, and their dense form, which denoising and losses use.

A batch of labels becomes `PoseTargets`, padded to the image with the most people, so that neither denoising nor the
losses loop over people.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

# Labels are fractions of the image; anything larger than this is in pixels.
_LARGEST_FRACTION = 10.0
# Marks keypoints without a visibility to predict; the default of `cross_entropy`.
IGNORED = -100
# Keypoint similarity divides by the area; its gradient would be NaN for the smallest floats.
_SMALLEST_AREA = 1e-20


@dataclass
class PoseTargets:
    """People as dense tensors: those of each image (`pad_targets`) or those matched to each query (`at`).

    The leading shape is (B, M) for the people of a batch and (..., B, Q) for queries. A padding entry has no visible
    keypoint, an area of 1 and the label 0, so that it adds nothing to any sum weighted by visibility.

    Args:
        class_labels (`torch.LongTensor` of shape `(...)`): label ids.
        keypoints (`torch.FloatTensor` of shape `(..., K, 2)`): x, y as fractions of the image, 0 where unlabeled.
        visibility (`torch.FloatTensor` of shape `(..., K)`): 1 where labeled, else 0.
        visibility_values (`torch.LongTensor` of shape `(..., K)`): COCO's 0, 1 or 2; `IGNORED` for padding.
        area (`torch.FloatTensor` of shape `(...)`): areas as fractions of the image area.
        is_person (`torch.BoolTensor` of shape `(...)`): True for people with a labeled keypoint, False for padding.
    """

    class_labels: torch.Tensor
    keypoints: torch.Tensor
    visibility: torch.Tensor
    visibility_values: torch.Tensor
    area: torch.Tensor
    is_person: torch.Tensor

    def at(self, matches: torch.Tensor) -> "PoseTargets":
        """Returns the person matched to each query.

        Args:
            matches (`torch.LongTensor` of shape `(..., B, Q)`): index of one of the image's M people, or -1.
        """
        index = matches.clamp(min=0)
        image = torch.arange(index.shape[-2], device=index.device).unsqueeze(-1)
        is_person = (matches >= 0) & self.is_person[image, index]
        return PoseTargets(
            class_labels=self.class_labels[image, index],
            keypoints=self.keypoints[image, index],
            visibility=self.visibility[image, index] * is_person.unsqueeze(-1),
            visibility_values=self.visibility_values[image, index].masked_fill(~is_person.unsqueeze(-1), IGNORED),
            area=self.area[image, index],
            is_person=is_person,
        )


def pad_targets(labels: list[Mapping[str, torch.Tensor]]) -> PoseTargets:
    """Pads the people of each image to M, the largest number in the batch (at least 1).

    Args:
        labels: one dictionary per image with `class_labels` (n,), `keypoints` (n, K, 3), x, y as fractions of the image
            and visibility (0 unlabeled, 1 or 2 labeled), and `area` (n,) as fractions of the image area.

    Returns:
        `PoseTargets` of shape (B, M). People without a labeled keypoint are no targets: `is_person` is False.
    """
    keypoints = _pad([image["keypoints"] for image in labels]).float()
    labelled = keypoints[..., 2] > 0
    is_person = labelled.any(-1)
    return PoseTargets(
        class_labels=_pad([image["class_labels"] for image in labels]),
        keypoints=keypoints[..., :2].masked_fill(~labelled.unsqueeze(-1), 0.0),
        visibility=labelled.float(),
        visibility_values=keypoints[..., 2].long().masked_fill(~is_person.unsqueeze(-1), IGNORED),
        area=_pad([image["area"] for image in labels]).float().masked_fill(~is_person, 1.0),
        is_person=is_person,
    )


def keypoint_sigmas(config, class_labels: torch.Tensor) -> torch.Tensor:
    """Returns the sigmas of the configured skeleton on the device of the labels.

    Args:
        config (`DETRPoseConfig`): provides the schema.
        class_labels (`torch.LongTensor` of shape `(...)`): label ids.

    Returns:
        `torch.FloatTensor` of shape `(K,)` or, if classes have keypoints of their own, `(..., K)`, those of each label.
    """
    schema = config.keypoint_schema
    # A blocking copy would make the GPU wait for the host in every step.
    if schema.classes is None:
        return torch.tensor(schema.sigmas).to(class_labels.device, non_blocking=True)
    sigmas, _ = schema.by_label(range(config.num_labels))
    return torch.tensor(sigmas, dtype=torch.float32).to(class_labels.device, non_blocking=True)[class_labels]


def visibility_targets(targets: PoseTargets, config) -> torch.Tensor:
    """Returns what the visibility head should predict.

    Args:
        targets: people of shape (...).
        config (`DETRPoseConfig`): says whether a visibility of 0 is a class or the lack of a label.

    Returns:
        `torch.LongTensor` of shape `(..., K)`: COCO's values, and `IGNORED` for keypoints without a label, or that the
        person's class lacks.
    """
    values = targets.visibility_values
    if not config.predict_absent_keypoints:
        return values.masked_fill(values == 0, IGNORED)
    _, is_own = config.keypoint_schema.by_label(range(config.num_labels))
    if is_own is None:
        return values
    is_own = torch.from_numpy(is_own).to(values.device, non_blocking=True)[targets.class_labels]
    return values.masked_fill(~is_own, IGNORED)


def _pad(tensors: list[torch.Tensor]) -> torch.Tensor:
    padded = pad_sequence(list(tensors), batch_first=True)
    # If the whole batch is empty, one padding entry spares all later code a special case.
    return padded if padded.shape[1] else padded.new_zeros(padded.shape[0], 1, *padded.shape[2:])


def validate_labels(labels: list[Mapping[str, torch.Tensor]], config, batch_size: int) -> None:
    """Checks that labels are valid for the losses and denoising.

    Shapes and types are checked on the host; values are checked in one pass over the batch, so that the host waits for
    the device once.

    Args:
        labels: one dictionary per image with `class_labels` (n,) int64, `keypoints` (n, K, 3), x, y as fractions of the
            image and visibility 0, 1 or 2, and `area` (n,) as fractions of the image area. Other keys are ignored.
        config (`DETRPoseConfig`): provides the numbers of labels and keypoints.
        batch_size: images in the batch.

    Raises:
        ValueError: if they are invalid; the message names the image and the key, and what was expected and found.
    """
    if not isinstance(labels, (list, tuple)) or len(labels) != batch_size:
        found = f"{len(labels)} of them" if isinstance(labels, (list, tuple)) else f"a {type(labels).__name__}"
        raise ValueError(f"`labels` must be a list of {batch_size} dictionaries, one per image, but got {found}.")
    for index, image in enumerate(labels):
        _check_structure(index, image, config.num_keypoints)
    if any(len(image["class_labels"]) for image in labels):
        _check_values(labels, config.num_labels)


def _check_structure(index: int, image: Mapping[str, torch.Tensor], num_keypoints: int) -> None:
    """Raises `ValueError` unless an image's labels have the right keys, types and shapes."""
    if not isinstance(image, Mapping):
        raise ValueError(f"`labels[{index}]` must be a dictionary, but got a {type(image).__name__}.")
    missing = [key for key in ("class_labels", "keypoints", "area") if key not in image]
    if missing:
        raise ValueError(f"`labels[{index}]` lacks {missing}; it has {sorted(map(str, image))}.")

    def require(key: str, dtype: str, has_dtype, shape: tuple):
        value = image[key]
        if not isinstance(value, torch.Tensor):
            found = f"a {type(value).__name__}"
        elif not has_dtype(value) or tuple(value.shape) != shape:
            found = f"{value.dtype} of shape {tuple(value.shape)}"
        else:
            return
        raise ValueError(f"`labels[{index}]['{key}']` must be a {dtype} tensor of shape {shape}, but got {found}.")

    class_labels = image["class_labels"]
    num_people = class_labels.numel() if isinstance(class_labels, torch.Tensor) else "n"
    require("class_labels", "torch.int64", lambda value: value.dtype == torch.int64, (num_people,))
    require("keypoints", "floating point", torch.Tensor.is_floating_point, (num_people, num_keypoints, 3))
    require("area", "floating point", torch.Tensor.is_floating_point, (num_people,))


def _check_values(labels: list[Mapping[str, torch.Tensor]], num_labels: int) -> None:
    """Raises `ValueError` for the first value out of range, checking the whole batch at once."""
    class_labels, keypoints, area = (
        torch.cat([image[key] for image in labels]) for key in ("class_labels", "keypoints", "area")
    )
    points, visibility = keypoints[..., :2], keypoints[..., 2]
    labelled = (visibility > 0).any(-1)
    # Comparisons with NaN are False, so NaN fails every check.
    is_class = (class_labels >= 0) & (class_labels < num_labels)
    is_fraction = points.abs() <= _LARGEST_FRACTION
    is_visibility = (visibility == 0) | (visibility == 1) | (visibility == 2)
    is_area = (area >= _SMALLEST_AREA) & (area <= _LARGEST_FRACTION) | ~labelled
    checks = (
        ("class_labels", f"class ids from 0 to {num_labels - 1}", class_labels, is_class),
        ("keypoints", "x, y as fractions of the image, not pixels", points, is_fraction),
        ("keypoints", "visibilities 0, 1 or 2", visibility, is_visibility),
        ("area", "areas above 0, as fractions of the image area, not pixels", area, is_area),
    )
    faulty = torch.stack([~passed.reshape(len(passed), -1).all(1) for *_, passed in checks])
    if faulty.any():
        check, person = faulty.nonzero()[0].tolist()
        key, expected, values, passed = checks[check]
        found = values[person][~passed[person]][0].item()
        image, person = _image_of_person(labels, person)
        raise ValueError(f"`labels[{image}]['{key}']` must hold {expected}, but person {person} has {found}.")


def _image_of_person(labels: list[Mapping[str, torch.Tensor]], person: int) -> tuple[int, int]:
    """Converts the index of a person in the batch to that of the image and of the person in that image."""
    image = 0
    while person >= len(labels[image]["class_labels"]):
        person -= len(labels[image]["class_labels"])
        image += 1
    return image, person
