"""DETRPose for Hugging Face transformers. Importing this package registers its classes with transformers' Auto classes.

Source: "DETRPose: Real-time end-to-end transformer model for multi-person pose estimation", arXiv 2506.13027.
"""

import importlib
from typing import TYPE_CHECKING

from .configuration_detrpose import DETRPoseConfig
from .configuration_ecvit import ECViTConfig
from .image_processing_detrpose import DETRPoseImageProcessor
from .keypoint_confidence import expected_keypoint_similarity
from .keypoint_schemas import COCO_PERSON, CROWDPOSE_PERSON, ClassKeypoints, KeypointSchema, unite_schemas
from .modeling_detrpose import (
    DETRPoseForPoseEstimation,
    DETRPoseForPoseEstimationOutput,
    DETRPoseModel,
    DETRPoseModelOutput,
    DETRPosePreTrainedModel,
)
from .modeling_ecvit import ECViTBackbone, ECViTPreTrainedModel
from .pipeline_keypoint_detection import KeypointDetectionPipeline
from .registration import register_with_transformers

if TYPE_CHECKING:
    from .data import read_coco_categories
    from .visualization import draw_poses, to_supervision

__version__ = "0.1.0.dev0"

__all__ = [
    "COCO_PERSON",
    "CROWDPOSE_PERSON",
    "ClassKeypoints",
    "DETRPoseConfig",
    "DETRPoseForPoseEstimation",
    "DETRPoseForPoseEstimationOutput",
    "DETRPoseImageProcessor",
    "DETRPoseModel",
    "DETRPoseModelOutput",
    "DETRPosePreTrainedModel",
    "ECViTBackbone",
    "ECViTConfig",
    "ECViTPreTrainedModel",
    "KeypointDetectionPipeline",
    "KeypointSchema",
    "draw_poses",
    "expected_keypoint_similarity",
    "read_coco_categories",
    "to_supervision",
    "unite_schemas",
]


# Names that are slow to import and rarely needed → the module that defines them.
_IMPORTED_LATER = {"draw_poses": ".visualization", "read_coco_categories": ".data", "to_supervision": ".visualization"}


def __getattr__(name: str):
    """Imports a function on first access."""
    if name in _IMPORTED_LATER:
        return getattr(importlib.import_module(_IMPORTED_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_with_transformers()
