"""Registers DETRPose with transformers' Auto classes and `pipeline`, and saves its code with models."""

import logging

import transformers

from .configuration_detrpose import DETRPoseConfig
from .configuration_ecvit import ECViTConfig
from .image_processing_detrpose import DETRPoseImageProcessor
from .modeling_detrpose import DETRPoseForPoseEstimation, DETRPoseModel
from .modeling_ecvit import ECViTBackbone
from .pipeline_keypoint_detection import register_pipeline


def register_with_transformers():
    """Registers the classes of this package with transformers; repeated calls change nothing."""
    transformers.AutoConfig.register(DETRPoseConfig.model_type, DETRPoseConfig, exist_ok=True)
    transformers.AutoConfig.register(ECViTConfig.model_type, ECViTConfig, exist_ok=True)
    transformers.AutoBackbone.register(ECViTConfig, ECViTBackbone, exist_ok=True)
    transformers.AutoModel.register(DETRPoseConfig, DETRPoseModel, exist_ok=True)
    transformers.AutoModelForKeypointDetection.register(DETRPoseConfig, DETRPoseForPoseEstimation, exist_ok=True)
    if hasattr(transformers, "AutoModelForPoseEstimation"):  # transformers 5
        transformers.AutoModelForPoseEstimation.register(DETRPoseConfig, DETRPoseForPoseEstimation, exist_ok=True)
    transformers.AutoImageProcessor.register(
        DETRPoseConfig, fast_image_processor_class=DETRPoseImageProcessor, exist_ok=True
    )
    logging.getLogger("transformers.models.auto.image_processing_auto").addFilter(_is_worth_logging)
    register_pipeline()

    # Saved folders contain the code, so that `trust_remote_code=True` loads them where this package is not installed.
    DETRPoseConfig.register_for_auto_class()
    ECViTConfig.register_for_auto_class()
    ECViTBackbone.register_for_auto_class("AutoBackbone")
    DETRPoseModel.register_for_auto_class("AutoModel")
    DETRPoseForPoseEstimation.register_for_auto_class("AutoModelForKeypointDetection")
    DETRPoseImageProcessor.register_for_auto_class("AutoImageProcessor")


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Returns False for transformers 4's warning about image processors whose class name does not end in "Fast".

    It recommends `use_fast=True`, but this image processor uses torchvision already, is named as in transformers 5, and
    has no other version.
    """
    return not record.getMessage().startswith("Using a slow image processor as `use_fast` is unset")
