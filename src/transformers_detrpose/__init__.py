"""DETRPose for Hugging Face transformers. Importing this package registers its classes with transformers' Auto classes.

Source: "DETRPose: Real-time end-to-end transformer model for multi-person pose estimation", arXiv 2506.13027.
"""

import transformers

from .configuration_detrpose import DETRPoseConfig
from .image_processing_detrpose import DETRPoseImageProcessor
from .keypoint_schemas import KeypointSchema
from .modeling_detrpose import (
    DETRPoseForPoseEstimation,
    DETRPoseForPoseEstimationOutput,
    DETRPoseModel,
    DETRPoseModelOutput,
    DETRPosePreTrainedModel,
)
from .pipeline_keypoint_detection import KeypointDetectionPipeline, register_pipeline

__version__ = "0.1.0.dev0"

__all__ = [
    "DETRPoseConfig",
    "DETRPoseForPoseEstimation",
    "DETRPoseForPoseEstimationOutput",
    "DETRPoseImageProcessor",
    "DETRPoseModel",
    "DETRPoseModelOutput",
    "DETRPosePreTrainedModel",
    "KeypointDetectionPipeline",
    "KeypointSchema",
]

transformers.AutoConfig.register(DETRPoseConfig.model_type, DETRPoseConfig, exist_ok=True)
transformers.AutoModel.register(DETRPoseConfig, DETRPoseModel, exist_ok=True)
transformers.AutoModelForKeypointDetection.register(DETRPoseConfig, DETRPoseForPoseEstimation, exist_ok=True)
if hasattr(transformers, "AutoModelForPoseEstimation"):  # from 5.x on
    transformers.AutoModelForPoseEstimation.register(DETRPoseConfig, DETRPoseForPoseEstimation, exist_ok=True)
transformers.AutoImageProcessor.register(
    DETRPoseConfig, fast_image_processor_class=DETRPoseImageProcessor, exist_ok=True
)
register_pipeline()

# Saved folders carry the code along, so that `trust_remote_code=True` loads them where this package is not installed.
DETRPoseConfig.register_for_auto_class()
DETRPoseModel.register_for_auto_class("AutoModel")
DETRPoseForPoseEstimation.register_for_auto_class("AutoModelForKeypointDetection")
DETRPoseImageProcessor.register_for_auto_class("AutoImageProcessor")
