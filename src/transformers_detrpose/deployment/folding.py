"""Folding trained layers into fewer ones with the same outputs, for deployment: pure functions of layers."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from ..sampling import is_exporting


@torch.no_grad()
def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Returns one convolution with bias that does what a convolution and the batch norm after it do."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scaled_conv(conv, scale, norm.bias - norm.running_mean * scale)


@torch.no_grad()
def scaled_conv(conv: nn.Conv2d, scale: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """Returns a copy of a convolution with scaled weights, one scale per output channel, and another bias."""
    scaled = copy.deepcopy(conv)
    scaled.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
    scaled.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return scaled


@torch.no_grad()
def fold_affine(conv: nn.Conv2d, scale: torch.Tensor, bias: torch.Tensor) -> tuple[nn.Conv2d, nn.Module]:
    """Folds the affine step after a ReLU: s · max(z, 0) + b is s · z + b, bounded by b, from below or with s < 0 above.

    Args:
        conv: the convolution with bias before the ReLU.
        scale: of the affine step, (1,).
        bias: of the affine step, (1,).

    Returns:
        A convolution and an activation that do what convolution, ReLU and affine step do.
    """
    # On the meta device, where models are only counted, there are no numbers to look at.
    value, is_rising = (0.0, True) if scale.is_meta else (bias.item(), bool(scale > 0))
    bound = {"min" if is_rising else "max": value}
    return scaled_conv(conv, scale.expand(conv.out_channels), conv.bias * scale + bias), Clamp(**bound)


class Clamp(nn.Module):
    """Bounds its input from below or above, in place."""

    def __init__(self, min: float | None = None, max: float | None = None):
        super().__init__()
        self.min, self.max = min, max

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return hidden_state.clamp_(min=self.min, max=self.max)


@torch.no_grad()
def split_pointwise_conv(conv: nn.Conv2d) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """Splits a 1x1 convolution of two joined maps of as many channels.

    Returns:
        For the first and for the second half of the output channels two convolutions, of the first and of the second
        map, whose outputs are to be added.
    """
    parts = []
    for weight, bias in zip(conv.weight.chunk(2), conv.bias.chunk(2), strict=True):
        pair = [nn.Conv2d(x.shape[1], x.shape[0], 1, bias=False, device="meta") for x in weight.chunk(2, dim=1)]
        for part, part_weight in zip(pair, weight.chunk(2, dim=1), strict=True):
            part.weight = nn.Parameter(part_weight.clone(), requires_grad=False)
        pair[1].bias = nn.Parameter(bias.clone(), requires_grad=False)
        parts.append(tuple(pair))
    return parts


class PairwiseMaximum(nn.Module):
    """Max pooling over windows of 2x2 with stride 1, without the indices that PyTorch's own computes as well."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        if is_exporting():
            return F.max_pool2d(hidden_state, kernel_size=2, stride=1)
        rows = torch.maximum(hidden_state[:, :, :-1], hidden_state[:, :, 1:])
        return torch.maximum(rows[..., :-1], rows[..., 1:])


@torch.no_grad()
def join_linears(*linears: nn.Linear) -> nn.Linear:
    """Returns one layer with the outputs of several layers of one input, one after the other."""
    weight, bias = torch.cat([x.weight for x in linears]), torch.cat([x.bias for x in linears])
    joined = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    joined.weight, joined.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return joined
