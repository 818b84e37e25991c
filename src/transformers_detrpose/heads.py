"""Parts of the prediction heads."""

from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from .attention import DETRPoseZeroLinear


def without_autocast(device: torch.device):
    """Returns a context without autocast, for computations that are too inaccurate in half precision."""
    # Autocast is not available on the meta device, where costs are counted.
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


class DETRPoseOutputLinear(DETRPoseZeroLinear):
    """The last layer of a head, computed in float32, as half precision is too coarse for its predictions."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        with without_autocast(hidden_state.device):
            return F.linear(hidden_state.float(), self.weight.float(), self.bias.float())


class DETRPoseMLP(nn.Module):
    """Linear layers with activations in between."""

    def __init__(self, config, in_features, hidden_features, out_features, num_layers, last_layer=DETRPoseOutputLinear):
        super().__init__()
        sizes = [in_features, *[hidden_features] * (num_layers - 1)]
        layers = [nn.Linear(size, next_size) for size, next_size in pairwise(sizes)]
        self.layers = nn.ModuleList([*layers, last_layer(hidden_features, out_features)])
        self.activation = ACT2FN[config.decoder_activation_function]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            hidden_state = self.activation(layer(hidden_state))
        return self.layers[-1](hidden_state)
