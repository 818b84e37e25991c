"""The attention layers of DETRPose: self-attention, and deformable cross-attention to the feature maps."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """Unfused attention, which returns the weights, with the interface of transformers' attention functions."""
    scores = torch.matmul(query, key.transpose(-2, -1)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(-3, -2), weights


class DETRPoseSelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        config ([`DETRPoseConfig`]): the configuration.
        num_heads: a divisor of `d_model`.
    """

    is_causal = False

    def __init__(self, config, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = config.d_model // num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.o_proj = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Computes the attention among the tokens of each sequence.

        Args:
            hidden_states: (..., length, D).
            position: (length, D), added to queries and keys, not to values.
            attention_mask: (1, 1, length, length), added to the scores before the softmax.
            output_attentions: whether to return the weights.

        Returns:
            The attended values (..., length, D), and the weights (..., heads, length, length) or None.
        """
        located = hidden_states if position is None else hidden_states + position
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        states = self.q_proj(located), self.k_proj(located), self.v_proj(hidden_states)
        states = [x.view(shape).transpose(-3, -2) for x in states]

        # Only eager attention returns the weights and accepts any number of leading axes.
        attention = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation)
        if output_attentions or attention is None:
            attention = eager_attention_forward
        else:
            states = [x.flatten(0, -4) for x in states]
        attended, weights = attention(self, *states, attention_mask, dropout=0.0, scaling=self.scaling, is_causal=False)
        return self.o_proj(attended.reshape(hidden_states.shape)), weights


def bilinear_sample(feature_maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Samples feature maps bilinearly, with zeros outside.

    Computes in float32, as half precision is too coarse for coordinates.

    Args:
        feature_maps: (N, channels, height, width), with pixel centers at half-integers.
        points: (N, rows, columns, 2), x and y as fractions of the map.

    Returns:
        (N, channels, rows, columns), in float32.
    """
    grid = 2 * points.float() - 1
    return F.grid_sample(feature_maps.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class DETRPoseZeroLinear(nn.Linear):
    """A linear layer initialized to zero, so that it changes nothing at first."""


class DETRPoseSamplingOffsets(nn.Linear):
    """Predicts sampling offsets; initially each head has its own direction, and its points lie at growing distances."""

    def __init__(self, config):
        self.shape = (config.decoder_attention_heads, len(config.feature_strides), config.decoder_n_points, 2)
        super().__init__(config.d_model, math.prod(self.shape))

    def initial_bias(self) -> torch.Tensor:
        """Returns the offsets (x, y) of all heads, levels and points, flattened."""
        heads, _, points, _ = self.shape
        angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[:, None]
        return offsets.expand(self.shape).flatten()


class DETRPoseValues(nn.Module):
    """Returns the values of deformable attention: the encoder's feature maps, in float32 and without a projection."""

    def __init__(self, config):
        super().__init__()
        self.head_dim = config.d_model // config.decoder_attention_heads

    def forward(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Splits feature maps, each (B, D, height, width), into heads, each (B * H, D / H, height, width)."""
        return [x.float().reshape(-1, self.head_dim, *x.shape[-2:]) for x in feature_maps]


class DETRPoseDeformableAttention(nn.Module):
    """Multi-scale deformable attention: each token samples each feature map at a few points around its reference point.

    Source: Deformable DETR (arXiv 2010.04159), without value and output projections.
    """

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.decoder_attention_heads
        self.num_levels = len(config.feature_strides)
        self.num_points = config.decoder_n_points
        self.sampling_offsets = DETRPoseSamplingOffsets(config)
        self.attention_weights = DETRPoseZeroLinear(config.d_model, self.num_heads * self.num_levels * self.num_points)

    def forward(
        self, hidden_states: torch.Tensor, reference_points: torch.Tensor, *values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns weighted sums of sampled values.

        Args:
            hidden_states: (B, Q, K + 1, D).
            reference_points: (B, Q, K + 1, 2), x and y as fractions of the image.
            values: one per level, finest first, each (B * H, D / H, height, width); see [`DETRPoseValues`].

        Returns:
            The sums (B, Q, K + 1, D), and the weights (B, Q, K + 1, H, levels * points).
        """
        batch_size, num_queries, num_tokens, d_model = hidden_states.shape
        logits = self.attention_weights(hidden_states).view(*hidden_states.shape[:-1], self.num_heads, -1)
        weights = logits.softmax(dim=-1, dtype=torch.float32)
        samples = (batch_size, num_queries * num_tokens, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(hidden_states).float().view(*samples, 2)
        points = reference_points.float().reshape(batch_size, -1, 1, 1, 2)

        mixed = 0
        by_level = zip(values, offsets.unbind(3), weights.view(samples).unbind(3), strict=True)
        for value, level_offsets, level_weights in by_level:
            height, width = value.shape[-2:]
            # Offsets are in pixels of each level.
            x, y = level_offsets.unbind(-1)
            locations = points + torch.stack((x / width, y / height), dim=-1)
            sampled = bilinear_sample(value, locations.transpose(1, 2).flatten(0, 1))
            mixed = mixed + (sampled * level_weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(dim=-1)
        mixed = mixed.reshape(batch_size, d_model, -1).transpose(1, 2).reshape(hidden_states.shape)
        return mixed.to(hidden_states.dtype), weights
