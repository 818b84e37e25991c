"""DETRPose: a backbone, a hybrid encoder and a pose decoder that refines every person's keypoints at once.

Shapes are written with B batch, Q instance queries, K keypoints, D hidden size, S locations of all feature maps
together, H heads and R + 1 distribution bins. Every point is (x, y) as fractions of the image; every size is
(height, width).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import AutoBackbone, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.hgnet_v2.modeling_hgnet_v2 import (
    HGNetV2ConvLayer,
    HGNetV2Embeddings,
    HGNetV2LearnableAffineBlock,
)
from transformers.utils import ModelOutput

from .attention import DETRPoseSelfAttention, softmax
from .configuration_detrpose import DETRPoseConfig
from .denoising import DenoisingQueries, clamped_logit, make_denoising_queries
from .deployment.folding import PairwiseMaximum, fold_affine, fold_norm, join_linears, split_pointwise_conv
from .loss_detrpose import pose_estimation_loss, validate_labels
from .model_card import model_card

# transformers 4 takes along, for `trust_remote_code`, only what this file itself imports.
from .pose_targets import PoseTargets  # noqa: F401
from .sampling import FeatureTable, bilinear_gather, bilinear_sample, is_exporting, sample_maps

_BACKBONE_INITIAL_VALUES = {
    FrozenBatchNorm2d: {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0},
    HGNetV2LearnableAffineBlock: {"scale": 1.0, "bias": 0.0},
}
# The largest float16: activations beyond it would become infinite in half precision.
_MAX_ACTIVATION = 65504.0


@dataclass
class DETRPoseModelOutput(ModelOutput):
    """What backbone, encoder and decoder compute.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints + 1, d_model)`):
            Tokens after the last decoder layer, the instance token first.
        logits (`torch.Tensor` of shape `(batch_size, num_queries, num_labels)`):
            Classification scores before the sigmoid.
        pred_keypoints (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2)`):
            Keypoints (x, y) as fractions of the image, in float32. They may lie outside the image.
        pred_keypoint_std (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2)`, *optional*):
            Standard deviation of x and y, as fractions of the image, under the predicted distributions. `None` without
            FDR heads.
        pred_distributions (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2, max_num_bins + 1)`,
            *optional*, returned with `output_distributions=True`):
            Probabilities of the offset's bins, for x and for y.
        encoder_last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, d_model)`):
            Feature maps of the encoder, flattened row by row and joined, finest first.
        hidden_states (`tuple[torch.Tensor]`, *optional*, returned with `output_hidden_states=True`):
            Tokens before the first and after each decoder layer. Here and in the attentions denoising queries, if there
            are any, come before the others.
        encoder_hidden_states (`tuple[torch.Tensor]`, *optional*, returned with `output_hidden_states=True`):
            Feature maps of the encoder, finest first, each `(batch_size, d_model, height, width)`.
        attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Per decoder layer, weights among the tokens of an instance, of shape
            `(batch_size, num_queries, heads, num_keypoints + 1, num_keypoints + 1)`.
        across_attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Per decoder layer, weights among the instances, of shape
            `(batch_size, num_keypoints + 1, heads, num_queries, num_queries)`.
        cross_attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Per decoder layer, weights of the sampled points, of shape
            `(batch_size, num_queries, num_keypoints + 1, heads, num_levels * points)`.
        encoder_attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Weights of the encoder's self-attention, of shape `(batch_size, heads, locations, locations)`.
        auxiliary_outputs (`list[dict[str, str | torch.Tensor]]`, *optional*, returned in training or with labels):
            Earlier predictions, each with `name` ("encoder", "initial" or the number of the decoder layer), `logits`
            and `pred_keypoints`.
        denoising_outputs (`list[dict[str, str | torch.Tensor]]`, *optional*, returned with denoising queries):
            Predictions of the denoising queries, the last layer's included, in the same form.
    """

    last_hidden_state: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pred_keypoints: torch.FloatTensor | None = None
    pred_keypoint_std: torch.FloatTensor | None = None
    pred_distributions: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    across_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    auxiliary_outputs: list[dict] | None = None
    denoising_outputs: list[dict] | None = None


@dataclass
class DETRPoseForPoseEstimationOutput(ModelOutput):
    """The fields of [`DETRPoseModelOutput`], after the losses.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned with labels): Sum of all weighted losses.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, returned with labels): The weighted losses by name.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    pred_keypoints: torch.FloatTensor | None = None
    pred_keypoint_std: torch.FloatTensor | None = None
    pred_distributions: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    across_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    auxiliary_outputs: list[dict] | None = None
    denoising_outputs: list[dict] | None = None


def sine_position_encoding(points: torch.Tensor, num_channels: int, temperature: float) -> torch.Tensor:
    """Encodes points by sines and cosines.

    Args:
        points: (..., 2), x and y as fractions of the image.
        num_channels: length of a code, divisible by 4.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        (..., num_channels) in float32: the code of y, then of x, each with sine and cosine alternating.
    """
    half = num_channels // 2
    channels = torch.arange(half // 2, device=points.device, dtype=torch.float32)
    frequencies = 2 * math.pi / temperature ** (2 * channels / half)
    angles = points.float().flip(-1).unsqueeze(-1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def sine_position_encoding_by_phase(points: torch.Tensor, num_channels: int, temperature: float) -> torch.Tensor:
    """Does what [`sine_position_encoding`] does in three operations: a cosine is a sine a quarter of a turn ahead."""
    half = num_channels // 2
    channels = torch.arange(half, device=points.device) // 2
    frequencies = 2 * math.pi / temperature ** (2 * channels.float() / half)
    weight = torch.stack((F.pad(frequencies, (half, 0)), F.pad(frequencies, (0, half))), dim=1)
    phases = torch.tensor([0.0, math.pi / 2], device=points.device).repeat(half)
    angles = F.linear(points.float().reshape(-1, 2), weight, phases)
    return angles.sin().view(-1, *points.shape[1:-1], num_channels)


def pixel_centers(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Returns the pixel centres of a feature map, (height * width, 2), x and y as fractions, row by row."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)


def weighting_function(config: DETRPoseConfig, device: torch.device) -> torch.Tensor:
    """Returns the offset that each distribution bin stands for, (R + 1,), fine around zero and coarse at the ends.

    Source: D-FINE (arXiv 2410.13842), section 4.1, with bound a = `up` · `reg_scale`.
    """
    bound, half = config.up * config.reg_scale, config.max_num_bins // 2
    step = torch.arange(-half, half + 1, device=device, dtype=torch.float32)
    offsets = (bound + 1) ** (step.abs() / (half - 1)) - 1
    return step.sign() * torch.where(step.abs() == half, 2 * bound, offsets)


class DETRPoseConvNorm(nn.Module):
    """Convolution without bias, batch norm and, if named, an activation."""

    def __init__(self, config, in_channels, out_channels, kernel_size, stride=1, groups=1, activation=None):
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps)
        self.activation = nn.Identity() if activation is None else ACT2FN[activation]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.conv(hidden_state)))

    def fuse(self):
        """Folds the norm into the convolution, in place."""
        self.conv, self.norm = fold_norm(self.conv, self.norm), nn.Identity()


class DETRPoseRepVggBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, summed; one 3x3 convolution once fused."""

    def __init__(self, config, channels):
        super().__init__()
        self.conv1 = DETRPoseConvNorm(config, channels, channels, 3)
        self.conv2 = DETRPoseConvNorm(config, channels, channels, 1)
        self.activation = ACT2FN[config.activation_function]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        if self.conv2 is None:
            return self.activation(self.conv1(hidden_state))
        return self.activation(self.conv1(hidden_state) + self.conv2(hidden_state))

    def fuse(self):
        """Folds both branches, whose norms are folded already, into the first convolution, in place."""
        wide, narrow = self.conv1.conv, self.conv2.conv
        wide.weight.data += F.pad(narrow.weight.data, (1, 1, 1, 1))
        wide.bias.data += narrow.bias.data
        self.conv2 = None


class DETRPoseCSPLayer(nn.Module):
    """Two 1x1 branches, one of them through RepVGG blocks, added."""

    def __init__(self, config, in_channels, out_channels):
        super().__init__()
        activation = config.activation_function
        self.conv1 = DETRPoseConvNorm(config, in_channels, out_channels, 1, activation=activation)
        self.conv2 = DETRPoseConvNorm(config, in_channels, out_channels, 1, activation=activation)
        num_blocks = round(3 * config.depth_mult)
        self.bottlenecks = nn.Sequential(*(DETRPoseRepVggBlock(config, out_channels) for _ in range(num_blocks)))

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.bottlenecks(self.conv1(hidden_state)) + self.conv2(hidden_state)


class DETRPoseFusionBlock(nn.Module):
    """Fuses two feature maps into one: the RepNCSPELAN4 block of D-FINE.

    Args:
        config: the model's configuration.
        scale: how many times larger the second map is than the first, which is enlarged therefore.
    """

    def __init__(self, config, scale: int):
        super().__init__()
        self.scale = scale
        channels, width = config.d_model, int(config.hidden_expansion * config.d_model / 2)
        activation = config.activation_function
        self.conv1 = DETRPoseConvNorm(config, 2 * channels, 2 * channels, 1, activation=activation)
        self.csp1 = DETRPoseCSPLayer(config, channels, width)
        self.conv2 = DETRPoseConvNorm(config, width, width, 3, activation=activation)
        self.csp2 = DETRPoseCSPLayer(config, width, width)
        self.conv3 = DETRPoseConvNorm(config, width, width, 3, activation=activation)
        self.conv4 = DETRPoseConvNorm(config, 2 * channels + 2 * width, channels, 1, activation=activation)
        self.conv1_parts = None

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        halves = self.join(first, second)
        stage1 = self.conv2(self.csp1(halves[1]))
        stage2 = self.conv3(self.csp2(stage1))
        return self.conv4(torch.cat((*halves, stage1, stage2), dim=1))

    def join(self, first: torch.Tensor, second: torch.Tensor) -> Sequence[torch.Tensor]:
        """Returns both halves of what the first convolution makes of two maps (B, D, height, width)."""
        if self.conv1_parts is None:
            return self.conv1(torch.cat((self.enlarge(first), second), dim=1)).chunk(2, dim=1)
        sums = [self.enlarge(conv(first)) + other_conv(second) for conv, other_conv in self.conv1_parts]
        return [self.conv1.activation(x) for x in sums]

    def enlarge(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Repeats rows and columns."""
        return F.interpolate(feature_map, scale_factor=self.scale, mode="nearest") if self.scale > 1 else feature_map

    def fuse(self):
        """Splits the first convolution, whose norm is folded already, by inputs and halves of the output, in place.

        The first map is enlarged after its part of the work then, and the output need not be cut.
        """
        self.conv1_parts = nn.ModuleList(map(nn.ModuleList, split_pointwise_conv(self.conv1.conv)))
        self.conv1.conv = None


class DETRPoseDownsample(nn.Module):
    """Halves a feature map: a 1x1 convolution, then a depthwise one with stride 2."""

    def __init__(self, config):
        super().__init__()
        self.conv1 = DETRPoseConvNorm(config, config.d_model, config.d_model, 1)
        self.conv2 = DETRPoseConvNorm(config, config.d_model, config.d_model, 3, stride=2, groups=config.d_model)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(hidden_state))


class DETRPoseEncoderLayer(nn.Module):
    """Post-norm transformer layer over the locations of the coarsest feature map."""

    def __init__(self, config):
        super().__init__()
        self.self_attn = DETRPoseSelfAttention(config, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.encoder_activation_function]
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(self, hidden_states, position, output_attentions=False):
        attended, weights = self.self_attn(hidden_states, position, output_attentions=output_attentions)
        tokens = self.self_attn_layer_norm((hidden_states + attended).reshape(-1, hidden_states.shape[-1]))
        update = self.fc2(self.activation(self.fc1(tokens)))
        return self.final_layer_norm(tokens + update).view(-1, *hidden_states.shape[1:]), weights


class DETRPoseHybridEncoder(nn.Module):
    """Mixes the backbone's feature maps: attention in the coarsest, then fusion top-down and bottom-up."""

    def __init__(self, config, in_channels):
        super().__init__()
        self.config = config
        self.input_projections = nn.ModuleList(
            DETRPoseConvNorm(config, channels, config.d_model, 1) for channels in in_channels
        )
        self.transformer_layer = DETRPoseEncoderLayer(config)
        steps = range(len(in_channels) - 1)
        activation = config.activation_function
        self.lateral_convs = nn.ModuleList(
            DETRPoseConvNorm(config, config.d_model, config.d_model, 1, activation=activation) for _ in steps
        )
        self.fpn_blocks = nn.ModuleList(DETRPoseFusionBlock(config, scale=2) for _ in steps)
        self.downsample_convs = nn.ModuleList(DETRPoseDownsample(config) for _ in steps)
        self.pan_blocks = nn.ModuleList(DETRPoseFusionBlock(config, scale=1) for _ in steps)

    def forward(
        self, feature_maps: tuple[torch.Tensor, ...], output_attentions: bool = False
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Fuses the maps.

        Args:
            feature_maps: of the backbone, finest first, each (B, channels, height, width).
            output_attentions: whether to return the weights of the self-attention.

        Returns:
            The fused maps, finest first, each (B, D, height, width), and the weights or None.
        """
        maps = [projection(x) for projection, x in zip(self.input_projections, feature_maps, strict=True)]
        maps[-1], weights = self.attend(maps[-1], output_attentions)

        for step, (lateral_conv, block) in enumerate(zip(self.lateral_convs, self.fpn_blocks, strict=True)):
            fine, coarse = -2 - step, -1 - step
            maps[coarse] = lateral_conv(maps[coarse])
            maps[fine] = block(maps[coarse], maps[fine])
        for step, (downsample, block) in enumerate(zip(self.downsample_convs, self.pan_blocks, strict=True)):
            maps[step + 1] = block(downsample(maps[step]), maps[step + 1])
        return maps, weights

    def attend(self, feature_map: torch.Tensor, output_attentions: bool = False):
        """Applies the transformer layer to one map, (B, D, height, width)."""
        height, width = feature_map.shape[-2:]
        # Positions count from 1 to the size, not from pixel centres.
        x = torch.arange(1, width + 1, device=feature_map.device, dtype=torch.float32) / (width + 1e-6)
        y = torch.arange(1, height + 1, device=feature_map.device, dtype=torch.float32) / (height + 1e-6)
        points = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
        position = sine_position_encoding(points, self.config.d_model, self.config.encoder_position_temperature)
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens, weights = self.transformer_layer(tokens, position.to(tokens.dtype), output_attentions)
        return tokens.transpose(1, 2).reshape(-1, self.config.d_model, height, width), weights


# Layers with initial values of their own. Each is a class because transformers 5 asks `_init_weights` of models outside
# its package only about modules that hold parameters themselves, never about the modules around them.


class DETRPoseZeroLinear(nn.Linear):
    """Starts at zero, so that what it refines starts unchanged."""


class DETRPoseOutputLinear(DETRPoseZeroLinear):
    """The last layer of a head: works in float32, as half precision is too coarse for what it predicts."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_state.float(), self.weight.float(), self.bias.float())


class DETRPoseClassHead(nn.Linear):
    """Scores the labels of a token before the sigmoid; starts with one low score for everything."""

    def __init__(self, config):
        super().__init__(config.d_model, config.num_labels)


class DETRPoseSamplingOffsets(nn.Linear):
    """Says how far from a token's point to sample; starts with one direction per head, farther out point by point."""

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


class DETRPoseMLP(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, config, in_features, hidden_features, out_features, num_layers, last_layer=DETRPoseOutputLinear):
        super().__init__()
        sizes = [in_features, *[hidden_features] * (num_layers - 1)]
        layers = [nn.Linear(size, next_size) for size, next_size in pairwise(sizes)]
        self.layers = nn.ModuleList([*layers, last_layer(hidden_features, out_features)])
        self.activation = ACT2FN[config.decoder_activation_function]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        shape, hidden_state = (-1, *hidden_state.shape[1:-1]), hidden_state.reshape(-1, hidden_state.shape[-1])
        for layer in self.layers[:-1]:
            hidden_state = self.activation(layer(hidden_state))
        return self.layers[-1](hidden_state).view(*shape, self.layers[-1].out_features)


class DETRPoseQuerySelection(nn.Module):
    """Picks the locations that look most like the centre of an instance and predicts a first pose there."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.output_proj = nn.Linear(config.d_model, config.d_model)
        self.output_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.class_head = DETRPoseClassHead(config)
        self.keypoint_head = DETRPoseMLP(config, config.d_model, 2 * config.d_model, 2 * config.num_keypoints, 4)

    def forward(
        self, encoder_hidden_states: torch.Tensor, spatial_shapes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Selects the Q locations with the highest scores, best first.

        Args:
            encoder_hidden_states: (B, S, D).
            spatial_shapes: (height, width) of each feature map.

        Returns:
            Their logits (B, Q, C) and first keypoints (B, Q, K, 2).
        """
        device, margin = encoder_hidden_states.device, self.config.anchor_margin
        anchors = torch.cat([pixel_centers(height, width, device) for height, width in spatial_shapes])
        inside = ((anchors > margin) & (anchors < 1 - margin)).all(dim=-1, keepdim=True)
        num_locations, d_model = encoder_hidden_states.shape[1:]
        hidden_states = (encoder_hidden_states * inside.to(encoder_hidden_states)).reshape(-1, d_model)
        hidden_states = self.output_norm(self.output_proj(hidden_states))

        logits = self.class_head(hidden_states).view(-1, num_locations, self.config.num_labels)
        hidden_states = hidden_states.view(-1, num_locations, d_model)
        num_queries = min(self.config.num_queries, logits.shape[1])
        indices = logits.amax(dim=-1).topk(num_queries, dim=1).indices.unsqueeze(-1)

        selected = hidden_states.gather(1, indices.expand(-1, -1, hidden_states.shape[-1]))
        offsets = self.keypoint_head(selected).view(-1, num_queries, self.config.num_keypoints, 2)
        anchor_logits = torch.logit(anchors)[indices.squeeze(-1)]
        keypoints = torch.sigmoid(offsets + anchor_logits.unsqueeze(2))
        return logits.gather(1, indices.expand(-1, -1, logits.shape[-1])), keypoints


class DETRPoseEmbeddingTable(nn.Embedding):
    """Learnt vectors that are read all at once; by a call, because offloaded weights are only there during one."""

    def forward(self) -> torch.Tensor:
        return self.weight


class DETRPoseQueryContent(nn.Module):
    """The learnt vectors that fill instance and keypoint tokens before the first decoder layer."""

    def __init__(self, config):
        super().__init__()
        self.instance_embedding = DETRPoseEmbeddingTable(1, config.d_model)
        self.keypoint_embedding = DETRPoseEmbeddingTable(config.num_keypoints, config.d_model)
        self.query_embedding = DETRPoseEmbeddingTable(config.num_queries, config.d_model)
        self.denoising_label_embedding = nn.Embedding(config.num_denoising_labels + 1, config.d_model)
        self.denoising_keypoint_embedding = DETRPoseEmbeddingTable(config.num_keypoints, config.d_model)

    def forward(self, batch_size: int, num_queries: int) -> torch.Tensor:
        """Returns the tokens of the matching queries, (B, Q, K + 1, D): only keypoint tokens know the query's rank."""
        keypoints = self.keypoint_embedding() + self.query_embedding()[:num_queries].unsqueeze(1)
        instances = self.instance_embedding().expand(num_queries, 1, -1)
        return torch.cat((instances, keypoints), dim=1).expand(batch_size, -1, -1, -1)

    def denoising(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the tokens of the denoising queries, (B, P, K + 1, D), zero where the label (B, P) is -1."""
        instances = self.denoising_label_embedding(labels.clamp(min=0)).unsqueeze(2)
        keypoints = self.denoising_keypoint_embedding().expand(*labels.shape, -1, -1)
        return torch.cat((instances, keypoints), dim=2) * (labels >= 0)[..., None, None]


class DETRPoseDeformableAttention(nn.Module):
    """Multi-scale deformable attention: every token reads each feature map at a few points around its own."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.decoder_attention_heads
        self.num_levels = len(config.feature_strides)
        self.num_points = config.decoder_n_points
        samples = self.num_heads * self.num_levels * self.num_points
        self.sampling_offsets = DETRPoseSamplingOffsets(config)
        self.attention_weights = DETRPoseZeroLinear(config.d_model, samples)
        self.joint_proj = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        reference_points: torch.Tensor,
        value_maps: tuple[torch.Tensor, ...] | tuple[FeatureTable],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples and mixes the values.

        Args:
            hidden_states: (B, Q, K + 1, D).
            reference_points: (B, Q, K + 1, 2).
            value_maps: one per level, finest first, each (B * H, D / H, height, width); or one table of all.

        Returns:
            The mixed values (B, Q, K + 1, D), and the weights (B, Q, K + 1, H, levels * points).
        """
        num_queries, num_tokens, d_model = hidden_states.shape[1:]
        reads_table, row = isinstance(value_maps[0], FeatureTable), (-1, num_queries * num_tokens)
        offsets, logits = self.project(hidden_states.reshape(-1, d_model), reads_table)
        weights = softmax(logits, self.joint_proj is not None).view(-1, num_queries, num_tokens, *logits.shape[1:])
        points = reference_points.float().reshape(*row, 2)
        samples = points, offsets.view(*row, *offsets.shape[1:]), weights.view(*row, *logits.shape[1:])
        mixed = value_maps[0].mix(*samples) if reads_table else sample_maps(value_maps, *samples)
        return mixed.reshape(-1, num_queries, num_tokens, d_model).to(hidden_states.dtype), weights

    def project(self, hidden_states: torch.Tensor, x_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Projects tokens (N, D).

        Returns:
            Offsets in float32, (N, 2, H, levels * P) with all x before all y if wanted and (N, H, levels * P, 2) if
            not, and the weights' logits (N, H, levels * P).
        """
        shape = (self.num_heads, self.num_levels * self.num_points)
        if self.joint_proj is None:
            offsets, logits = self.sampling_offsets(hidden_states), self.attention_weights(hidden_states)
        else:
            weight, bias, num_samples = self.joint_proj.weight, self.joint_proj.bias, math.prod(shape)
            if x_first:
                weight, bias = (
                    torch.cat((x[: 2 * num_samples : 2], x[1 : 2 * num_samples : 2], x[2 * num_samples :]))
                    for x in (weight, bias)
                )
            offsets, logits = F.linear(hidden_states, weight, bias).split((2 * num_samples, num_samples), dim=-1)
        offsets = offsets.float().reshape(-1, 2, *shape) if x_first else offsets.float().reshape(-1, *shape, 2)
        return offsets, logits.reshape(-1, *shape)

    def fuse(self):
        """Joins both projections, in place."""
        self.joint_proj = join_linears(self.sampling_offsets, self.attention_weights)
        self.sampling_offsets = self.attention_weights = None


class DETRPoseGate(nn.Module):
    """Weighs tokens against what they attended to, channel by channel, and normalises the sum."""

    def __init__(self, config):
        super().__init__()
        self.gate = DETRPoseZeroLinear(2 * config.d_model, 2 * config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        both = torch.cat((hidden_states, attended), dim=-1)
        kept, taken = (torch.sigmoid(self.gate(both)) * both).split(hidden_states.shape[-1], dim=-1)
        return self.norm(kept + taken)


class DETRPoseDecoderLayer(GradientCheckpointingLayer):
    """Attention within instances, across instances and to the feature maps, then a feed-forward part."""

    def __init__(self, config):
        super().__init__()
        heads, eps = config.decoder_attention_heads, config.layer_norm_eps
        self.within_attn = DETRPoseSelfAttention(config, heads)
        self.within_attn_layer_norm = nn.LayerNorm(config.d_model, eps=eps)
        self.across_attn = DETRPoseSelfAttention(config, heads)
        self.across_attn_layer_norm = nn.LayerNorm(config.d_model, eps=eps)
        self.cross_attn = DETRPoseDeformableAttention(config)
        self.gate = DETRPoseGate(config)
        self.activation = ACT2FN[config.decoder_activation_function]
        self.fc1 = nn.Linear(config.d_model, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, eps=eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position: torch.Tensor,
        reference_points: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *value_maps: torch.Tensor,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Refines the tokens.

        Args:
            hidden_states: (B, Q, K + 1, D), the instance token first, with the position added already.
            position: (B, Q, K + 1, D), zero for the instance token; added once more before the feature maps are read.
            reference_points: (B, Q, K + 1, 2).
            attention_mask: (1, 1, Q, Q), added to the scores between instances.
            value_maps: see [`DETRPoseDeformableAttention`]; apart, so that reentrant checkpointing sees each.
            output_attentions: whether to return the weights.

        Returns:
            The tokens, and the weights of the three attentions or None.
        """
        # Tokens are in one long row wherever they do not meet: linear layers are single operators of a graph then.
        shape, row = (-1, *hidden_states.shape[1:]), (-1, hidden_states.shape[-1])
        tokens = hidden_states.reshape(row)
        # The position stays in the residual stream and in the values: released weights were trained so.
        attended, within = self.within_attn(tokens.view(shape), output_attentions=output_attentions)
        tokens = self.within_attn_layer_norm(tokens + attended.reshape(row))

        attended, across = self.across_attn(
            tokens.view(shape), attention_mask=attention_mask, output_attentions=output_attentions, axis=-3
        )
        tokens = self.across_attn_layer_norm(tokens + attended.reshape(row))

        tokens = tokens + position.reshape(row)
        attended, cross = self.cross_attn(tokens.view(shape), reference_points, value_maps)
        tokens = self.gate(tokens, attended.reshape(row))

        update = self.fc2(self.activation(self.fc1(tokens)))
        tokens = self.final_layer_norm((tokens + update).clamp(-_MAX_ACTIVATION, _MAX_ACTIVATION))
        return tokens.view(shape), (within, across, cross) if output_attentions else None

    def fuse(self):
        """Joins what has one input, in place."""
        for attention in (self.within_attn, self.across_attn, self.cross_attn):
            attention.fuse()


class DETRPoseQualityHead(nn.Module):
    """Pose-LQE: judges a pose by what the finest encoder map shows at its keypoints (paper, section 3.3.1)."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.lqe_top_k
        self.mlp = DETRPoseMLP(config, (self.top_k + 1) * config.num_keypoints, config.lqe_hidden_dim, 1, 2)

    def forward(self, feature_map: torch.Tensor, keypoints: torch.Tensor, sample=bilinear_sample) -> torch.Tensor:
        """Returns the quality (B, Q, 1) of keypoints (B, Q, K, 2) on a map (B, D, height, width)."""
        content = sample(feature_map, keypoints).permute(0, 2, 3, 1)
        largest = content.topk(self.top_k, dim=-1).values
        statistics = torch.cat((largest, largest.mean(dim=-1, keepdim=True)), dim=-1)
        return self.mlp(statistics.flatten(2).to(self.mlp.layers[0].weight.dtype))


class DETRPoseDecoder(nn.Module):
    """Refines all poses layer by layer, and predicts keypoints and scores."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        d_model, num_layers = config.d_model, config.decoder_layers
        coordinates = 2 * (config.max_num_bins + 1) if config.use_fdr_heads else 2
        self.layers = nn.ModuleList(DETRPoseDecoderLayer(config) for _ in range(num_layers))
        self.position_head = DETRPoseMLP(config, d_model, d_model, d_model, 2, last_layer=nn.Linear)
        self.class_heads = nn.ModuleList(DETRPoseClassHead(config) for _ in range(num_layers))
        self.keypoint_heads = nn.ModuleList(
            DETRPoseMLP(config, d_model, d_model, coordinates, 3) for _ in range(num_layers)
        )
        if config.use_fdr_heads:
            self.initial_keypoint_head = DETRPoseMLP(config, d_model, d_model, 2, 3)
        if config.use_pose_lqe:
            self.quality_heads = nn.ModuleList(DETRPoseQualityHead(config) for _ in range(num_layers))
        self.is_fused, self.exports_grid_sample = False, True

    def forward(
        self,
        hidden_states: torch.Tensor,
        keypoints: torch.Tensor,
        instance_points: torch.Tensor,
        feature_maps: list[torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        output_all_layers: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> dict:
        """Runs the layers.

        Args:
            hidden_states: (B, Q, K + 1, D).
            keypoints: (B, Q, K, 2), where the keypoint tokens look first.
            instance_points: (B, Q, 1, 2), where the instance tokens look first.
            feature_maps: of the encoder, finest first, each (B, D, height, width).
            attention_mask: (1, 1, Q, Q), added to the scores between instances.
            output_all_layers: whether to predict scores after every layer, as the losses need.
            output_hidden_states: whether to return the tokens between the layers.
            output_attentions: whether to return the weights.

        Returns:
            The last layer's `last_hidden_state`, `logits`, `pred_keypoints`, `probabilities` (None without FDR heads),
            `output_sets` (name → logits and keypoints of the earlier predictions), `hidden_states` and `attentions`.
        """
        value_maps, sample = self.prepare_sampling(feature_maps)
        bin_offsets = weighting_function(self.config, hidden_states.device) / self.config.reg_scale
        output_sets, all_hidden_states, all_attentions = {}, [hidden_states], []
        distribution_logits, probabilities, initial_keypoints = None, None, None
        for index, layer in enumerate(self.layers):
            position = self.position_encoding(keypoints, hidden_states.dtype)
            points = torch.cat((instance_points, keypoints), dim=2)
            located = hidden_states + position
            hidden_states, attentions = layer(
                located, position, points, attention_mask, *value_maps, output_attentions=output_attentions
            )

            head = self.keypoint_heads[index]
            if not self.config.use_fdr_heads:
                keypoints = torch.sigmoid(head(hidden_states[:, :, 1:]) + clamped_logit(keypoints))
            elif index == 0:
                keypoint_tokens = hidden_states[:, :, 1:]
                offsets = self.initial_keypoint_head(keypoint_tokens)
                initial_keypoints = torch.sigmoid(offsets + clamped_logit(keypoints))
                distribution_logits = head(keypoint_tokens)
            else:
                # Released weights: the tokens of the layer before reach this head with this layer's position.
                distribution_logits = distribution_logits + head((hidden_states + located.detach())[:, :, 1:])
            if self.config.use_fdr_heads:
                probabilities = softmax(
                    distribution_logits.view(-1, *keypoints.shape[1:], len(bin_offsets)), self.is_fused
                )
                keypoints = initial_keypoints.detach() + probabilities @ bin_offsets

            is_last = index == len(self.layers) - 1
            if output_all_layers and index == 0 and self.config.use_fdr_heads:
                logits = self.class_heads[0](hidden_states[:, :, 0])
                output_sets["initial"] = {"logits": logits, "pred_keypoints": initial_keypoints}
            if output_all_layers or is_last:
                # A fused model has kept the last heads alone.
                head_index = -1 if is_last else index
                logits = self.class_heads[head_index](hidden_states[:, :, 0])
                if self.config.use_pose_lqe:
                    logits = logits + self.quality_heads[head_index](feature_maps[0], keypoints, sample)
                output_sets[str(index)] = {"logits": logits, "pred_keypoints": keypoints}

            last_keypoints, keypoints = keypoints, keypoints.detach()
            instance_points = keypoints.mean(dim=2, keepdim=True)
            all_hidden_states.append(hidden_states)
            all_attentions.append(attentions)

        return {
            "last_hidden_state": hidden_states,
            "logits": logits,
            "pred_keypoints": last_keypoints,
            "probabilities": probabilities,
            "output_sets": output_sets,
            "hidden_states": tuple(all_hidden_states) if output_hidden_states else None,
            "attentions": tuple(zip(*all_attentions, strict=True)) if output_attentions else (None, None, None),
        }

    def prepare_sampling(self, feature_maps: list[torch.Tensor]):
        """Returns what the layers read the maps from, and the function that Pose-LQE reads a map with.

        A table is faster than one `grid_sample` per level in PyTorch, and slower in ONNX Runtime.
        """
        heads = self.config.decoder_attention_heads
        if self.is_fused and not (is_exporting() and self.exports_grid_sample):
            table = FeatureTable(feature_maps, heads, self.config.decoder_n_points)
            return (table,), bilinear_gather if is_exporting() else bilinear_sample
        head_dim = self.config.d_model // heads
        return [x.float().reshape(-1, head_dim, *x.shape[-2:]) for x in feature_maps], bilinear_sample

    def position_encoding(self, keypoints: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Returns the position vectors (B, Q, K + 1, D) of keypoints (B, Q, K, 2): zero for the instance token."""
        temperature = self.config.decoder_position_temperature
        encode = sine_position_encoding_by_phase if self.is_fused else sine_position_encoding
        sines = encode(keypoints, self.config.d_model, temperature)
        return F.pad(self.position_head(sines.to(dtype)), (0, 0, 1, 0))

    def fuse(self):
        """Drops what only training needs, in place."""
        self.class_heads = self.class_heads[-1:]
        if self.config.use_pose_lqe:
            self.quality_heads = self.quality_heads[-1:]
        self.is_fused = True


def distribution_deviations(probabilities: torch.Tensor, config: DETRPoseConfig) -> torch.Tensor:
    """Reads the spread of offsets off their distributions.

    The variance of an offset is E[W²] - E[W]² over the weighting function W; dividing by the regression scale gives
    fractions of the image. The trained distributions are used as they are.

    Args:
        probabilities: of the bins, (B, Q, K, 2, R + 1).
        config: the model's configuration.

    Returns:
        The standard deviations of x and y, (B, Q, K, 2).
    """
    offsets = weighting_function(config, probabilities.device) / config.reg_scale
    deviations = offsets - (probabilities @ offsets).unsqueeze(-1)
    return (probabilities * deviations.square()).sum(dim=-1).sqrt()


class DETRPosePreTrainedModel(PreTrainedModel):
    """What all DETRPose models share: configuration, names and initial values."""

    config_class = DETRPoseConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Each joins tensors of different children, which must be on one device therefore.
    _no_split_modules = [
        "HGNetV2Embeddings",
        "HGNetV2BasicLayer",
        "DETRPoseHybridEncoder",
        "DETRPoseQuerySelection",
        "DETRPoseQueryContent",
        "DETRPoseDecoder",
    ]
    # The backbone's frozen norms have no such counter; checkpoints of unfrozen ones do.
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Sets the initial values of one module that holds parameters."""
        if isinstance(module, DETRPoseSamplingOffsets):
            nn.init.zeros_(module.weight)
            init_copy(module.bias, module.initial_bias())
        elif isinstance(module, DETRPoseZeroLinear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.constant_(module.bias, self._prior_logit if isinstance(module, DETRPoseClassHead) else 0.0)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.running_mean)
                nn.init.ones_(module.running_var)
                nn.init.zeros_(module.num_batches_tracked)

    @torch.no_grad()
    def initialize_weights(self):
        """Sets the initial values of all parameters and buffers that no checkpoint has filled."""
        super().initialize_weights()
        # The backbone, a transformers model itself, does the same for its own modules, except for these.
        for module in self.modules():
            for name, value in _BACKBONE_INITIAL_VALUES.get(type(module), {}).items():
                init_copy(getattr(module, name), value)
            if isinstance(module, HGNetV2ConvLayer):
                # transformers' own, a deviation of 0.02 whatever the fan-in, makes training from random weights slower.
                init_copy(
                    module.convolution.weight, nn.init.kaiming_normal_(torch.empty_like(module.convolution.weight))
                )

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers guesses this from words in the source, other ones in each of its lines.
        return True

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs):
        """Chooses the attention function, "sdpa" or "eager", of everything but the backbone, which has no attention."""
        if isinstance(attn_implementation, str):
            attn_implementation = {"": attn_implementation}
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves weights, configuration and code into a folder, as every transformers model does.

        Raises:
            ValueError: if the model is fused.
        """
        if getattr(self, "is_fused", False):
            raise ValueError("a fused model cannot be saved: save the model it was fused from, and fuse after loading.")
        # transformers notes the class being saved; with both, either Auto class finds its own in the code.
        self.config.auto_map = {
            "AutoModel": f"modeling_detrpose.{DETRPoseModel.__name__}",
            "AutoModelForKeypointDetection": f"modeling_detrpose.{DETRPoseForPoseEstimation.__name__}",
        }
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id, *args, **kwargs):
        """Uploads weights, configuration, code and, where the repository has none, a model card.

        Arguments and result are those of every transformers model.
        """
        api = HfApi(token=kwargs.get("token"))
        repo_id = api.create_repo(repo_id, private=kwargs.get("private"), exist_ok=True).repo_id
        if not api.file_exists(repo_id, "README.md"):
            card = model_card(self.config, repo_id, "Trained with transformers-detrpose.")
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id)
        return super().push_to_hub(repo_id, *args, **kwargs)

    @property
    def _prior_logit(self) -> float:
        prior = self.config.initializer_bias_prior_prob
        return -math.log((1 - prior) / prior)


def init_copy(tensor: torch.Tensor, values: torch.Tensor | float):
    """Copies `values` into a parameter or buffer unless a checkpoint has filled it already."""
    if not getattr(tensor, "_is_hf_initialized", False):
        tensor.copy_(torch.as_tensor(values))


class DETRPoseModel(DETRPosePreTrainedModel):
    """The whole network without its losses: [`DETRPoseForPoseEstimation`] is the one to train and deploy.

    Args:
        config ([`DETRPoseConfig`]): the configuration.
    """

    def __init__(self, config: DETRPoseConfig):
        super().__init__(config)
        if config.backbone_config._attn_implementation == "sdpa":
            # A backbone without attention refuses what the whole model was asked for: let it choose.
            config.backbone_config._attn_implementation = None
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        if config.freeze_backbone_batch_norms:
            freeze_batch_norms(self.backbone)
        self.encoder = DETRPoseHybridEncoder(config, self.backbone.channels)
        self.query_selection = DETRPoseQuerySelection(config)
        self.query_content = DETRPoseQueryContent(config)
        self.decoder = DETRPoseDecoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        denoising_queries: DenoisingQueries | None = None,
        output_auxiliary: bool | None = None,
        output_distributions: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> tuple | DETRPoseModelOutput:
        """Predicts the poses in a batch of images.

        Args:
            pixel_values: (B, 3, height, width), RGB in [0, 1]; height and width are multiples of the largest stride.
            denoising_queries: queries made from labels, see [`make_denoising_queries`].
            output_auxiliary: whether to return the predictions of earlier layers; by default while training.
            output_distributions: whether to return the probabilities of the offset bins.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return tokens and feature maps between layers.
            return_dict: whether to return a [`DETRPoseModelOutput`] and not a tuple.

        Raises:
            ValueError: if `pixel_values` is not a batch of images of a possible size.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output_auxiliary = self.training if output_auxiliary is None else output_auxiliary
        self._check_pixel_values(pixel_values)

        feature_maps = self.backbone(pixel_values.to(self.dtype)).feature_maps
        feature_maps, encoder_attention = self.encoder(feature_maps, output_attentions)
        encoder_hidden_states = torch.cat([x.flatten(2).transpose(1, 2) for x in feature_maps], dim=1)
        spatial_shapes = [tuple(x.shape[-2:]) for x in feature_maps]
        encoder_logits, encoder_keypoints = self.query_selection(encoder_hidden_states, spatial_shapes)

        num_denoising = 0
        content = self.query_content(*encoder_logits.shape[:2])
        keypoints = encoder_keypoints.detach()
        instance_points = keypoints.mean(dim=2, keepdim=True)
        attention_mask = None
        if denoising_queries is not None:
            num_denoising = denoising_queries.labels.shape[1]
            content = torch.cat((self.query_content.denoising(denoising_queries.labels), content), dim=1)
            instance, points = denoising_queries.reference_points.split((1, self.config.num_keypoints), dim=2)
            keypoints = torch.cat((points.to(keypoints), keypoints), dim=1)
            instance_points = torch.cat((instance.to(keypoints), instance_points), dim=1)
            # A tiny image has fewer locations, and so fewer queries, than the mask was made for.
            num_tokens = content.shape[1]
            forbidden = denoising_queries.attention_mask[None, None, :num_tokens, :num_tokens]
            attention_mask = content.new_zeros(forbidden.shape).masked_fill(forbidden, torch.finfo(content.dtype).min)

        decoded = self.decoder(
            content,
            keypoints,
            instance_points,
            feature_maps,
            attention_mask,
            output_all_layers=output_auxiliary,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        fields = self._collect(decoded, num_denoising, output_distributions)
        encoder_set = {"name": "encoder", "logits": encoder_logits, "pred_keypoints": encoder_keypoints}
        fields["auxiliary_outputs"] = [encoder_set, *fields["auxiliary_outputs"]] if output_auxiliary else None
        fields["encoder_last_hidden_state"] = encoder_hidden_states
        fields["encoder_hidden_states"] = tuple(feature_maps) if output_hidden_states else None
        fields["encoder_attentions"] = (encoder_attention,) if output_attentions else None
        # All at once: on transformers 4 a field filled in later is missing from the tuple.
        outputs = DETRPoseModelOutput(**fields)
        return outputs if return_dict else outputs.to_tuple()

    def _collect(self, decoded: dict, num_denoising: int, output_distributions: bool) -> dict:
        """Sorts what the decoder computed into output fields, with the denoising queries apart."""
        output_sets = decoded["output_sets"]
        last = str(self.config.decoder_layers - 1)
        auxiliary = [
            {"name": name, **{key: value[:, num_denoising:] for key, value in output_set.items()}}
            for name, output_set in output_sets.items()
            if name != last
        ]
        denoising = [
            {"name": name, **{key: value[:, :num_denoising] for key, value in output_set.items()}}
            for name, output_set in output_sets.items()
        ]
        probabilities, deviations = None, None
        if self.config.use_fdr_heads:
            probabilities = decoded["probabilities"][:, num_denoising:]
            deviations = distribution_deviations(probabilities, self.config)
        within, across, cross = decoded["attentions"]
        return {
            "last_hidden_state": decoded["last_hidden_state"][:, num_denoising:],
            "logits": decoded["logits"][:, num_denoising:],
            "pred_keypoints": decoded["pred_keypoints"][:, num_denoising:],
            "pred_keypoint_std": deviations,
            "pred_distributions": probabilities if output_distributions else None,
            "hidden_states": decoded["hidden_states"],
            "attentions": within,
            "across_attentions": across,
            "cross_attentions": cross,
            "auxiliary_outputs": auxiliary,
            "denoising_outputs": denoising if num_denoising else None,
        }

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` must be (batch, channels, height, width), but got {tuple(pixel_values.shape)}."
            )
        stride = self.config.feature_strides[-1]
        height, width = pixel_values.shape[-2:]
        if height % stride or width % stride:
            raise ValueError(
                f"height and width of `pixel_values` must be multiples of {stride}, the largest feature stride, "
                f"but got {height} x {width}."
            )


