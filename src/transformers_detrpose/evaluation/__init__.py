"""Scoring poses: average precision and recall on COCO and CrowdPose, and the results file that COCO's server takes."""

from .coco_results import coco_results, write_coco_results
from .keypoint_metrics import CocoKeypoints, CrowdPoseKeypoints, KeypointMetric, read_annotations

__all__ = [
    "CocoKeypoints",
    "CrowdPoseKeypoints",
    "KeypointMetric",
    "coco_results",
    "read_annotations",
    "write_coco_results",
]
