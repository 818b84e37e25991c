"""The evaluation loop for any model (trained, fused or exported), on one or more processes."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ..data.batches import scale
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..tiles import Tiles, predict_tiles, whole_image
from .keypoint_metrics import KeypointMetric, Poses


@torch.inference_mode()
def evaluate_model(
    model: Callable[[torch.Tensor], Any],
    image_processor: DETRPoseImageProcessor,
    loader: Iterable[dict[str, Any]],
    metric: KeypointMetric,
    progress: bool = True,
    tiles: Tiles | None = None,
    tiles_at_once: int | None = None,
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
        tiles: how the loader divides large images, see `evaluation_dataloader`.
        tiles_at_once: maximum number of images and tiles that the model sees at once; all of a batch if not given.
        observe: called with each batch and the outputs for it; not with tiles, of which an image has several.
    """

    def run(pixel_values: torch.Tensor, batch: dict[str, Any]) -> Any:
        outputs = model(pixel_values.to(dtype=dtype))
        if observe is not None:
            observe(batch, outputs)
        return outputs

    metric.reset()
    device, dtype = getattr(model, "device", None), getattr(model, "dtype", None)
    # `leave=None`: the bar stays unless it is nested in another one.
    for batch in tqdm(loader, desc="evaluating", unit="batch", leave=None, disable=not progress):
        pixel_values = scale(batch["pixel_values"].to(device, non_blocking=True), image_processor)
        sizes_hw = torch.stack([labels["orig_size"] for labels in batch["labels"]]).tolist()
        boxes = [[whole_image(size_hw)] if tiles is None else tiles.boxes(size_hw) for size_hw in sizes_hw]
        # Average precision uses poses of any score.
        poses = predict_tiles(partial(run, batch=batch), image_processor, pixel_values, boxes, 0.0, tiles_at_once)
        metric.update([int(labels["image_id"]) for labels in batch["labels"]], poses)
    return metric.gather()
