"""A folder with a tiny model, for the tests of commands that load one."""

from pathlib import Path

import torch

from tiny import TINY_BACKBONE
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor

SIZE = 64
NUM_QUERIES = 3


def tiny_config() -> DETRPoseConfig:
    """Returns the configuration of a tiny model of COCO's skeleton."""
    return DETRPoseConfig(
        backbone_config=TINY_BACKBONE,
        feature_strides=(16, 32),
        d_model=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=1,
        num_queries=NUM_QUERIES,
    )


def save_tiny_model(folder: Path) -> Path:
    """Writes a tiny model and its image processor, and returns the folder. All weights are random: heads initialized to
    zero would put all keypoints of a pose in one place."""
    config = tiny_config()
    model = DETRPoseForPoseEstimation(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "backbone" not in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    model.save_pretrained(folder)
    processor = DETRPoseImageProcessor(size={"height": SIZE, "width": SIZE}, keypoint_schema=config.keypoint_schema)
    processor.save_pretrained(folder)
    return folder
