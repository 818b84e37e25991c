"""The computation of an exported graph: the outputs of the fused network or, optionally, poses in pixels."""

import torch
from torch import nn

from ..configuration_detrpose import DETRPoseConfig
from ..image_processing_detrpose import MINIMUM_SIDE_PIXELS, keypoint_tables, score_keypoints, select_poses
from ..keypoint_schemas import VISIBILITIES
from ..modeling_detrpose import DETRPoseForPoseEstimation

MODEL_FILE = "model.onnx"
POSE_OUTPUTS = ("scores", "labels", "keypoints", "keypoint_scores", "boxes")  # and `keypoint_visibility`


class DETRPoseGraph(nn.Module):
    """A model for exporters: fused, with a fixed set of inputs and outputs.

    Args:
        model: the model to export, which is not modified.
        post_process: whether the graph returns poses in pixels instead of the outputs of the network.
        target: runtime of the graph, "onnxruntime" or "tensorrt", see [`fuse`].

    Example:

    ```python
    >>> graph = DETRPoseGraph(model, post_process=True)
    >>> torch.onnx.export(graph, (pixel_values, target_sizes), "model.onnx", output_names=graph.output_names)
    ```
    """

    def __init__(self, model: DETRPoseForPoseEstimation, post_process: bool = False, target: str = "onnxruntime"):
        super().__init__()
        self.model = model.fuse(target)
        self.post_process = post_process

    @property
    def config(self) -> DETRPoseConfig:
        """The configuration of the model."""
        return self.model.config

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return tuple(output_shapes(self.config, self.post_process))

    def forward(self, pixel_values: torch.Tensor, target_sizes: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Predicts the poses in a batch of images, see [`compute_outputs`]."""
        return compute_outputs(self.model, pixel_values, target_sizes, self.post_process)


def output_shapes(config: DETRPoseConfig, post_process: bool = False) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of a graph's outputs, in order and without the batch axis."""
    queries, keypoints = config.num_queries, config.keypoint_schema.num_keypoints
    if post_process:
        shapes = ((), (), (keypoints, 2), (keypoints,), (4,))
        shapes = dict(zip(POSE_OUTPUTS, shapes, strict=True))
        if config.use_visibility_head:
            shapes["keypoint_visibility"] = (keypoints,)
        return {name: (queries, *shape) for name, shape in shapes.items()}
    shapes = {"logits": (queries, config.num_labels), "pred_keypoints": (queries, keypoints, 2)}
    if config.use_fdr_heads:
        shapes["pred_keypoint_std"] = (queries, keypoints, 2)
    if config.use_visibility_head:
        shapes["pred_visibility"] = (queries, keypoints, len(VISIBILITIES))
    return shapes


def compute_outputs(
    model: DETRPoseForPoseEstimation,
    pixel_values: torch.Tensor,
    target_sizes: torch.Tensor | None = None,
    post_process: bool = False,
) -> dict[str, torch.Tensor]:
    """Computes the outputs of a model's graph with the model, fused or not.

    Args:
        model: the model.
        pixel_values: (batch, 3, height, width), RGB in [0, 1].
        target_sizes: (batch, 2), height and width of each image in pixels; only with `post_process`.
        post_process: whether to return poses in pixels.

    Returns:
        By default `logits` (batch, queries, labels), `pred_keypoints` and, with FDR heads, `pred_keypoint_std` (batch,
        queries, K, 2), x and y as fractions of the image, and, with a visibility head, `pred_visibility` (batch,
        queries, K, 3). With `post_process`, `POSE_OUTPUTS`, see [`score_keypoints`].
    """
    outputs = model(pixel_values, return_dict=True)
    outputs = {name: outputs[name] for name in output_shapes(model.config)}
    if not post_process:
        return outputs
    config = model.config
    sigmas, is_own = keypoint_tables(config.keypoint_schema, config.num_labels, pixel_values.device)
    poses = select_poses(outputs, target_sizes, is_own)
    poses = score_keypoints(poses, sigmas, MINIMUM_SIDE_PIXELS, not config.use_calibration, is_own)
    return {name: poses[name] for name in output_shapes(config, post_process)}
