"""The evaluation loop for any model (trained, fused or exported), on one or more processes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tqdm import tqdm

from ..data.batches import scale
from ..image_processing_detrpose import DETRPoseImageProcessor
from .keypoint_metrics import KeypointMetric, Poses


@torch.inference_mode()
def evaluate_model(
    model: Callable[[torch.Tensor], Any],
    image_processor: DETRPoseImageProcessor,
    loader: Iterable[dict[str, Any]],
    metric: KeypointMetric,
    progress: bool = True,
    observe: Callable[[dict[str, Any], Any], None] | None = None,
) -> dict[int, Poses]:
    """Predicts the poses in images and returns them, for `metric.score`.

    Each process evaluates its share of the batches, and all of them get the poses in all images. Images that accelerate
    repeats to make the shares equal are counted once.

    Args:
        model: takes `pixel_values` (batch, 3, height, width) and returns `logits` and `pred_keypoints`; a PyTorch model
            must be in evaluation mode.
        image_processor: converts the outputs to poses, and says whether unscaled images are normalized.
        loader: batches of `evaluation_dataloader`, prepared by accelerate if there are several processes.
        metric: collects the poses; it is reset first.
        progress: whether to show a progress bar.
        observe: called with each batch and the outputs for it.
    """
    metric.reset()
    device, dtype = getattr(model, "device", None), getattr(model, "dtype", None)
    # `leave=None`: the bar stays unless it is nested in another one.
    for batch in tqdm(loader, desc="evaluating", unit="batch", leave=None, disable=not progress):
        pixel_values = scale(batch["pixel_values"].to(device, non_blocking=True), image_processor)
        outputs = model(pixel_values.to(dtype=dtype))
        if observe is not None:
            observe(batch, outputs)
        sizes_hw = torch.stack([labels["orig_size"] for labels in batch["labels"]])
        # Average precision uses poses of any score.
        poses = image_processor.post_process_keypoint_detection(outputs, threshold=0.0, target_sizes=sizes_hw)
        metric.update([int(labels["image_id"]) for labels in batch["labels"]], poses)
    return metric.gather()
