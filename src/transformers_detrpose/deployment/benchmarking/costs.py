"""Counts of parameters and floating-point operations."""

import re

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...modeling_detrpose import DETRPoseForPoseEstimation


def count_costs(model: DETRPoseForPoseEstimation, size: int) -> tuple[int, int, int]:
    """Counts parameters, and operations for one square image.

    Args:
        model: a fused model.
        size: height and width of the image in pixels.

    Returns:
        The parameters, the operations, and the operations that counters find in the official model. For DETRPose, these
        are without the attention across instances, a fused operation there that PyTorch's counter misses, and with a
        convolution in the encoder that runs after upsampling, not before. For ECPose, they are without the attention of
        ECViT, which the published numbers leave out.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=model.device))
    counts = counter.get_flop_counts()
    total, parts = counter.get_total_flops(), {name: sum(operators.values()) for name, operators in counts.items()}
    across = sum(count for name, count in parts.items() if name.endswith(".across_attn"))
    quarter = sum(count for name, count in parts.items() if re.search(r"fpn_blocks\.\d+\.conv1_parts\.\d\.0$", name))
    projections = torch.ops.aten.addmm
    backbone = sum(
        parts[name] - counts[name].get(projections, 0) for name in parts if re.search(r"\.backbone\..*self_attn$", name)
    )
    return sum(parameter.numel() for parameter in model.parameters()), total, total - (backbone or across) + 3 * quarter
