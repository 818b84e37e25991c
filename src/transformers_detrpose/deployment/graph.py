"""What an exported graph computes: the outputs of the fused network or, if wanted, poses in pixels."""

import torch
from torch import nn

from ..configuration_detrpose import DETRPoseConfig
from ..image_processing_detrpose import MINIMUM_SIDE_PIXELS, expected_keypoint_similarity
from ..modeling_detrpose import DETRPoseForPoseEstimation

POSE_OUTPUTS = ("scores", "labels", "keypoints", "keypoint_scores", "boxes")


class DETRPoseGraph(nn.Module):
    """A model as exporters take it: fused, with a fixed set of inputs and outputs.

    Args:
        model: the model to export; it stays as it is.
        post_process: whether the graph ends with poses in pixels and not with the outputs of the network.
        without_grid_sample: whether feature maps are read by gathers and arithmetic and not by GridSample, which some
            versions of TensorRT compute wrongly.

    Example:

    ```python
    >>> graph = DETRPoseGraph(model, post_process=True)
    >>> torch.onnx.export(graph, (pixel_values, target_sizes), "model.onnx", output_names=graph.output_names)
    ```
    """

    def __init__(self, model: DETRPoseForPoseEstimation, post_process: bool = False, without_grid_sample: bool = False):
        super().__init__()
        self.model = model.fuse("tensorrt" if without_grid_sample else "onnxruntime")
        self.post_process = post_process

    @property
    def config(self) -> DETRPoseConfig:
        """The configuration of the model."""
        return self.model.config

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return output_names(self.config, self.post_process)

    def forward(self, pixel_values: torch.Tensor, target_sizes: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Finds the poses in a batch of images; see [`compute_outputs`]."""
        return compute_outputs(self.model, pixel_values, target_sizes, self.post_process)


def output_names(config: DETRPoseConfig, post_process: bool = False) -> tuple[str, ...]:
    """Returns the names of a graph's outputs, in order."""
    if post_process:
        return POSE_OUTPUTS
    return ("logits", "pred_keypoints", "pred_keypoint_std") if config.use_fdr_heads else ("logits", "pred_keypoints")


def compute_outputs(
    model: DETRPoseForPoseEstimation,
    pixel_values: torch.Tensor,
    target_sizes: torch.Tensor | None = None,
    post_process: bool = False,
) -> dict[str, torch.Tensor]:
    """Computes with a model, fused or not, what its graph computes.

    Args:
        model: the model.
        pixel_values: (batch, 3, height, width), RGB in [0, 1].
        target_sizes: (batch, 2), height and width of each image in pixels; with `post_process` only.
        post_process: whether to return poses.

    Returns:
        By default `logits` (batch, queries, labels), `pred_keypoints` and, with FDR heads, `pred_keypoint_std`
        (batch, queries, K, 2), x and y as fractions of the image. With `post_process` what [`select_poses`] returns.
    """
    outputs = model(pixel_values, return_dict=True)
    outputs = {name: outputs[name] for name in output_names(model.config)}
    if not post_process:
        return outputs
    sigmas = torch.tensor(model.config.keypoint_schema.sigmas, device=pixel_values.device)
    return select_poses(outputs, target_sizes, sigmas)


def select_poses(
    outputs: dict[str, torch.Tensor], target_sizes: torch.Tensor, sigmas: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Does what `DETRPoseImageProcessor.post_process_keypoint_detection` does before its threshold, as part of a graph.

    Args:
        outputs: `logits` (batch, queries, labels), `pred_keypoints` (batch, queries, K, 2) as x, y fractions and,
            optionally, `pred_keypoint_std` of the same shape.
        target_sizes: (batch, 2), height and width of each image in pixels.
        sigmas: (K,), fall-off of each keypoint.

    Returns:
        The best pairs of query and label of each image, as many as there are queries, best first:
        `scores` (batch, queries), `labels` (batch, queries) int64, `keypoints` (batch, queries, K, 2) as x, y in
        pixels, `keypoint_scores` (batch, queries, K) and `boxes` (batch, queries, 4) as x1, y1, x2, y2 in pixels.
    """
    num_queries, num_labels = outputs["logits"].shape[1:]
    scores, pairs = outputs["logits"].float().sigmoid().flatten(1).topk(num_queries, dim=1)
    queries = (pairs // num_labels)[..., None, None]
    scale = target_sizes.float().flip(1)[:, None, None]

    keypoints = _take(outputs["pred_keypoints"].float(), queries) * scale
    boxes = torch.cat((keypoints.amin(dim=2), keypoints.amax(dim=2)), dim=-1)
    if "pred_keypoint_std" in outputs:
        deviations = _take(outputs["pred_keypoint_std"].float(), queries) * scale
        poses = deviations.flatten(0, 1), boxes.flatten(0, 1)
        keypoint_scores = expected_keypoint_similarity(*poses, sigmas, MINIMUM_SIDE_PIXELS)
        keypoint_scores = keypoint_scores.reshape(keypoints.shape[:-1])
    else:
        keypoint_scores = scores.unsqueeze(-1).expand(keypoints.shape[:-1])
    return dict(zip(POSE_OUTPUTS, (scores, pairs % num_labels, keypoints, keypoint_scores, boxes), strict=True))


def _take(values: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Picks the queries (batch, n, 1, 1) from values (batch, queries, K, 2)."""
    return values.gather(1, queries.expand(-1, -1, *values.shape[2:]))
