"""Models small enough for tests, with all parts of the real ones, and labels for them."""

import torch

from transformers_detrpose import DETRPoseConfig, KeypointSchema

TINY_BACKBONE = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 4, 8],
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [4, 4, 8, 8],
    "stage_out_channels": [8, 16, 16, 32],
    "hidden_sizes": [8, 16, 16, 32],
    "embedding_size": 8,
    "depths": [1, 1, 1, 1],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "use_learnable_affine_block": True,
    "out_features": ["stage3", "stage4"],
}


def tiny_config(num_keypoints=3, **fields):
    """A configuration with every part of the network, small enough for a test."""
    schema = KeypointSchema(names=tuple(f"keypoint_{index}" for index in range(num_keypoints)))
    fields = {"d_model": 32, "decoder_layers": 2, "num_queries": 7, "lqe_hidden_dim": 8, **fields}
    fields = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_attention_heads": 4, **fields}
    return DETRPoseConfig.from_variant("n", skeleton=schema, **fields)


def tiny_ecpose_config(num_keypoints=3, **fields):
    """The same for ECPose."""
    backbone = {"model_type": "ecvit", "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3}
    backbone |= {"num_attention_heads": 2, "projection_size": 32, "out_features": ["stage1", "stage2", "stage3"]}
    names = tuple(f"keypoint_{index}" for index in range(num_keypoints))
    schema = fields.pop("keypoint_schema", KeypointSchema(names=names))
    fields = {"backbone_config": backbone, "d_model": 32, "decoder_layers": 2, "num_queries": 7, **fields}
    fields = {"lqe_hidden_dim": 8, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "hidden_expansion": 0.5, **fields}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return DETRPoseConfig.from_variant("ecpose-s", skeleton=schema, **{**heads, **fields})


def make_labels(config, counts, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for count in counts:
        keypoints = torch.rand(count, config.num_keypoints, 3, generator=generator)
        keypoints[..., 2] = 2
        class_labels = torch.randint(config.num_labels, (count,), generator=generator)
        image = {"class_labels": class_labels, "keypoints": keypoints, "area": torch.full((count,), 0.1)}
        labels.append({name: values.to(device) for name, values in image.items()})
    return labels


def noisy(model, scale=0.05):
    """Changes every parameter: heads initialized to zero would hide the layers before them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model
