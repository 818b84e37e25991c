"""An exported DETRPose in ONNX Runtime, with the interface of the PyTorch model."""

from dataclasses import dataclass

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForCustomTasks
from transformers import AutoModelForKeypointDetection
from transformers.utils import ModelOutput

from ..modeling_detrpose import DETRPoseForPoseEstimationOutput
from .graph import POSE_OUTPUTS
from .optimum_onnx import register_with_optimum

register_with_optimum()


@dataclass
class DETRPosePoses(ModelOutput):
    """The poses in a batch of images, best first, as many per image as the model has queries.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_queries)`): Probability of the label.
        labels (`torch.Tensor` of shape `(batch_size, num_queries)`): Class of the pose.
        keypoints (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2)`): x, y in pixels.
        keypoint_scores (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints)`):
            The keypoint similarity that the model expects of each keypoint.
        boxes (`torch.Tensor` of shape `(batch_size, num_queries, 4)`): x1, y1, x2, y2 in pixels, around the keypoints.
    """

    scores: torch.FloatTensor | None = None
    labels: torch.LongTensor | None = None
    keypoints: torch.FloatTensor | None = None
    keypoint_scores: torch.FloatTensor | None = None
    boxes: torch.FloatTensor | None = None


class ORTDETRPoseForPoseEstimation(ORTModelForCustomTasks):
    """DETRPose executed by ONNX Runtime.

    Load it from a folder that `optimum-cli export onnx` wrote, with `provider="CPUExecutionProvider"` (the default),
    `"CUDAExecutionProvider"` or `"TensorrtExecutionProvider"` and, optionally, `provider_options`. A folder without an
    ONNX file is exported on the fly.

    Example:

    ```python
    >>> from transformers import AutoImageProcessor, pipeline
    >>> from transformers_detrpose.deployment import ORTDETRPoseForPoseEstimation

    >>> model = ORTDETRPoseForPoseEstimation.from_pretrained("detrpose-l-onnx", provider="CPUExecutionProvider")
    >>> image_processor = AutoImageProcessor.from_pretrained("detrpose-l-onnx")
    >>> pose_estimator = pipeline("keypoint-detection", model=model, image_processor=image_processor)
    ```
    """

    auto_model_class = AutoModelForKeypointDetection
    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: torch.Tensor | np.ndarray,
        target_sizes: torch.Tensor | np.ndarray | None = None,
    ) -> DETRPoseForPoseEstimationOutput | DETRPosePoses:
        """Finds the poses in a batch of images.

        Args:
            pixel_values: (batch, 3, height, width), RGB in [0, 1]; of the model's size unless it was exported for any.
            target_sizes: (batch, 2), height and width of each image in pixels, for a model exported as "poses".

        Returns:
            `DETRPoseForPoseEstimationOutput` with `logits`, `pred_keypoints` and, with FDR heads, `pred_keypoint_std`,
            or [`DETRPosePoses`] of a model exported as "poses". Arrays for arrays, tensors for tensors.

        Raises:
            ValueError: if `target_sizes` is missing or superfluous.
        """
        has_poses = set(POSE_OUTPUTS) <= set(self.output_names)
        if has_poses != (target_sizes is not None):
            word = "needs" if has_poses else "takes no"
            raise ValueError(f"{self.path} {word} `target_sizes`: whether it does was chosen when it was exported.")
        if has_poses:
            return DETRPosePoses(**super().forward(pixel_values=pixel_values, target_sizes=target_sizes))
        return DETRPoseForPoseEstimationOutput(**super().forward(pixel_values=pixel_values))