def freeze_batch_norms(module: nn.Module):
    """Replaces every batch norm below `module` by one whose statistics and affine parameters never change."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            freeze_batch_norms(child)


class DETRPoseForPoseEstimation(DETRPosePreTrainedModel):
    """DETRPose for multi-person pose estimation: every person's keypoints in one pass, and the losses to train it.

    Args:
        config ([`DETRPoseConfig`]): the configuration.
    """

    # Trainer would otherwise expect the loss to be a sum over items.
    accepts_loss_kwargs = False

    def __init__(self, config: DETRPoseConfig):
        super().__init__(config)
        self.model = DETRPoseModel(config)
        self.is_fused = False
        self.post_init()

    @property
    def loss_function(self):
        """The function that turns predictions and labels into losses, [`pose_estimation_loss`]."""
        return pose_estimation_loss

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: list[dict[str, torch.Tensor]] | None = None,
        denoising_queries: DenoisingQueries | None = None,
        output_distributions: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> tuple | DETRPoseForPoseEstimationOutput:
        """Predicts the poses in a batch of images, and with labels the losses.

        Args:
            pixel_values: (B, 3, height, width), RGB in [0, 1]; height and width are multiples of the largest stride.
            labels: one dictionary per image with `class_labels` (n,) int64, `keypoints` (n, K, 3) as x and y in
                fractions of the image and visibility 0, 1 or 2, and `area` (n,) as fraction of the image. n may be 0.
            denoising_queries: made from the labels when not given, while training.
            output_distributions: whether to return the probabilities of the offset bins.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return tokens and feature maps between layers.
            return_dict: whether to return a [`DETRPoseForPoseEstimationOutput`] and not a tuple.

        Raises:
            ValueError: if images or labels are malformed; the message names image, key, expected and found.

        Example:

        ```python
        >>> from PIL import Image
        >>> import torch
        >>> import transformers_detrpose
        >>> from transformers import AutoImageProcessor, AutoModelForKeypointDetection

        >>> processor = AutoImageProcessor.from_pretrained("detrpose-l")
        >>> model = AutoModelForKeypointDetection.from_pretrained("detrpose-l")
        >>> image = Image.open("people.jpg")
        >>> inputs = processor(images=image, return_tensors="pt")
        >>> with torch.no_grad():
        ...     outputs = model(**inputs)
        >>> poses = processor.post_process_keypoint_detection(outputs, target_sizes=[(image.height, image.width)])[0]
        ```
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if self.is_fused and (self.training or labels is not None):
            raise ValueError("a fused model has no losses and cannot be trained: use the model that it was fused from.")
        if labels is not None:
            validate_labels(labels, self.config, len(pixel_values))
            if self.training and denoising_queries is None:
                denoising_queries = make_denoising_queries(labels, self.config, tuple(pixel_values.shape[-2:]))

        outputs = self.model(
            pixel_values,
            denoising_queries=denoising_queries,
            output_auxiliary=self.training or labels is not None,
            output_distributions=output_distributions,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        loss, loss_dict = None, None
        if labels is not None:
            output_sets = {"": {"logits": outputs.logits, "pred_keypoints": outputs.pred_keypoints}}
            output_sets.update(named_sets(outputs.auxiliary_outputs))
            denoising_sets = named_sets(outputs.denoising_outputs) if outputs.denoising_outputs else None
            loss, loss_dict = self.loss_function(output_sets, labels, self.config, denoising_queries, denoising_sets)
            if self.training and denoising_queries is None:
                # Training on several processes needs every parameter in every step, with people or without.
                unused = self.model.query_content.denoising(torch.zeros(1, 1, dtype=torch.int64, device=loss.device))
                loss = loss + 0 * unused.sum()
        outputs = DETRPoseForPoseEstimationOutput(loss=loss, loss_dict=loss_dict, **outputs)
        return outputs if return_dict else outputs.to_tuple()

    def fuse(self, grid_sample: bool = True) -> "DETRPoseForPoseEstimation":
        """Returns a copy for deployment, with the same outputs to 1e-4, smaller and faster.

        Norms and affine steps are folded into the convolution before them, every RepVGG block into one convolution and
        projections of the same input into one; what only training needs is gone. The copy cannot be trained or saved:
        keep the model that it came from.

        Args:
            grid_sample: whether the feature maps are read by GridSample nodes once the copy is exported, as is best for
                ONNX Runtime. Without, they are read by gathers and arithmetic, as TensorRT needs it. PyTorch itself
                looks up rows of a table either way.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        for module in list(fused.modules()):
            if isinstance(module, DETRPoseConvNorm):
                module.fuse()
            elif isinstance(module, HGNetV2ConvLayer):
                fuse_backbone_layer(module)
        for module in list(fused.modules()):
            if isinstance(module, (DETRPoseRepVggBlock, DETRPoseFusionBlock, DETRPoseDecoderLayer, DETRPoseDecoder)):
                module.fuse()
            elif isinstance(module, HGNetV2Embeddings):
                module.pool = PairwiseMaximum()
        for module in fused.modules():
            if isinstance(module, (nn.ReLU, nn.SiLU)):
                module.inplace = True
        content = fused.model.query_content
        content.denoising_label_embedding = content.denoising_keypoint_embedding = None
        fused.model.decoder.exports_grid_sample = grid_sample
        fused.is_fused = True
        return fused.to(memory_format=torch.channels_last)


def fuse_backbone_layer(layer: HGNetV2ConvLayer):
    """Folds norm and affine step of a layer of the backbone into its convolution, in place."""
    layer.convolution, layer.normalization = fold_norm(layer.convolution, layer.normalization), nn.Identity()
    if isinstance(layer.activation, nn.ReLU) and isinstance(layer.lab, HGNetV2LearnableAffineBlock):
        layer.convolution, layer.activation = fold_affine(layer.convolution, layer.lab.scale, layer.lab.bias)
        layer.lab = nn.Identity()


def named_sets(outputs: list[dict]) -> dict[str, dict[str, torch.Tensor]]:
    """Turns a list of predictions with a `name` into a dictionary by name."""
    return {output["name"]: {key: output[key] for key in ("logits", "pred_keypoints")} for output in outputs}
