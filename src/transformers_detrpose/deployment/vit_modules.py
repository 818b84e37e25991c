"""Replacements for the modules of ECViT: the same outputs in fewer or faster operations."""

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling_ecvit import (
    ECViTAttention,
    ECViTEmbeddings,
    ECViTLayer,
    ECViTPyramid,
    Rotation,
    patch_map,
    rotate,
)
from .folding import make_linear


class PaddedEmbeddings(nn.Module):
    """The patch embedding for export: the register token is added to a zero token before the patches.

    Padding takes one node, but repeating the token for each image of a batch of any size takes seven.

    Args:
        embeddings: the trained module, with folded convolutions.
    """

    def __init__(self, embeddings: ECViTEmbeddings):
        super().__init__()
        self.register_token = embeddings.register_token
        self.convs, self.projection = embeddings.convs, embeddings.projection

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_state = pixel_values
        for conv in self.convs:
            hidden_state = conv(hidden_state)
        patches = self.projection(hidden_state).flatten(2).transpose(1, 2)
        return F.pad(patches, (0, 0, 1, 0)) + F.pad(self.register_token, (0, 0, 0, patches.shape[1]))


class RowECViTLayer(nn.Module):
    """A layer of ECViT for export: flattened tokens, queries and keys rotated together, and no fused attention.

    Args:
        layer: the trained layer.
    """

    def __init__(self, layer: ECViTLayer):
        super().__init__()
        attention = layer.self_attn
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv_proj, self.o_proj = scale_queries(attention), attention.o_proj
        self.self_attn_layer_norm, self.final_layer_norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.fc1, self.activation, self.fc2 = layer.fc1, layer.activation, layer.fc2

    def forward(
        self, hidden_states: torch.Tensor, rotation: Rotation, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, num_tokens, channels = hidden_states.shape
        rows = hidden_states.reshape(-1, channels)
        states = self.qkv_proj(self.self_attn_layer_norm(rows))
        states = states.view(-1, num_tokens, 3 * self.num_heads, self.head_dim).transpose(1, 2)
        query_key, value = states.split((2 * self.num_heads, self.num_heads), dim=1)
        query, key = rotate(query_key, rotation).split(self.num_heads, dim=1)
        weights = torch.matmul(query, key.transpose(-2, -1)).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        rows = rows + self.o_proj(torch.matmul(weights, value).transpose(1, 2).reshape(-1, channels))
        rows = rows + self.fc2(self.activation(self.fc1(self.final_layer_norm(rows))))
        return rows.view(-1, num_tokens, channels), weights


def scale_queries(attention: ECViTAttention) -> nn.Linear:
    """Returns the joint projection with scaled queries."""
    scale = attention.qkv_proj.bias.new_ones(attention.qkv_proj.out_features)
    scale[: attention.qkv_proj.in_features] = attention.scaling
    return make_linear(attention.qkv_proj.weight * scale[:, None], attention.qkv_proj.bias * scale)


class ProjectedPyramid(nn.Module):
    """A pyramid that projects the patches before it upsamples them, which costs a quarter.

    A projection, which is linear once its norm is folded, and bilinear interpolation can change places.

    Args:
        pyramid: the trained module, with folded projectors.
    """

    def __init__(self, pyramid: ECViTPyramid):
        super().__init__()
        (self.upsample, _, self.pool), (self.fine, self.middle, self.coarse) = pyramid.resizings, pyramid.projectors

    def forward(self, last_states: tuple[torch.Tensor, ...], size_hw: tuple[int, int]) -> list[torch.Tensor]:
        patches = patch_map(sum(last_states) / len(last_states), size_hw)
        return [self.upsample(self.fine(patches)), self.middle(patches), self.coarse(self.pool(patches))]
