"""Batch norms with fixed statistics and parameters, and the initial values of norms."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


class DETRPoseFrozenBatchNorm2d(FrozenBatchNorm2d):
    """A frozen batch norm that preserves half precision, unlike torchvision's, which returns float32."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        bias = self.bias - self.running_mean * scale
        scale, bias = (x.to(hidden_state.dtype)[:, None, None] for x in (scale, bias))
        return hidden_state * scale + bias


def freeze_batch_norms(module: nn.Module):
    """Replaces all batch norms in `module` with frozen ones."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, DETRPoseFrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            freeze_batch_norms(child)


def init_norm(norm: nn.BatchNorm2d | nn.LayerNorm):
    """Sets a norm's parameters and statistics to their initial values, in place."""
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    if isinstance(norm, nn.BatchNorm2d):
        nn.init.zeros_(norm.running_mean)
        nn.init.ones_(norm.running_var)
        nn.init.zeros_(norm.num_batches_tracked)
