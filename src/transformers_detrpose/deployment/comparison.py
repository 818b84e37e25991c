"""Comparison of the poses that a model finds in two runtimes."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from ..image_processing_detrpose import DETRPoseImageProcessor
from ..images import load_rgb_image
from ..keypoint_schemas import PERSON_TO_BOX_AREA, KeypointSchema
from ..loss_detrpose import keypoint_similarity
from ..modeling_detrpose import DETRPoseForPoseEstimation, DETRPoseForPoseEstimationOutput

# Takes `pixel_values` (batch, 3, height, width), returns `logits`, `pred_keypoints`, ...
Run = Callable[[torch.Tensor], DETRPoseForPoseEstimationOutput]


@torch.inference_mode()
def least_similarity(
    model: DETRPoseForPoseEstimation,
    processor: DETRPoseImageProcessor,
    run: Run,
    images: Iterable[Path],
    threshold: float,
) -> tuple[float, int]:
    """Compares the poses that a model finds in PyTorch with those of another runtime.

    Args:
        model: the model in PyTorch.
        processor: its image processor.
        run: runs the model in the other runtime.
        images: image files.
        threshold: poses are compared if either runtime gives them a higher score.

    Returns:
        The lowest keypoint similarity of a pose to its counterpart (1 if there are no poses, 0 if the other runtime's
        outputs are not all finite), and the number of comparisons.
    """
    least, count = 1.0, 0
    for path in images:
        image = load_rgb_image(path)
        pixel_values = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
        outputs, other_outputs = model(pixel_values), run(pixel_values)
        if not (other_outputs.logits.isfinite().all() and other_outputs.pred_keypoints.isfinite().all()):
            least, count = 0.0, count + other_outputs.logits.shape[1]
            continue
        poses, other_poses = (
            processor.post_process_keypoint_detection(x, 0.0, [(image.height, image.width)])[0]
            for x in (outputs, other_outputs)
        )
        schema = model.config.keypoint_schema
        # In both directions, to detect missing as well as additional poses.
        for first, second in ((poses, other_poses), (other_poses, poses)):
            similarities = best_similarities(first, second, schema, threshold)
            least = min([least, *similarities.tolist()])
            count += len(similarities)
    return least, count


def best_similarities(
    poses: dict[str, torch.Tensor], candidates: dict[str, torch.Tensor], schema: KeypointSchema, threshold: float
) -> torch.Tensor:
    """Returns the keypoint similarity of each pose above the threshold to its most similar candidate of the same label.

    Args:
        poses: as `post_process_keypoint_detection` returns them.
        candidates: poses of the other runtime.
        schema: the keypoint schema.
        threshold: score that a pose must exceed.

    Returns:
        (n,), from 0 to 1.
    """
    keep = poses["scores"] > threshold
    keypoints, labels, boxes = (poses[key][keep].float() for key in ("keypoints", "labels", "boxes"))
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    sigmas, is_own = schema.by_label(labels.tolist())
    visibility = np.ones(schema.num_keypoints) if is_own is None else is_own[:, None]
    sigmas = sigmas if is_own is None else sigmas[:, None]
    similarity = keypoint_similarity(
        candidates["keypoints"],
        keypoints[:, None],
        torch.tensor(visibility, dtype=torch.float32, device=keypoints.device),
        PERSON_TO_BOX_AREA * sides.prod(-1)[:, None],
        torch.tensor(sigmas, dtype=torch.float32, device=keypoints.device),
    )
    similarity = torch.where(candidates["labels"] == labels[:, None], similarity, 0)
    return similarity.amax(1) if len(candidates["scores"]) else torch.zeros(len(keypoints))
