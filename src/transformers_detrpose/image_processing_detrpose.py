"""The image processor: prepares images and COCO annotations, and post-processes outputs to poses."""

import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils_fast import BaseImageProcessorFast
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)

from .configuration_ecvit import IMAGE_MEAN, IMAGE_STD, is_ecvit
from .field_checks import require_field
from .images import convert_to_rgb, load_rgb_image, resize_with_pillow

# For `trust_remote_code`, transformers 4 copies only files that this file itself imports.
from .instances import DataError  # noqa: F401
from .keypoint_confidence import expected_keypoint_similarity, scale_deviations
from .keypoint_schemas import DEFAULT_SIGMA, KeypointSchema
from .labels import prepare_labels

# Minimum side of a pose's box, whose area scales the keypoint scores: one pixel, or a thousandth of the image if
# coordinates are fractions. Without it, a pose with coinciding keypoints would have zero scale.
MINIMUM_SIDE_PIXELS = 1.0
MINIMUM_SIDE_FRACTION = 1e-3

_BILINEAR = (PILImageResampling.BILINEAR, tvF.InterpolationMode.BILINEAR)


class DETRPoseImageProcessor(BaseImageProcessorFast):
    """Prepares images and COCO annotations for DETRPose, and turns its outputs into poses.

    By default an image becomes RGB, is resized to 640x640 without keeping its aspect ratio and divided by 255. Resizing
    uint8 images on the CPU gives exactly the pixels of Pillow's bilinear filter for any type of input; other filters,
    floating-point images and other devices use torchvision (which differs by one gray level in places).

    Images are `PIL.Image` objects, arrays, tensors, paths, URLs or base64 strings, one or a list. They are converted as
    follows:

    - Transparency is dropped, not composited, as `transformers.image_utils.load_image` does.
    - 16-bit images (Pillow's modes "I;16" and "I", which older Pillow versions use for 16-bit PNGs; uint16 arrays and
      tensors) are scaled to 8 bit.
    - The EXIF orientation of paths, URLs and base64 strings is applied. That of a `PIL.Image` is not; call
      `PIL.ImageOps.exif_transpose` first if it came from a camera (the pipeline does).
    - The channel dimension of an array is looked for first, then last. A (height, width, channels) array of 1, 3 or 4
      rows therefore needs `input_data_format="channels_last"`.

    Args:
        keypoint_schema (`KeypointSchema`, `dict` or `str`, *optional*):
            Skeleton of the model, saved with the processor: its sigmas scale the keypoint scores, and its number of
            keypoints K is checked. Without it, every sigma is `DEFAULT_SIGMA`, and K is taken from the first annotation
            of a batch (0 in a batch without annotations), so it is required for training.
        do_scale_deviations (`bool`, defaults to `True`): Scale the standard deviations of each pose to agree with its
            score, see `scale_deviations`. Off for calibrated models, whose standard deviations are right as they are.
        do_resize (`bool`, defaults to `True`): Resize to `size`.
        size (`dict[str, int]`, defaults to `{"height": 640, "width": 640}`): Size after resizing, in pixels.
        resample (`PILImageResampling`, defaults to bilinear): Filter for resizing.
        do_rescale (`bool`, defaults to `True`): Multiply by `rescale_factor`.
        rescale_factor (`float`, defaults to 1/255): Factor for rescaling.
        do_normalize (`bool`, defaults to `False`): Subtract `image_mean` and divide by `image_std`, both of which are
            then required. On for ECPose, see `for_model`.
        do_convert_rgb (`bool`, defaults to `True`): Convert to RGB.
        kwargs: further arguments of transformers' torchvision image processors.

    Example:

    ```python
    >>> from transformers_detrpose import DETRPoseImageProcessor

    >>> processor = DETRPoseImageProcessor(keypoint_schema="coco")
    >>> inputs = processor(images=image, return_tensors="pt")
    >>> outputs = model(**inputs)
    >>> poses = processor.post_process_keypoint_detection(outputs, target_sizes=[(image.height, image.width)])[0]
    ```
    """

    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    size = {"height": 640, "width": 640}
    do_resize = True
    do_rescale = True
    do_normalize = False
    do_convert_rgb = True

    def __init__(
        self,
        keypoint_schema: KeypointSchema | dict | str | None = None,
        do_scale_deviations: bool = True,
        **kwargs,
    ):
        try:
            super().__init__(**kwargs)
        except (LookupError, TypeError, AttributeError) as error:  # for example, an invalid `size`
            raise ValueError(f"settings of an image processor must be numbers, names and sizes ({error}).") from error
        self.keypoint_schema = keypoint_schema
        self.do_scale_deviations = do_scale_deviations
        self._check_settings()

    @classmethod
    def for_model(cls, config: Any, **settings: Any) -> "DETRPoseImageProcessor":
        """Returns the image processor of a new model: with its skeleton and, for ECPose, normalization.

        Args:
            config: the `DETRPoseConfig` of the model.
            settings: settings to override.
        """
        if is_ecvit(config.backbone_config):
            settings = {"do_normalize": True, "image_mean": IMAGE_MEAN, "image_std": IMAGE_STD, **settings}
        return cls(**{"keypoint_schema": config.keypoint_schema, **settings})

    def _check_settings(self):
        """Raises `ValueError` for the first invalid setting, for example of a preprocessor_config.json."""
        require = partial(require_field, self)

        def is_number(value: Any) -> bool:
            return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

        for field in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_scale_deviations"):
            require(field, getattr(self, field) in (True, False, None), "True or False")
        lengths = [value for value in dict(self.size or {}).values() if value is not None]
        is_size = all(is_number(length) and length >= 1 and length == int(length) for length in lengths)
        require("size", is_size, "whole numbers of pixels, at least 1")
        factor = self.rescale_factor
        require("rescale_factor", is_number(factor) and factor > 0, "a number above 0")
        for field in ("image_mean", "image_std"):
            values = getattr(self, field)
            values = values if isinstance(values, (list, tuple)) else [] if values is None else [values]
            require(field, all(map(is_number, values)), "numbers, one for each channel")
            is_complete = len(values) in (1, 3) or not self.do_normalize
            require(field, is_complete, "one or three numbers if `do_normalize` is True")
            require(field, field == "image_mean" or all(value > 0 for value in values), "numbers above 0")

    @property
    def keypoint_schema(self) -> KeypointSchema | None:
        """`KeypointSchema`, *optional*: the skeleton of the model. May be set to a dictionary or known name, too."""
        return self._keypoint_schema

    @keypoint_schema.setter
    def keypoint_schema(self, schema: KeypointSchema | dict | str | None):
        self._keypoint_schema = None if schema is None else KeypointSchema.of(schema)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a dictionary of JSON types."""
        fields = super().to_dict()
        fields.pop("_keypoint_schema", None)
        if self.keypoint_schema is not None:
            fields["keypoint_schema"] = self.keypoint_schema.to_dict()
        return fields

    def preprocess(
        self, images: ImageInput, annotations: Mapping | Sequence[Mapping] | None = None, **kwargs
    ) -> BatchFeature:
        """Prepares one image or several, and the people in them, for the model.

        Args:
            images: One image or a list; see the class for what is accepted.
            annotations: One dictionary per image with `image_id` (an integer) and `annotations`, a list of COCO
                annotations: `keypoints` (x, y, visibility for each of K keypoints), `category_id`, `bbox` (x, y,
                width, height), optionally `area` (0.53 times the area of `bbox` if missing) and `iscrowd`; lengths in
                pixels. Crowds and people without a labeled keypoint are left out; keypoints more than a pixel outside
                the image count as not labeled.
            kwargs: `return_tensors="pt"` and any setting of the class, for this call only.

        Returns:
            `BatchFeature` with `pixel_values` of shape (batch, 3, height, width) and, with annotations, `labels`: per
            image a dictionary as `labels.to_labels` returns it.

        Raises:
            ValueError: if an image cannot be used or an annotation is malformed; the message names the image, the
                annotation, the key, its value and what is accepted.
        """
        return super().preprocess(images, annotations, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, annotations=None, *, do_convert_rgb=None, input_data_format=None, device=None, **kwargs
    ) -> BatchFeature:
        if annotations is not None and (kwargs.get("do_center_crop") or kwargs.get("do_pad")):
            raise ValueError("annotations do not follow `do_center_crop` and `do_pad`: switch them off.")
        tensors = []
        for index, image in enumerate(self._prepare_images_structure(images)):
            with _naming_image(index):
                tensors.append(image_to_tensor(image, do_convert_rgb, input_data_format, device))
        images = tensors
        features = self._preprocess(images, **kwargs)
        if annotations is not None:
            sizes_hw = [tuple(image.shape[-2:]) for image in images]
            features["labels"] = prepare_labels(annotations, sizes_hw, self.keypoint_schema, images[0].device)
        return features

    def fetch_images(self, images):
        """Opens the paths, URLs and base64 strings among the images as upright RGB; returns others unchanged."""
        if isinstance(images, (list, tuple)):
            fetched = []
            for index, image in enumerate(images):
                with _naming_image(index):
                    fetched.append(self.fetch_images(image))
            return fetched
        if isinstance(images, (str, os.PathLike)):
            return load_rgb_image(images)
        return super().fetch_images(images)

    def resize(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        """Resizes images of one size; with Pillow where that gives the pixels of `PIL.Image.resize`.

        Args:
            image: (..., height, width).
            size: `height` and `width` in pixels, or any other form that transformers accepts.
            kwargs: the filter, as `resample` (transformers 5) or `interpolation` (transformers 4).

        Returns:
            Tensor of the same dtype, (..., new height, new width).
        """
        resample = kwargs.get("resample", kwargs.get("interpolation"))
        is_plain = resample in _BILINEAR and bool(size.height and size.width)
        if is_plain and image.dtype == torch.uint8 and image.device.type == "cpu":
            return resize_with_pillow(image, (size.height, size.width))
        return super().resize(image=image, size=size, **kwargs)

    def post_process_keypoint_detection(
        self,
        outputs,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Turns the outputs of the model into poses.

        For each image, as many of the best (query, label) pairs as there are queries are selected, and those above the
        threshold are kept. A query may thus appear with two labels.

        Args:
            outputs: `DETRPoseForPoseEstimationOutput`, or anything with `logits` (batch, queries, labels),
                `pred_keypoints` (batch, queries, K, 2) as x, y fractions and, optionally, `pred_keypoint_std` (batch,
                queries, K, 2), standard deviations in x and y as fractions, and `pred_visibility` (batch, queries, K,
                3), logits of visibility.
            threshold: Only poses with a score above this are returned; from 0 to 1.
            target_sizes: (height, width) of each image in pixels, as a list or a tensor (batch, 2). Without them,
                coordinates are fractions of the image.

        Returns:
            Per image a dictionary of tensors on the outputs' device, float32 unless said otherwise, best pose first:

            - `scores` (n,): probability of the label.
            - `labels` (n,), int64.
            - `keypoints` (n, K, 2): x, y in pixels. They may lie outside the image. If classes have different
              keypoints, those that the class of a pose lacks are in the middle of its box, with a score and standard
              deviations of 0.
            - `keypoint_scores` (n, K): the expected keypoint similarity of each keypoint, see
              `expected_keypoint_similarity`; without `pred_keypoint_std`, the score of the pose.
            - `keypoint_std` (n, K, 2): standard deviations in x and y in pixels; only with `pred_keypoint_std`.
            - `keypoint_visibility` (n, K), int64: the most probable of 0 absent, 1 occluded and 2 visible, COCO's
              values; 0 for keypoints that the class lacks. Only with `pred_visibility`.
            - `boxes` (n, 4): x1, y1, x2, y2 in pixels, around the keypoints that the class has.

        Raises:
            ValueError: if a shape, the threshold or the number of target sizes is invalid, or the outputs are not
                finite.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must lie between 0 and 1, but got {threshold}.")
        tensors = _output_tensors(outputs)
        batch_size, device = len(tensors["logits"]), tensors["logits"].device
        if target_sizes is None:
            sizes, minimum_side = torch.ones(batch_size, 2, device=device), MINIMUM_SIDE_FRACTION
        else:
            sizes, minimum_side = _size_tensor(target_sizes, batch_size, device), MINIMUM_SIDE_PIXELS
        sigmas, is_own = self._tables(tensors)

        poses = select_poses(tensors, sizes, is_own)
        keep = poses["scores"] > threshold
        image, rank = keep.nonzero(as_tuple=True)
        kept = {name: values[image, rank] for name, values in poses.items()}
        kept = score_keypoints(kept, sigmas, minimum_side, self.do_scale_deviations, is_own)
        # A sum is finite only if everything in it is.
        if not math.isfinite(poses["scores"].sum() + kept["keypoints"].sum()):
            raise ValueError("`outputs` must be finite, but the model returned NaN or infinite values.")
        counts = keep.sum(dim=1).tolist()
        per_image = zip(*(values.split(counts) for values in kept.values()), strict=True)
        return [dict(zip(kept, values, strict=True)) for values in per_image]

    def post_process_pose_estimation(
        self,
        outputs,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """Turns the outputs of the model into poses, one dictionary per pose as ViTPose's image processor does.

        The poses of [`post_process_keypoint_detection`], in the format that `supervision.KeyPoints.from_transformers`
        reads. If classes have different keypoints, a pose has only those of its class, and `from_transformers` reads
        the poses of one class at a time.

        Args:
            outputs: See `post_process_keypoint_detection`.
            threshold: Only poses with a score above this are returned; from 0 to 1.
            target_sizes: (height, width) of each image in pixels, as a list or a tensor (batch, 2). Without them,
                coordinates are fractions of the image.

        Returns:
            Per image a list of poses, best first. A pose is a dictionary of tensors on the outputs' device:

            - `keypoints` (K, 2): x, y in pixels.
            - `scores` (K,): score of each keypoint, `keypoint_scores` of `post_process_keypoint_detection`.
            - `labels` (K,): indices of the keypoints in the skeleton, 0 to K - 1; those of the class in its own order.
            - `bbox` (4,): x1, y1, x2, y2 in pixels, around the keypoints.
            - `score` (): probability of the label.
            - `label` (): class of the pose.
            - `keypoint_std` (K, 2): standard deviations in x and y in pixels; only with `pred_keypoint_std`.
            - `keypoint_visibility` (K,): 0 absent, 1 occluded or 2 visible; only with `pred_visibility`.

        Raises:
            ValueError: as `post_process_keypoint_detection` does.
        """
        results = self.post_process_keypoint_detection(outputs, threshold, target_sizes)
        return [_list_poses(result, self.keypoint_schema) for result in results]

    def _tables(self, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the result of `keypoint_tables` for outputs, or raises `ValueError` if they do not fit the schema."""
        num_keypoints, num_labels = tensors["pred_keypoints"].shape[2], tensors["logits"].shape[2]
        device = tensors["logits"].device
        if self.keypoint_schema is None:
            return torch.full((num_keypoints,), DEFAULT_SIGMA, device=device), None
        if self.keypoint_schema.num_keypoints != num_keypoints:
            raise ValueError(
                f"the outputs have {num_keypoints} keypoints, but `keypoint_schema` has "
                f"{self.keypoint_schema.num_keypoints}: use the image processor that was saved with the model."
            )
        return keypoint_tables(self.keypoint_schema, num_labels, device)


