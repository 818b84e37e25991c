"""Folding of trained layers into fewer layers with the same outputs, as pure functions.

Layers should be in float32: sums and products of half-precision weights are too inaccurate.
"""

import copy

import torch
from torch import nn


@torch.no_grad()
def scaled_conv(conv: nn.Conv2d, scale: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """Returns a copy of a convolution with weights scaled per output channel, and a new bias."""
    scaled = copy.deepcopy(conv)
    scaled.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
    scaled.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return scaled


@torch.no_grad()
def fold_affine(conv: nn.Conv2d, scale: torch.Tensor, bias: torch.Tensor) -> tuple[nn.Conv2d, nn.Module]:
    """Folds the affine step after a ReLU: s · max(z, 0) + b is s · z + b, clamped to at least b, or at most b if s < 0.

    Args:
        conv: the convolution with bias before the ReLU.
        scale: of the affine step, (1,).
        bias: of the affine step, (1,).

    Returns:
        A convolution and an activation equivalent to convolution, ReLU and affine step.
    """
    # On the meta device, where costs are counted, there are no values.
    value, is_rising = (0.0, True) if scale.is_meta else (bias.item(), bool(scale > 0))
    bound = {"min" if is_rising else "max": value}
    return scaled_conv(conv, scale.expand(conv.out_channels), conv.bias * scale + bias), Clamp(**bound)


class Clamp(nn.Module):
    """Clamps its input from below or above, in place."""

    def __init__(self, min: float | None = None, max: float | None = None):
        super().__init__()
        self.min, self.max = min, max

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return hidden_state.clamp_(min=self.min, max=self.max)


@torch.no_grad()
def split_pointwise_conv(conv: nn.Conv2d) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """Splits a 1x1 convolution of two concatenated feature maps with the same number of channels.

    Returns:
        For each half of the output channels, a convolution of the first map and one of the second, whose outputs must
        be added.
    """
    parts = []
    for weight, bias in zip(conv.weight.chunk(2), conv.bias.chunk(2), strict=True):
        pair = [nn.Conv2d(x.shape[1], x.shape[0], 1, bias=False, device="meta") for x in weight.chunk(2, dim=1)]
        for part, part_weight in zip(pair, weight.chunk(2, dim=1), strict=True):
            part.weight = nn.Parameter(part_weight.clone(), requires_grad=False)
        pair[1].bias = nn.Parameter(bias.clone(), requires_grad=False)
        parts.append(tuple(pair))
    return parts


@torch.no_grad()
def join_linears(*linears: nn.Linear) -> nn.Linear:
    """Returns one layer whose output is the concatenated outputs of several layers with the same input."""
    return make_linear(torch.cat([x.weight for x in linears]), torch.cat([x.bias for x in linears]))


@torch.no_grad()
def make_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Returns a linear layer with copies of a weight (out_features, in_features) and a bias (out_features,)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return linear


class Constant(nn.Module):
    """A precomputed tensor that moves between devices with its module, but keeps its dtype.

    Half precision is too coarse for its uses: offsets, frequencies, phases.
    """

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def _apply(self, fn, recurse=True):
        exact = self.value
        super()._apply(fn, recurse)
        self.value = exact.to(self.value.device)
        return self

    def forward(self) -> torch.Tensor:
        return self.value
