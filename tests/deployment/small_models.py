"""Tiny models for the tests of deployment, with random weights and an image size that is not square."""

import torch

from tiny import TINY_BACKBONE
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, KeypointSchema

TRIANGLE = KeypointSchema(names=("top", "left", "right"), sigmas=(0.03, 0.05, 0.1))
SIZE = {"height": 64, "width": 96}


def make_model(**fields) -> DETRPoseForPoseEstimation:
    torch.manual_seed(0)
    fields = {"keypoint_schema": TRIANGLE, **fields}
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_layers": 2, "num_queries": 7}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DETRPoseConfig(backbone_config=TINY_BACKBONE, feature_strides=(16, 32), **sizes, **heads, **fields)
    model = DETRPoseForPoseEstimation(config).eval()
    for parameter in model.parameters():
        # Layers that start at zero would hide errors.
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


NETWORK_OUTPUTS = ("logits", "pred_keypoints", "pred_keypoint_std")


def assert_same(found, expected, names=NETWORK_OUTPUTS, atol=1e-4):
    """Compares outputs by name, arrays or tensors."""
    assert tuple(found) == names
    for name in names:
        torch.testing.assert_close(torch.as_tensor(found[name]), expected[name], atol=atol, rtol=0)
