"""The published models as data: what differs between their sizes, and their backbones."""

from typing import Any

from .field_checks import list_of_numbers

# Stage plans of HGNetV2: stem channels, then per stage input, middle and output channels, blocks and layers.
_HGNET_PLANS = {
    "B0": ((3, 16, 16), (16, 64, 256, 512), (16, 32, 64, 128), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "B2": ((3, 24, 32), (32, 96, 384, 768), (32, 64, 128, 256), (96, 384, 768, 1536), (1, 1, 3, 1), 4),
    "B4": ((3, 32, 48), (48, 128, 512, 1024), (48, 96, 192, 384), (128, 512, 1024, 2048), (1, 1, 3, 1), 6),
    "B5": ((3, 32, 64), (64, 128, 512, 1024), (64, 128, 256, 512), (128, 512, 1024, 2048), (1, 2, 5, 2), 6),
}

# Sizes of ECViT: channels, feed-forward width, heads, projected feature maps and their channels.
_ECVIT_PLANS = {
    "ecvit-t": (192, 768, 3, ("stage3",), None),
    "ecvit-t+": (256, 1024, 4, ("stage3",), None),
    "ecvit-s": (384, 1536, 6, ("stage1", "stage2", "stage3"), 256),
    "ecvit-s+": (384, 2304, 6, ("stage1", "stage2", "stage3"), 256),
}

# What ECPose (arXiv 2603.18739) has otherwise than DETRPose, in all sizes.
_ECPOSE: dict[str, Any] = {
    "freeze_backbone_batch_norms": False,
    "encoder_activation_function": "silu",
    "encoder_position_encoding": "grid",
    "encoder_position_temperature": 10000.0,
    "use_input_projections": False,
    "use_lateral_activation": False,
    "fusion_operation": "sum",
    "use_joint_csp_convolution": True,
    "use_trailing_convolutions": False,
    "convolution_initialization": "default",
    "decoder_layers": 4,
}

# What differs between the published sizes (paper, table 1); everything else is the default of `DETRPoseConfig`.
VARIANTS: dict[str, dict[str, Any]] = {
    "n": {
        "backbone": "B0",
        "feature_strides": (16, 32),
        "d_model": 128,
        "encoder_ffn_dim": 512,
        "hidden_expansion": 0.34,
        "depth_mult": 0.5,
        "decoder_layers": 3,
        "decoder_ffn_dim": 512,
        "decoder_n_points": 6,
    },
    "s": {"backbone": "B0", "hidden_expansion": 0.5, "depth_mult": 0.34, "decoder_layers": 3},
    "m": {"backbone": "B2", "depth_mult": 0.67, "decoder_layers": 4},
    "l": {"backbone": "B4"},
    "x": {"backbone": "B5", "d_model": 384, "encoder_ffn_dim": 2048, "reg_scale": 8.0},
    "ecpose-s": {
        **_ECPOSE,
        "backbone": "ecvit-t",
        "d_model": 192,
        "encoder_ffn_dim": 512,
        "hidden_expansion": 0.34,
        "depth_mult": 0.67,
        "decoder_layers": 3,
        "decoder_ffn_dim": 512,
    },
    "ecpose-m": {
        **_ECPOSE,
        "backbone": "ecvit-t+",
        "encoder_ffn_dim": 512,
        "hidden_expansion": 0.75,
        "depth_mult": 0.67,
        "decoder_ffn_dim": 512,
    },
    "ecpose-l": {**_ECPOSE, "backbone": "ecvit-s", "hidden_expansion": 0.75},
    "ecpose-x": {
        **_ECPOSE,
        "backbone": "ecvit-s+",
        "encoder_ffn_dim": 2048,
        "hidden_expansion": 1.5,
        "decoder_ffn_dim": 2048,
    },
}

# The variants that are trained from D-FINE and published for both skeletons; the others are ECPose's.
DETRPOSE_VARIANTS = tuple(variant for variant in VARIANTS if not variant.startswith("ecpose-"))


def model_name(variant: str) -> str:
    """Returns the name of a published model, such as "DETRPose-L" or "ECPose-L"."""
    family, _, size = variant.rpartition("-")
    return f"{'ECPose' if family else 'DETRPose'}-{size.upper()}"


def hgnet_config(plan: str, feature_strides=(8, 16, 32)) -> dict[str, Any]:
    """Returns the transformers configuration of an HGNetV2 as a dictionary.

    Args:
        plan: "B0", "B2", "B4" or "B5".
        feature_strides: strides of the feature maps to return, finest first, from 4, 8, 16 and 32.

    Raises:
        ValueError: if there are no such feature maps.
    """
    stem_channels, in_channels, mid_channels, out_channels, num_blocks, num_layers = _HGNET_PLANS[plan]
    stage_of_stride = {4: "stage1", 8: "stage2", 16: "stage3", 32: "stage4"}
    feature_strides = list_of_numbers("feature_strides", feature_strides)
    if feature_strides != [stride for stride in stage_of_stride if stride in feature_strides]:
        raise ValueError(
            f"`feature_strides` of HGNetV2 must be out of 4, 8, 16 and 32, finest first, but got {feature_strides}."
        )
    stages = {
        "stage_in_channels": in_channels,
        "stage_mid_channels": mid_channels,
        "stage_out_channels": out_channels,
        "hidden_sizes": out_channels,
        "depths": num_blocks,
        "stage_num_blocks": num_blocks,
        "stage_numb_of_layers": [num_layers] * 4,
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, True, True],
        "stage_kernel_size": [3, 3, 5, 5],
    }
    # Stages after the last one returned would be wasted computation.
    num_stages = sum(stride <= max(feature_strides, default=32) for stride in stage_of_stride)
    return {
        "model_type": "hgnet_v2",
        "stem_channels": list(stem_channels),
        "embedding_size": stem_channels[-1],
        **{name: list(values[:num_stages]) for name, values in stages.items()},
        "use_learnable_affine_block": plan in ("B0", "B2"),
        "out_features": [stage_of_stride[stride] for stride in feature_strides],
    }


def ecvit_config(plan: str) -> dict[str, Any]:
    """Returns the configuration of an ECViT as a dictionary; `plan` is a key of `_ECVIT_PLANS`."""
    channels, width, heads, projected_stages, projection_size = _ECVIT_PLANS[plan]
    return {
        "model_type": "ecvit",
        "hidden_size": channels,
        "intermediate_size": width,
        "num_attention_heads": heads,
        "projected_stages": list(projected_stages),
        "projection_size": projection_size,
        "out_features": ["stage1", "stage2", "stage3"],
    }


def backbone_plan(plan: str, feature_strides=(8, 16, 32)) -> dict[str, Any]:
    """Returns the configuration of a published backbone, see [`hgnet_config`] and [`ecvit_config`]."""
    return ecvit_config(plan) if plan in _ECVIT_PLANS else hgnet_config(plan, feature_strides)
