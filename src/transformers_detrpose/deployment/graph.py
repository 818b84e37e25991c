"""What an exported graph computes: the outputs of the fused network or, if wanted, poses in pixels."""

import torch
from torch import nn

from ..configuration_detrpose import DETRPoseConfig
from ..image_processing_detrpose import MINIMUM_SIDE_PIXELS, score_keypoints, select_poses
from ..modeling_detrpose import DETRPoseForPoseEstimation

MODEL_FILE = "model.onnx"
POSE_OUTPUTS = ("scores", "labels", "keypoints", "keypoint_scores", "boxes")


class DETRPoseGraph(nn.Module):
    """A model as exporters take it: fused, with a fixed set of inputs and outputs.

    Args:
        model: the model to export; it stays as it is.
        post_process: whether the graph ends with poses in pixels and not with the outputs of the network.
        target: what will execute the graph, see [`fuse`]: "onnxruntime", or "tensorrt", for which feature maps are read
            by gathers and arithmetic and not by GridSample, which some versions of TensorRT compute wrongly.

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
        """Finds the poses in a batch of images; see [`compute_outputs`]."""
        return compute_outputs(self.model, pixel_values, target_sizes, self.post_process)


def output_shapes(config: DETRPoseConfig, post_process: bool = False) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a graph's outputs, without the batch, by their names and in order."""
    queries, keypoints = config.num_queries, config.keypoint_schema.num_keypoints
    if post_process:
        shapes = ((), (), (keypoints, 2), (keypoints,), (4,))
        return {name: (queries, *shape) for name, shape in zip(POSE_OUTPUTS, shapes, strict=True)}
    shapes = {"logits": (queries, config.num_labels), "pred_keypoints": (queries, keypoints, 2)}
    return {**shapes, "pred_keypoint_std": (queries, keypoints, 2)} if config.use_fdr_heads else shapes


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
        (batch, queries, K, 2), x and y as fractions of the image. With `post_process` what [`score_keypoints`] returns
        of `POSE_OUTPUTS`.
    """
    outputs = model(pixel_values, return_dict=True)
    outputs = {name: outputs[name] for name in output_shapes(model.config)}
    if not post_process:
        return outputs
    sigmas = torch.tensor(model.config.keypoint_schema.sigmas, device=pixel_values.device)
    poses = score_keypoints(select_poses(outputs, target_sizes), sigmas, MINIMUM_SIDE_PIXELS)
    return {name: poses[name] for name in POSE_OUTPUTS}