@contextmanager
def _naming_image(index: int) -> Iterator[None]:
    """Converts errors about one of several images to a `ValueError` that names the image."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"image number {index}: {error}") from error


def keypoint_tables(
    schema: KeypointSchema, num_labels: int, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the sigmas (C, K) of C labels, and which keypoints each has (C, K); (K,) and `None` if all have all."""
    sigmas, is_own = schema.by_label(range(num_labels))
    sigmas = torch.tensor(sigmas, dtype=torch.float32, device=device)
    return sigmas, None if is_own is None else torch.tensor(is_own, device=device)


def rank_poses(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the best (query, label) pairs of each image, as many as there are queries, best first.

    Args:
        logits: (batch, queries, labels).

    Returns:
        Their scores, queries and labels, each (batch, queries).
    """
    num_queries, num_labels = logits.shape[1:]
    scores, pairs = logits.float().sigmoid().flatten(1).topk(num_queries, dim=1)
    return scores, pairs // num_labels, pairs % num_labels


def select_poses(
    outputs: Mapping[str, torch.Tensor], target_sizes: torch.Tensor, is_own: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Returns the best poses of each image, as many as there are queries, regardless of their scores.

    Args:
        outputs: `logits` (batch, queries, labels), `pred_keypoints` (batch, queries, K, 2) as x, y fractions and,
            optionally, `pred_keypoint_std` of the same shape and `pred_visibility` (batch, queries, K, 3).
        target_sizes: (batch, 2), height and width of each image in pixels.
        is_own: (labels, K) bool, which keypoints the class of each label has; all of them if not given.

    Returns:
        The best (query, label) pairs, best first: `scores` (batch, queries), `labels` (batch, queries) int64,
        `keypoints` (batch, queries, K, 2) as x, y in pixels, `keypoint_std` (batch, queries, K, 2) in pixels, unscaled,
        and `keypoint_visibility` (batch, queries, K) int64, if the outputs have them, and `boxes` (batch, queries, 4)
        as x1, y1, x2, y2 in pixels, around the keypoints that the class has. The others are in the middle of the box,
        where they do not matter to anything computed from it.
    """
    scores, queries, labels = rank_poses(outputs["logits"])
    scale = target_sizes.float().flip(1)[:, None, None]
    poses = {"scores": scores, "labels": labels}
    for name, output in (("keypoints", "pred_keypoints"), ("keypoint_std", "pred_keypoint_std")):
        if output in outputs:
            poses[name] = take_queries(outputs[output].float(), queries) * scale
    if "pred_visibility" in outputs:
        # By `topk`, not `argmax`: the validation of an exported graph knows what to do with ties of rankings.
        values = outputs["pred_visibility"].topk(1, dim=-1).indices
        poses["keypoint_visibility"] = take_queries(values, queries).squeeze(-1)
    if is_own is None:
        boxes = torch.cat((poses["keypoints"].amin(dim=2), poses["keypoints"].amax(dim=2)), dim=-1)
        return {**poses, "boxes": boxes}
    is_own = is_own[poses["labels"]].unsqueeze(-1)
    low = poses["keypoints"].where(is_own, torch.inf).amin(dim=2)
    high = poses["keypoints"].where(is_own, -torch.inf).amax(dim=2)
    poses["keypoints"] = poses["keypoints"].where(is_own, ((low + high) / 2).unsqueeze(2))
    return {**poses, "boxes": torch.cat((low, high), dim=-1)}


def score_keypoints(
    poses: Mapping[str, torch.Tensor],
    sigmas: torch.Tensor,
    minimum_side: float,
    scale: bool = True,
    is_own: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Adds keypoint scores to poses, and scales their standard deviations to agree with the pose scores.

    Args:
        poses: the result of [`select_poses`], or a subset of it.
        sigmas: (K,), fall-off of each keypoint, or (labels, K).
        minimum_side: see [`scale_deviations`], in pixels.
        scale: whether to scale the standard deviations; not those of a calibrated model.
        is_own: (labels, K) bool, as for [`select_poses`].

    Returns:
        The poses with `keypoint_scores` (..., K) and, if present, `keypoint_std` (..., K, 2) and `keypoint_visibility`
        (..., K); 0 for keypoints that the class of a pose lacks.
    """
    scores, keypoints, boxes = poses["scores"], poses["keypoints"], poses["boxes"]
    if is_own is not None:
        sigmas, is_own = sigmas[poses["labels"]], is_own[poses["labels"]]
    scored = {name: poses[name] for name in ("scores", "labels", "keypoints")}
    if "keypoint_std" in poses:
        deviations = poses["keypoint_std"]
        if scale:
            deviations = scale_deviations(deviations, scores, boxes, sigmas, minimum_side, is_own)
        scored["keypoint_scores"] = expected_keypoint_similarity(deviations, boxes, sigmas, minimum_side)
        scored["keypoint_std"] = deviations
    else:
        scored["keypoint_scores"] = scores.unsqueeze(-1).expand(keypoints.shape[:-1])
    if "keypoint_visibility" in poses:
        scored["keypoint_visibility"] = poses["keypoint_visibility"]
    if is_own is not None:
        scored["keypoint_scores"] = scored["keypoint_scores"] * is_own
        if "keypoint_std" in scored:
            scored["keypoint_std"] = scored["keypoint_std"] * is_own.unsqueeze(-1)
        if "keypoint_visibility" in scored:
            scored["keypoint_visibility"] = scored["keypoint_visibility"] * is_own
    return {**scored, "boxes": boxes}


def take_queries(values: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Gathers the queries (batch, n) from values (batch, queries, K, any)."""
    return values.gather(1, queries[..., None, None].expand(-1, -1, *values.shape[2:]))


def _list_poses(result: dict[str, torch.Tensor], schema: KeypointSchema | None) -> list[dict[str, torch.Tensor]]:
    """Returns the poses of one image, given as one dictionary of n poses, as n dictionaries."""
    keypoint_scores = result["keypoint_scores"]
    columns = {
        "keypoints": result["keypoints"],
        "scores": keypoint_scores,
        "labels": torch.arange(keypoint_scores.shape[1], device=keypoint_scores.device).expand(keypoint_scores.shape),
        "bbox": result["boxes"],
        "score": result["scores"],
        "label": result["labels"],
    }
    optional = ("keypoint_std", "keypoint_visibility")
    columns |= {name: result[name] for name in optional if name in result}
    poses = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if schema is None or schema.classes is None:
        return poses
    of_keypoints = [name for name in ("keypoints", "scores", "labels", *optional) if name in columns]
    for pose in poses:
        own = list(schema.of_class(int(pose["label"])).indices)
        pose.update({name: pose[name][own] for name in of_keypoints})
    return poses


def _output_tensors(outputs) -> dict[str, torch.Tensor]:
    """Returns the outputs used in post-processing by name, or raises `ValueError` if a shape does not fit."""
    logits, keypoints = outputs.logits, outputs.pred_keypoints
    deviations = getattr(outputs, "pred_keypoint_std", None)
    if logits.ndim != 3:
        raise ValueError(f"`logits` must have the shape (batch, queries, labels), but got {tuple(logits.shape)}.")
    if keypoints.ndim != 4 or keypoints.shape[:2] != logits.shape[:2] or keypoints.shape[3] != 2:
        raise ValueError(
            f"`pred_keypoints` must have the shape {(*logits.shape[:2], 'K', 2)} to go with `logits`, "
            f"but got {tuple(keypoints.shape)}."
        )
    if deviations is not None and deviations.shape != keypoints.shape:
        raise ValueError(
            f"`pred_keypoint_std` must have the shape of `pred_keypoints`, {tuple(keypoints.shape)}, "
            f"but got {tuple(deviations.shape)}."
        )
    visibility = getattr(outputs, "pred_visibility", None)
    if visibility is not None and visibility.shape != (*keypoints.shape[:3], 3):
        raise ValueError(
            f"`pred_visibility` must have the shape {(*keypoints.shape[:3], 3)} to go with `pred_keypoints`, "
            f"but got {tuple(visibility.shape)}."
        )
    tensors = {"logits": logits, "pred_keypoints": keypoints}
    optional = {"pred_keypoint_std": deviations, "pred_visibility": visibility}
    return tensors | {name: value for name, value in optional.items() if value is not None}


def _size_tensor(target_sizes, batch_size: int, device: torch.device) -> torch.Tensor:
    """Returns (height, width) of each image as float32 (batch, 2), or raises `ValueError`."""
    sizes = target_sizes.tolist() if isinstance(target_sizes, torch.Tensor) else target_sizes
    try:
        sizes = [(float(height), float(width)) for height, width in sizes]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) != batch_size or not all(0 < length < math.inf for size in sizes for length in size):
        raise ValueError(
            f"`target_sizes` must hold a positive height and width for each of {batch_size} images, "
            f"but got {reprlib.repr(target_sizes)}."
        )
    return torch.tensor(sizes, device=device).reshape(batch_size, 2)


def image_to_tensor(
    image: Image.Image | np.ndarray | torch.Tensor,
    do_convert_rgb: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """Returns one image as a tensor (channels, height, width) of the same dtype, with 16 bit scaled to 8 bit.

    Args:
        image: Image, or array or tensor of 1, 3 or 4 channels; two dimensions are height and width.
        do_convert_rgb: whether to return three channels: gray is repeated, transparency dropped.
        input_data_format: "channels_first" or "channels_last", for arrays and tensors; inferred if not given.
        device: device of the tensor.

    Raises:
        ValueError: if the channel dimension cannot be inferred, or the image is empty, complex or not finite.
    """
    if isinstance(image, Image.Image):
        image = np.array(convert_to_rgb(image) if do_convert_rgb else image)
        input_data_format = ChannelDimension.LAST
    if isinstance(image, np.ndarray):
        # PyTorch accepts neither negative strides, such as from BGR to RGB by [..., ::-1], nor read-only arrays.
        image = np.require(image, requirements=["C", "W"])
    image = torch.as_tensor(image)
    _check_values(image)
    if image.ndim == 2:
        image, input_data_format = image[None], ChannelDimension.FIRST
    if input_data_format is None:
        input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
    if ChannelDimension(input_data_format) == ChannelDimension.LAST:
        image = image.permute(2, 0, 1)
    if image.dtype == torch.uint16:
        image = tvF.to_dtype(image, torch.uint8, scale=True)
    if do_convert_rgb:
        if image.shape[0] not in (1, 3, 4):
            raise ValueError(f"an image must have 1, 3 or 4 channels to become RGB, but got {image.shape[0]}.")
        image = image[:3].expand(3, -1, -1)
    return image.to(device)


def _check_values(image: torch.Tensor):
    """Raises `ValueError` unless the image has two or three dimensions, at least one pixel, and finite real values."""
    if image.numel() == 0:
        raise ValueError(f"an image must have pixels, but got the shape {tuple(image.shape)}.")
    if image.ndim not in (2, 3):
        raise ValueError(f"an image must have two or three dimensions, but got the shape {tuple(image.shape)}.")
    if image.is_complex():
        raise ValueError(f"an image must consist of real numbers, but got {image.dtype}.")
    if image.is_floating_point() and not image.isfinite().all():
        raise ValueError("an image must be finite, but got NaN or infinite values.")
