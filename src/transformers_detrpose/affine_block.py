"""The learnable affine step of small HGNetV2 backbones."""

import torch
from torch import nn
from transformers.models.hgnet_v2.modeling_hgnet_v2 import HGNetV2LearnableAffineBlock


class DETRPoseLearnableAffineBlock(HGNetV2LearnableAffineBlock):
    """An affine step that preserves half precision under autocast, unlike transformers', which returns float32."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        scale, bias = (x.to(hidden_state.dtype) for x in (self.scale, self.bias))
        return scale * hidden_state + bias


def replace_affine_blocks(module: nn.Module):
    """Replaces all affine steps in `module` with new ones that preserve half precision."""
    for name, child in module.named_children():
        if isinstance(child, HGNetV2LearnableAffineBlock):
            setattr(module, name, DETRPoseLearnableAffineBlock())
        else:
            replace_affine_blocks(child)
