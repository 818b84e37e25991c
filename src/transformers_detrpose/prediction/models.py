"""Finds the model and predicts one batch."""

import logging
import time
from pathlib import Path

import torch
from PIL import Image

from ..configuration_detrpose import VARIANTS
from ..conversion.published import published_folder
from ..loading import first_line, load_image_processor, load_pose_estimator
from ..visualization import draw_poses

DEMONSTRATION_MODEL = Path(__file__).parents[1] / "demonstration_model"
SAMPLE_PICTURE = DEMONSTRATION_MODEL / "picture.jpg"

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


class Predictor:
    """A model with its image processor, and statistics of images, poses and speed.

    Args:
        model: Folder or Hub id.
        device: Name of a torch device.
        dtype: Type of the weights.
        threshold: Minimum score of a pose, from 0 to 1.
        keypoint_threshold: Minimum score of a keypoint to be drawn, from 0 to 1.
        uncertainty: Whether to draw the ellipses that contain 50 % and 90 % of the true keypoints.

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
    ):
        self.model = load_pose_estimator(model, device, dtype)
        self.processor = load_image_processor(model)
        self.ellipse_radii = self.model.config.ellipse_radii if uncertainty else ()
        if uncertainty and not self.model.config.use_fdr_heads:
            raise ValueError(f"{model} has no FDR heads, and so no standard deviations to draw.")
        self.threshold = threshold
        self.keypoint_threshold = keypoint_threshold
        self.num_images = self.num_poses = 0
        self.seconds_per_image: list[float] = []

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[dict[str, torch.Tensor]]:
        """Returns the poses of each image of a batch as `post_process_keypoint_detection` does, on the CPU."""
        start = time.perf_counter()
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        outputs = self.model(pixel_values.to(self.model.device, self.model.dtype))
        results = self.processor.post_process_keypoint_detection(
            outputs, threshold=self.threshold, target_sizes=[(image.height, image.width) for image in images]
        )
        results = [{key: value.cpu() for key, value in result.items()} for result in results]
        self.num_images += len(images)
        self.num_poses += sum(len(result["scores"]) for result in results)
        self.seconds_per_image.append((time.perf_counter() - start) / len(images))
        return results

    def draw(self, image: Image.Image, result: dict[str, torch.Tensor]) -> Image.Image:
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
