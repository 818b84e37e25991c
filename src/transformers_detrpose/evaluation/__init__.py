"""Evaluation: the evaluation loop, COCO's and CrowdPose's average precision and recall, and COCO's results file.

The libraries that compute the metrics require `pip install "transformers-detrpose[train]"`, and are imported when a
metric is created.
"""

from pathlib import Path

from .coco_results import coco_records, results_writer, write_coco_results
from .keypoint_metrics import METRICS, CocoKeypoints, CrowdPoseKeypoints, KeypointMetric
from .loop import evaluate_model

# First argument of `evaluate.load`, followed by "coco" or "crowdpose".
EVALUATE_MODULE = str(Path(__file__).with_name("evaluate_module.py"))

__all__ = [
    "EVALUATE_MODULE",
    "METRICS",
    "CocoKeypoints",
    "CrowdPoseKeypoints",
    "KeypointMetric",
    "coco_records",
    "evaluate_model",
    "results_writer",
    "write_coco_results",
]
