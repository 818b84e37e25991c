"""Finds the model and predicts one batch."""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..conversion.published import published_folder
from ..loading import DEMONSTRATION_MODEL, first_line, load_image_processor, load_pose_estimator
from ..pose_arrays import Poses
from ..tiles import Box, Tiles, crop, predict_tiles, whole_image
from ..variants import VARIANTS
from ..video import remove_duplicates
from ..visualization import draw_poses

logger = logging.getLogger(__name__)


def find_model(name: str | None) -> str:
    """Returns the folder or Hub id of a model.

    Args:
        name: Folder, Hub id, or the variant of a published model, which is downloaded on first use. If not given, the
            published N model, or the bundled demonstration model if that one cannot be downloaded.

    Raises:
        OSError: if the published model that `name` asks for cannot be downloaded.
    """
    if name is not None:
        return str(published_folder(name)) if name in VARIANTS else name
    try:
        folder = published_folder("n")
    except (OSError, ValueError) as error:
        reason = first_line(error)
        logger.warning("Using the demonstration model, which knows generated figures only, no photographs: %s", reason)
        return str(DEMONSTRATION_MODEL)
    logger.info("Using the published DETRPose-N, converted and kept in %s", folder)
    return str(folder)


class PreparedBatch(NamedTuple):
    """Images as the model takes them.

    Args:
        pixel_values: (m, 3, height, width), what the model sees of the first image, then of the second, and so on.
        boxes: For each image, the boxes of what the model sees of it: the whole image, and its tiles.
    """

    pixel_values: torch.Tensor
    boxes: list[list[Box]]


class Predictor:
    """A model with its image processor, and statistics of images, poses and speed.

    Args:
        model: Folder or Hub id.
        device: Name of a torch device.
        dtype: Type of the weights.
        threshold: Minimum score of a pose, from 0 to 1.
        keypoint_threshold: Minimum score of a keypoint to be drawn, from 0 to 1.
        uncertainty: Whether to draw the ellipses that contain 50 % and 90 % of the true keypoints.
        duplicate_similarity: Minimum keypoint similarity, from 0 to 1, of poses of which only the best is kept; all are
            kept if not given.
        max_people: Maximum number of poses per image, the best ones; all are kept if not given.
        tiles: How large images are divided; they are seen as a whole only if not given.
        batch_size: Maximum number of images and tiles that the model sees at once; all of a batch if not given.

    Raises:
        ValueError: if the model or its image processor cannot be loaded, or the model has no uncertainty to draw.
    """

    def __init__(
        self,
        model: str,
        device: str,
        dtype: torch.dtype,
        threshold: float,
        keypoint_threshold: float,
        uncertainty: bool = False,
        duplicate_similarity: float | None = None,
        max_people: int | None = None,
        tiles: Tiles | None = None,
        batch_size: int | None = None,
    ):
        self.model = load_pose_estimator(model, device, dtype)
        self.processor = load_image_processor(model)
        self.ellipse_radii = self.model.config.ellipse_radii if uncertainty else ()
        if uncertainty and not self.model.config.use_fdr_heads:
            raise ValueError(f"{model} has no FDR heads, and so no standard deviations to draw.")
        self.threshold = threshold
        self.keypoint_threshold = keypoint_threshold
        self.duplicate_similarity = duplicate_similarity
        self.max_people = max_people
        self.tiles = tiles
        self.batch_size = batch_size
        self.num_images = self.num_poses = 0
        self.seconds_per_image: list[float] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[Poses]:
        """Returns the poses of each image of a batch as `post_process_keypoint_detection` does, on the CPU."""
        return self.predict(self.prepare(images))

    def prepare(self, images: Sequence[Image.Image | np.ndarray]) -> PreparedBatch:
        """Returns a batch of images, PIL or RGB arrays of shape (height, width, 3), as the model takes them."""
        sizes_hw = [
            image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width) for image in images
        ]
        boxes = [[whole_image(size_hw)] if self.tiles is None else self.tiles.boxes(size_hw) for size_hw in sizes_hw]
        crops = [crop(image, box) for image, parts in zip(images, boxes, strict=True) for box in parts]
        pixel_values = self.processor(images=crops, input_data_format="channels_last", return_tensors="pt")
        return PreparedBatch(pixel_values["pixel_values"], boxes)

    @torch.inference_mode()
    def predict(self, batch: PreparedBatch, threshold: float | None = None) -> list[Poses]:
        """Returns the poses of each image of a prepared batch, on the CPU.

        Args:
            batch: The images.
            threshold: Minimum score of a pose, if it is another one.
        """
        start = time.perf_counter()
        pixel_values = batch.pixel_values.to(self.model.device, self.model.dtype)
        threshold = self.threshold if threshold is None else threshold
        results = predict_tiles(self.model, self.processor, pixel_values, batch.boxes, threshold, self.batch_size)
        results = [self._limit({key: value.cpu() for key, value in result.items()}) for result in results]
        self.num_images += len(results)
        self.num_poses += sum(len(result["scores"]) for result in results)
        self.seconds_per_image.append((time.perf_counter() - start) / len(results))
        return results

    def _limit(self, poses: Poses) -> Poses:
        """Returns the poses, best first, without duplicates and no more than `max_people`."""
        if self.duplicate_similarity is not None:
            poses = remove_duplicates(poses, self.model.config.keypoint_schema, self.duplicate_similarity)
        return {name: values[: self.max_people] for name, values in poses.items()}

    def draw(self, image: Image.Image | np.ndarray, result: Poses) -> Image.Image | np.ndarray:
        """Returns the image with its poses and their labels."""
        config = self.model.config
        return draw_poses(
            image,
            result,
            config.keypoint_schema,
            config.id2label,
            self.keypoint_threshold,
            ellipse_radii=self.ellipse_radii,
        )
