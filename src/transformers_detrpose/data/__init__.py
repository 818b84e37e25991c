"""COCO-format datasets, augmentation and batches, for training and evaluation. Needs torchvision 0.23 or newer."""

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
    to_labels,
    train_dataloader,
)
from .checks import DatasetReport, check_dataset
from .people import parse_annotations
from .pose_datasets import CocoPoseDataset, HubPoseDataset, PoseDataset

__all__ = [
    "Augmentation",
    "CocoPoseDataset",
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
    "parse_annotations",
    "phase_at",
    "to_device",
    "to_labels",
    "train_dataloader",
]
