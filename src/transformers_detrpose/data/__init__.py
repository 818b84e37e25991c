"""Annotations, datasets, augmentation and batches, for training and evaluation.

`read_annotations` reads and validates files in COCO's and YOLO's formats; `CocoPoseDataset` and `HubPoseDataset`
provide images with their people; `check_dataset` checks all images before training; `train_dataloader` and
`evaluation_dataloader` make batches for the model.
"""

from ..instances import DataError
from ..labels import to_labels
from .annotations import CocoAnnotations, read_annotations, read_coco_categories
from .augmentation import (
    Augmentation,
    EvaluationSamples,
    Phase,
    SampleKey,
    TrainingSamples,
    paper_phases,
    phase_at,
)
from .batches import (
    PoseBatchSampler,
    collate_poses,
    evaluation_dataloader,
    multi_scale_sizes,
    to_device,
    train_dataloader,
)
from .checks import DatasetReport, check_dataset
from .pose_datasets import CocoPoseDataset, HubPoseDataset, PoseDataset
from .schema_files import read_schema

__all__ = [
    "Augmentation",
    "CocoAnnotations",
    "CocoPoseDataset",
    "DataError",
    "DatasetReport",
    "EvaluationSamples",
    "HubPoseDataset",
    "Phase",
    "PoseBatchSampler",
    "PoseDataset",
    "SampleKey",
    "TrainingSamples",
    "check_dataset",
    "collate_poses",
    "evaluation_dataloader",
    "multi_scale_sizes",
    "paper_phases",
    "phase_at",
    "read_annotations",
    "read_coco_categories",
    "read_schema",
    "to_device",
    "to_labels",
    "train_dataloader",
]
