"""Replacements for the modules of a trained model: the same outputs in fewer or faster operations.

Each class is built from the trained module that it replaces and reuses its parts. Most flatten tokens to one axis where
these do not interact, so that a linear layer is exported as a single operator.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..hybrid_encoder import DETRPoseHybridEncoder
from ..modeling_detrpose import MAX_ACTIVATION, DETRPoseIntegral, DETRPoseQualityHead
from .folding import Constant, join_linears, make_linear, split_pointwise_conv
from .sampling import FeatureTable, bilinear_gather, sample_maps

Softmax = Callable[[torch.Tensor], torch.Tensor]


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Returns the softmax over the last axis, in float32."""
    return logits.softmax(dim=-1, dtype=torch.float32)


def written_out_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Computes [`softmax`]; on CPUs two to four times as fast over so few values."""
    logits = logits.float()
    exponentials = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
    return exponentials.div_(exponentials.sum(dim=-1, keepdim=True))


class PairwiseMaximum(nn.Module):
    """Max pooling over 2x2 windows with stride 1, without the indices that PyTorch's version also computes."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        rows = torch.maximum(hidden_state[:, :, :-1], hidden_state[:, :, 1:])
        return torch.maximum(rows[..., :-1], rows[..., 1:])


class SplitFusionBlock(nn.Module):
    """A fusion block whose first convolution is split by its two inputs and the two halves of its output.

    The smaller feature map is upsampled after its part of the convolution, which then costs a quarter, and no output is
    split.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        conv, self.activation = block.conv1
        self.conv1_parts = nn.ModuleList(map(nn.ModuleList, split_pointwise_conv(conv)))
        self.upsample = block.upsample
        self.csp1, self.conv2, self.csp2, self.conv3 = block.csp1, block.conv2, block.csp2, block.conv3
        self.conv4 = block.conv4

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        halves = [
            self.activation(self.upsample(conv(first)) + other_conv(second)) for conv, other_conv in self.conv1_parts
        ]
        stage1 = self.conv2(self.csp1(halves[1]))
        stage2 = self.conv3(self.csp2(stage1))
        return self.conv4(torch.cat((*halves, stage1, stage2), dim=1))


class WholeFusionBlock(nn.Module):
    """A fusion block by sum that concatenates the output of its first convolution as a whole, not its two halves."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.upsample, self.conv1, self.conv4 = block.upsample, block.conv1, block.conv4
        self.csp1, self.conv2, self.csp2, self.conv3 = block.csp1, block.conv2, block.csp2, block.conv3

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        halves = self.conv1(self.upsample(first) + second)
        stage1 = self.conv2(self.csp1(halves[:, halves.shape[1] // 2 :]))
        stage2 = self.conv3(self.csp2(stage1))
        return self.conv4(torch.cat((halves, stage1, stage2), dim=1))


class RowMLP(nn.Module):
    """Linear layers with activations in between, over flattened tokens."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.layers, self.activation = mlp.layers, mlp.activation

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        shape, hidden_state = (-1, *hidden_state.shape[1:-1]), hidden_state.reshape(-1, hidden_state.shape[-1])
        for layer in self.layers[:-1]:
            hidden_state = self.activation(layer(hidden_state))
        return self.layers[-1](hidden_state).view(*shape, self.layers[-1].out_features)


class PhasePositionHead(RowMLP):
    """Encodes points by one matrix product and one sine, since cos(x) = sin(x + π / 2)."""

    def __init__(self, head: nn.Module):
        super().__init__(head)
        half, device = head.num_channels // 2, head.layers[0].weight.device
        channels = torch.arange(half, device=device) // 2
        frequencies = 2 * math.pi / head.temperature ** (2 * channels.float() / half)
        # The encoding of y comes first, then that of x.
        self.frequencies = Constant(torch.stack((F.pad(frequencies, (half, 0)), F.pad(frequencies, (0, half))), dim=1))
        self.phases = Constant(torch.tensor([0.0, math.pi / 2], device=device).repeat(half))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        angles = F.linear(points.float().reshape(-1, 2), self.frequencies(), self.phases())
        sines = angles.sin().view(-1, *points.shape[1:-1], angles.shape[-1])
        return super().forward(sines.to(self.layers[0].weight.dtype))


class JointSelfAttention(nn.Module):
    """Self-attention along one axis of the tokens, with one projection for queries, keys and values.

    It uses no fused kernel, which is faster for few tokens.

    Args:
        attention: the trained attention.
        softmax: converts scores to weights.
        axis: axis of the tokens (B, Q, K + 1, D): 1 for attention across instances, 2 for attention within them.
    """

    def __init__(self, attention: nn.Module, softmax: Softmax, axis: int):
        super().__init__()
        self.head_dim, self.softmax, self.axis = attention.head_dim, softmax, axis
        self.num_heads = attention.q_proj.out_features // self.head_dim
        scale = attention.scaling
        query = make_linear(attention.q_proj.weight * scale, attention.q_proj.bias * scale)
        self.qkv_proj = join_linears(query, attention.k_proj, attention.v_proj)
        self.o_proj = attention.o_proj

    def forward(
        self, tokens: torch.Tensor, shape: tuple[int, ...], attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes attention among the tokens.

        Args:
            tokens: (B * Q * (K + 1), D).
            shape: (-1, Q, K + 1, D).
            attention_mask: (1, 1, Q, Q), added to the scores before the softmax.

        Returns:
            The attended values, shaped as the tokens, and the weights (B, others, heads, length, length).
        """
        states = self.qkv_proj(tokens).view(*shape[:-1], 3 * self.num_heads, self.head_dim)
        query, key, value = states.movedim(self.axis, 3).split(self.num_heads, dim=2)
        scores = torch.matmul(query, key.transpose(-2, -1))
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = self.softmax(scores).to(query.dtype)
        attended = torch.matmul(weights, value).transpose(2, 3).movedim(2, self.axis)
        return self.o_proj(attended.reshape(tokens.shape)), weights


class RowHybridEncoder(DETRPoseHybridEncoder):
    """The hybrid encoder for export, which moves channels last before it flattens locations: two nodes less.

    Args:
        encoder: the trained module, with its parts replaced.
    """

    def __init__(self, encoder: DETRPoseHybridEncoder):
        nn.Module.__init__(self)
        for name, part in encoder.named_children():
            setattr(self, name, part)

    def attend(self, feature_map: torch.Tensor, output_attentions: bool = False):
        channels, height, width = feature_map.shape[1:]
        tokens = feature_map.permute(0, 2, 3, 1).reshape(-1, height * width, channels)
        position = self.position(feature_map).to(tokens.dtype)
        tokens, weights = self.transformer_layer(tokens, position, output_attentions)
        return tokens.reshape(-1, height, width, channels).permute(0, 3, 1, 2), weights


class RowEncoderLayer(nn.Module):
    """The encoder's transformer layer for export: flattened locations, and one projection for queries, keys and values.

    The projected positions, added to queries and keys, are constant where the size of the image is.

    Args:
        layer: the trained layer.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        attention = layer.self_attn
        self.head_dim, self.num_heads = attention.head_dim, attention.q_proj.out_features // attention.head_dim
        scale = attention.scaling
        query = make_linear(attention.q_proj.weight * scale, attention.q_proj.bias * scale)
        self.qkv_proj = join_linears(query, attention.k_proj, attention.v_proj)
        self.o_proj = attention.o_proj
        self.self_attn_layer_norm, self.final_layer_norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.fc1, self.activation, self.fc2 = layer.fc1, layer.activation, layer.fc2

    def forward(
        self, hidden_states: torch.Tensor, position: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, length, channels = hidden_states.shape
        rows, heads = hidden_states.reshape(-1, channels), (-1, length, 3 * self.num_heads, self.head_dim)
        located = F.pad(F.linear(position, self.qkv_proj.weight[: 2 * channels]), (0, channels))
        states = (self.qkv_proj(rows).view(heads) + located.view(heads[1:])).transpose(1, 2)
        query, key, value = states.split(self.num_heads, dim=1)
        weights = softmax(torch.matmul(query, key.transpose(-2, -1))).to(value.dtype)
        attended = torch.matmul(weights, value).transpose(1, 2).reshape(-1, channels)
        rows = self.self_attn_layer_norm(rows + self.o_proj(attended))
        rows = self.final_layer_norm(rows + self.fc2(self.activation(self.fc1(rows))))
        return rows.view(-1, length, channels), weights


class JointDeformableAttention(nn.Module):
    """Deformable attention with one projection for offsets and weights; subclasses sample the values.

    Args:
        attention: the trained attention.
        softmax: converts logits to weights.
    """

    def __init__(self, attention: nn.Module, softmax: Softmax):
        super().__init__()
        self.softmax = softmax
        self.num_heads = attention.num_heads
        self.samples_per_head = attention.num_levels * attention.num_points
        self.num_samples = self.num_heads * self.samples_per_head
        offsets = make_linear(*map(self.arrange_offsets, attention.sampling_offsets.parameters()))
        self.joint_proj = join_linears(offsets, attention.attention_weights)

    def arrange_offsets(self, rows: torch.Tensor) -> torch.Tensor:
        """Reorders the rows of the offset projection, which alternate between x and y, as the subclass needs them."""
        return rows

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the offsets (N, 2 * samples), in float32, and the weights (N, H, levels * P) of N tokens."""
        projected = self.joint_proj(hidden_states.reshape(-1, hidden_states.shape[-1]))
        offsets, logits = projected.split((2 * self.num_samples, self.num_samples), dim=-1)
        return offsets.float(), self.softmax(logits.reshape(-1, self.num_heads, self.samples_per_head))


class MapAttention(JointDeformableAttention):
    """Samples each feature map by one GridSample, which is best for ONNX Runtime."""

    def forward(self, hidden_states, reference_points, *values):
        num_queries, num_tokens, d_model = hidden_states.shape[1:]
        row = (-1, num_queries * num_tokens)
        offsets, weights = self.project(hidden_states)
        offsets = offsets.reshape(*row, self.num_heads, self.samples_per_head, 2)
        points = reference_points.float().reshape(*row, 2)
        mixed = sample_maps(values, points, offsets, weights.view(*row, *weights.shape[1:]))
        mixed = mixed.reshape(-1, num_queries, num_tokens, d_model).to(hidden_states.dtype)
        return mixed, weights.view(-1, num_queries, num_tokens, *weights.shape[1:])


class TableAttention(JointDeformableAttention):
    """Samples one table of all feature maps, with the x of all samples before the y."""

    def arrange_offsets(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat((rows[::2], rows[1::2]))

    def forward(self, hidden_states, reference_points, table):
        num_queries, num_tokens, d_model = hidden_states.shape[1:]
        row = (-1, num_queries * num_tokens)
        offsets, weights = self.project(hidden_states)
        offsets = offsets.reshape(*row, 2, self.num_heads, self.samples_per_head)
        points = reference_points.float().reshape(*row, 2)
        mixed = table.mix(points, offsets, weights.view(*row, *weights.shape[1:]))
        mixed = mixed.reshape(-1, num_queries, num_tokens, d_model).to(hidden_states.dtype)
        return mixed, weights.view(-1, num_queries, num_tokens, *weights.shape[1:])


class FeatureTables(nn.Module):
    """Makes the table that [`TableAttention`] samples.

    Args:
        values: the trained module, which has no weights.
        num_heads: attention heads, H.
        num_samples: samples per head, level and point, P.
        read: computes weighted sums of rows of the table, `look_up` or `gather`.
    """

    def __init__(self, values: nn.Module, num_heads: int, num_samples: int, read: Callable):
        super().__init__()
        self.num_heads, self.num_samples, self.read = num_heads, num_samples, read

    def forward(self, feature_maps: list[torch.Tensor]) -> list[FeatureTable]:
        return [FeatureTable(feature_maps, self.num_heads, self.num_samples, self.read)]


class RowDecoderLayer(nn.Module):
    """A decoder layer with joint projections and flattened tokens.

    Args:
        layer: the trained layer, whose cross-attention has already been replaced.
        softmax: converts scores to weights.
    """

    def __init__(self, layer: nn.Module, softmax: Softmax):
        super().__init__()
        self.within_attn = JointSelfAttention(layer.within_attn, softmax, axis=2)
        self.within_attn_layer_norm = layer.within_attn_layer_norm
        self.across_attn = JointSelfAttention(layer.across_attn, softmax, axis=1)
        self.across_attn_layer_norm = layer.across_attn_layer_norm
        self.cross_attn, self.gate = layer.cross_attn, layer.gate
        self.fc1, self.activation, self.fc2 = layer.fc1, layer.activation, layer.fc2
        self.final_layer_norm = layer.final_layer_norm

    def forward(
        self, hidden_states, position, reference_points, attention_mask, *values, output_attentions=False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        shape, row = (-1, *hidden_states.shape[1:]), (-1, hidden_states.shape[-1])
        tokens = hidden_states.reshape(row)
        attended, within = self.within_attn(tokens, shape)
        tokens = self.within_attn_layer_norm(tokens + attended)
        attended, across = self.across_attn(tokens, shape, attention_mask)
        tokens = self.across_attn_layer_norm(tokens + attended) + position.reshape(row)
        attended, cross = self.cross_attn(tokens.view(shape), reference_points, *values)
        tokens = self.gate(tokens, attended.reshape(row))
        update = self.fc2(self.activation(self.fc1(tokens)))
        tokens = self.final_layer_norm((tokens + update).clamp(-MAX_ACTIVATION, MAX_ACTIVATION))
        return tokens.view(shape), (within, across, cross)


class ConstantIntegral(DETRPoseIntegral):
    """Converts distributions to offsets, with precomputed bin offsets.

    Args:
        integral: the trained module.
        softmax: converts logits to probabilities.
        device: the model's device.
    """

    def __init__(self, integral: DETRPoseIntegral, softmax: Softmax, device: torch.device):
        super().__init__(integral.config)
        self.softmax = softmax
        self.offsets = Constant(integral.bin_offsets(device))

    def bin_offsets(self, device: torch.device) -> torch.Tensor:
        return self.offsets()

    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = self.softmax(logits.view(-1, *logits.shape[1:-1], 2, logits.shape[-1] // 2))
        return probabilities @ self.offsets(), probabilities


class GatheringQualityHead(DETRPoseQualityHead):
    """Pose-LQE that samples the feature map only by gathers and arithmetic."""

    read = staticmethod(bilinear_gather)

    def __init__(self, head: DETRPoseQualityHead):
        nn.Module.__init__(self)
        self.top_k, self.mlp = head.top_k, head.mlp
