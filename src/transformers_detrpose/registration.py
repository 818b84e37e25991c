"""Makes transformers' Auto classes and `pipeline` find DETRPose, and its code travel with saved models."""

import logging

import transformers

from .configuration_detrpose import DETRPoseConfig
from .image_processing_detrpose import DETRPoseImageProcessor
from .modeling_detrpose import DETRPoseForPoseEstimation, DETRPoseModel
from .pipeline_keypoint_detection import register_pipeline


def register_with_transformers():
    """Registers the classes of this package with transformers. Doing so again changes nothing."""
    transformers.AutoConfig.register(DETRPoseConfig.model_type, DETRPoseConfig, exist_ok=True)
    transformers.AutoModel.register(DETRPoseConfig, DETRPoseModel, exist_ok=True)
    transformers.AutoModelForKeypointDetection.register(DETRPoseConfig, DETRPoseForPoseEstimation, exist_ok=True)
    if hasattr(transformers, "AutoModelForPoseEstimation"):  # transformers 5
        transformers.AutoModelForPoseEstimation.register(DETRPoseConfig, DETRPoseForPoseEstimation, exist_ok=True)
    transformers.AutoImageProcessor.register(
        DETRPoseConfig, fast_image_processor_class=DETRPoseImageProcessor, exist_ok=True
    )
    logging.getLogger("transformers.models.auto.image_processing_auto").addFilter(_is_worth_logging)
    register_pipeline()

    # Saved folders carry the code along: `trust_remote_code=True` loads them where this package is not installed.
    DETRPoseConfig.register_for_auto_class()
    DETRPoseModel.register_for_auto_class("AutoModel")
    DETRPoseForPoseEstimation.register_for_auto_class("AutoModelForKeypointDetection")
    DETRPoseImageProcessor.register_for_auto_class("AutoImageProcessor")


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Keeps from the log what transformers 4 says of every processor whose class is not called "...Fast".

    It advises to set `use_fast=True` or else to expect other pixels from its version 4.52 on. Ours is a torchvision
    processor under the name that transformers 5 gives these, and there is no other.
    """
    return not record.getMessage().startswith("Using a slow image processor as `use_fast` is unset")
