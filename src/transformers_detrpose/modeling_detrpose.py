"""DETRPose: a backbone, a hybrid encoder, and a pose decoder that refines the keypoints of all people at once.

Symbols in shapes: batch size B, instance queries Q, keypoints K, hidden size D, locations of all feature maps S, heads
H, distribution bins R + 1, labels C. All points are (x, y) as fractions of the image; all sizes are (height, width).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.hgnet_v2.modeling_hgnet_v2 import HGNetV2ConvLayer
from transformers.utils import ModelOutput

from .affine_block import DETRPoseLearnableAffineBlock, replace_affine_blocks
from .attention import (
    DETRPoseDeformableAttention,
    DETRPoseSamplingOffsets,
    DETRPoseSelfAttention,
    DETRPoseValues,
    DETRPoseZeroLinear,
    bilinear_sample,
)
from .batch_norm import DETRPoseFrozenBatchNorm2d, freeze_batch_norms, init_norm
from .calibration import CALIBRATIONS, DETRPoseCalibration, initial_values
from .configuration_detrpose import DETRPoseConfig
from .denoising import DenoisingQueries, clamped_logit, make_denoising_queries
from .first_batch import check_pixel_values, warn_of_unscaled_images
from .heads import DETRPoseMLP, without_autocast
from .hybrid_encoder import DETRPoseHybridEncoder
from .loss_detrpose import pose_estimation_loss
from .model_card import model_card
from .modeling_ecvit import make_backbone, supports_sdpa
from .pose_targets import validate_labels
from .position_encoding import pixel_centers, sine_position_encoding
from .visibility import VISIBILITY_HEADS

# The largest float16; larger activations would become infinite in half precision.
MAX_ACTIVATION = 65504.0


@dataclass
class DETRPoseModelOutput(ModelOutput):
    """Outputs of [`DETRPoseModel`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints + 1, d_model)`):
            Tokens after the last decoder layer, the instance token first.
        logits (`torch.Tensor` of shape `(batch_size, num_queries, num_labels)`):
            Class scores before the sigmoid.
        pred_keypoints (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2)`):
            Keypoints (x, y) as fractions of the image, in float32. They may lie outside the image.
        pred_keypoint_std (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2)`, *optional*):
            Standard deviations of x and y under the predicted distributions, as fractions of the image. `None` without
            FDR heads.
        pred_distributions (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2, max_num_bins + 1)`,
            *optional*, returned with `output_distributions=True`):
            Probabilities of the offset bins, for x and for y.
        encoder_last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, d_model)`):
            Feature maps of the encoder, flattened row by row and concatenated, finest first.
        hidden_states (`tuple[torch.Tensor]`, *optional*, returned with `output_hidden_states=True`):
            Tokens before the first and after each decoder layer. Here and in the attentions, denoising queries, if any,
            come first.
        encoder_hidden_states (`tuple[torch.Tensor]`, *optional*, returned with `output_hidden_states=True`):
            Feature maps of the encoder, finest first, each `(batch_size, d_model, height, width)`.
        attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Attention weights within instances, one tensor per decoder layer, each of shape
            `(batch_size, num_queries, heads, num_keypoints + 1, num_keypoints + 1)`.
        across_attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Attention weights across instances, one tensor per decoder layer, each of shape
            `(batch_size, num_keypoints + 1, heads, num_queries, num_queries)`.
        cross_attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Attention weights of the sampling points, one tensor per decoder layer, each of shape
            `(batch_size, num_queries, num_keypoints + 1, heads, num_levels * points)`.
        encoder_attentions (`tuple[torch.Tensor]`, *optional*, returned with `output_attentions=True`):
            Attention weights of the encoder, of shape `(batch_size, heads, locations, locations)`.
        auxiliary_outputs (`list[dict[str, torch.Tensor]]`, *optional*, returned in training or with labels):
            `logits` and `pred_keypoints` of the earlier predictions, in the order of computation: of the query
            selection, of the initial keypoints (with FDR heads), and of every decoder layer but the last.
        denoising_outputs (`list[dict[str, torch.Tensor]]`, *optional*, returned with denoising queries):
            `logits` and `pred_keypoints` of the denoising queries: of the initial keypoints (with FDR heads) and of
            every decoder layer.
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
    auxiliary_outputs: list[dict[str, torch.FloatTensor]] | None = None
    denoising_outputs: list[dict[str, torch.FloatTensor]] | None = None


@dataclass
class DETRPoseForPoseEstimationOutput(ModelOutput):
    """Outputs of [`DETRPoseForPoseEstimation`]: the losses, and the fields of [`DETRPoseModelOutput`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned with labels): Sum of all weighted losses.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, returned with labels): The weighted losses by name.
        pred_visibility (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 3)`, *optional*):
            Logits, in float32, of each keypoint's visibility: 0 absent, 1 occluded, 2 visible. Without
            `config.predict_absent_keypoints`, the probability of 0 is zero. `None` without a visibility head.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    pred_keypoints: torch.FloatTensor | None = None
    pred_keypoint_std: torch.FloatTensor | None = None
    pred_distributions: torch.FloatTensor | None = None
    pred_visibility: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    across_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    auxiliary_outputs: list[dict[str, torch.FloatTensor]] | None = None
    denoising_outputs: list[dict[str, torch.FloatTensor]] | None = None


def weighting_function(config: DETRPoseConfig, device: torch.device) -> torch.Tensor:
    """Returns the offset of each distribution bin, (R + 1,), fine around zero and coarse at the ends.

    Source: D-FINE (arXiv 2410.13842), section 4.1, with bound a = `up` · `reg_scale`.
    """
    bound, half = config.up * config.reg_scale, config.max_num_bins // 2
    step = torch.arange(-half, half + 1, device=device, dtype=torch.float32)
    offsets = (bound + 1) ** (step.abs() / (half - 1)) - 1
    return step.sign() * torch.where(step.abs() == half, 2 * bound, offsets)


# Layers with their own initialization. Each is a class because, for models outside its package, transformers 5 calls
# `_init_weights` only with modules that hold parameters themselves, not with their parents.


class DETRPoseClassHead(nn.Linear):
    """Predicts class scores before the sigmoid; initially the same low score everywhere."""

    def __init__(self, config):
        super().__init__(config.d_model, config.num_labels)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        with without_autocast(hidden_state.device):
            return F.linear(hidden_state.float(), self.weight.float(), self.bias.float())


class DETRPosePositionHead(DETRPoseMLP):
    """Embeds points: their sine encoding, followed by two linear layers."""

    def __init__(self, config):
        super().__init__(config, config.d_model, config.d_model, config.d_model, 2, last_layer=nn.Linear)
        self.num_channels, self.temperature = config.d_model, config.decoder_position_temperature

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Returns position embeddings (..., D) of points (..., 2), x and y as fractions of the image."""
        sines = sine_position_encoding(points, self.num_channels, self.temperature)
        return super().forward(sines.to(self.layers[0].weight.dtype))


class DETRPoseQuerySelection(nn.Module):
    """Selects the locations with the highest class scores and predicts an initial pose at each of them."""

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
            Their logits (B, Q, C) and keypoints (B, Q, K, 2).
        """
        device, margin = encoder_hidden_states.device, self.config.anchor_margin
        anchors = torch.cat([pixel_centers(height, width, device) for height, width in spatial_shapes])
        inside = ((anchors > margin) & (anchors < 1 - margin)).all(dim=-1, keepdim=True)
        hidden_states = self.output_norm(self.output_proj(encoder_hidden_states * inside.to(encoder_hidden_states)))
        logits = self.class_head(hidden_states)
        # A tiny image may have fewer locations than queries.
        num_queries = min(self.config.num_queries, logits.shape[1])
        indices = logits.amax(dim=-1).topk(num_queries, dim=1).indices

        selected = hidden_states.gather(1, indices.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))
        offsets = self.keypoint_head(selected).view(-1, num_queries, self.config.num_keypoints, 2)
        anchor_logits = torch.logit(anchors)[indices]
        keypoints = torch.sigmoid(offsets + anchor_logits.unsqueeze(2))
        return logits.gather(1, indices.unsqueeze(-1).expand(-1, -1, logits.shape[-1])), keypoints


class DETRPoseEmbeddingTable(nn.Embedding):
    """Embeddings that are read all at once, by a call, because offloaded weights are loaded only for calls."""

    def forward(self) -> torch.Tensor:
        return self.weight


class DETRPoseQueryContent(nn.Module):
    """The embeddings that initialize instance and keypoint tokens before the first decoder layer."""

    def __init__(self, config):
        super().__init__()
        self.instance_embedding = DETRPoseEmbeddingTable(1, config.d_model)
        self.keypoint_embedding = DETRPoseEmbeddingTable(config.num_keypoints, config.d_model)
        self.query_embedding = DETRPoseEmbeddingTable(config.num_queries, config.d_model)
        self.denoising_label_embedding = nn.Embedding(config.num_denoising_labels + 1, config.d_model)
        self.denoising_keypoint_embedding = DETRPoseEmbeddingTable(config.num_keypoints, config.d_model)

    def forward(self, batch_size: int, num_queries: int) -> torch.Tensor:
        """Returns the tokens of the matching queries, (B, Q, K + 1, D); only keypoint tokens depend on the rank."""
        keypoints = self.keypoint_embedding() + self.query_embedding()[:num_queries].unsqueeze(1)
        instances = self.instance_embedding().expand(num_queries, 1, -1)
        return torch.cat((instances, keypoints), dim=1).expand(batch_size, -1, -1, -1)

    def denoising(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the tokens of the denoising queries, (B, P, K + 1, D), zero where the label (B, P) is -1."""
        instances = self.denoising_label_embedding(labels.clamp(min=0)).unsqueeze(2)
        keypoints = self.denoising_keypoint_embedding().expand(*labels.shape, -1, -1)
        return torch.cat((instances, keypoints), dim=2) * (labels >= 0)[..., None, None]


class DETRPoseGate(nn.Module):
    """Weighs tokens against attended values, channel by channel, and normalizes the sum."""

    def __init__(self, config):
        super().__init__()
        self.gate = DETRPoseZeroLinear(2 * config.d_model, 2 * config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        both = torch.cat((hidden_states, attended), dim=-1)
        kept, taken = (torch.sigmoid(self.gate(both)) * both).split(hidden_states.shape[-1], dim=-1)
        return self.norm(kept + taken)


class DETRPoseDecoderLayer(GradientCheckpointingLayer):
    """Attention within instances, across instances and to the feature maps, then a feed-forward network."""

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
        *values: torch.Tensor,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Refines the tokens.

        Args:
            hidden_states: (B, Q, K + 1, D), the instance token first, with the position already added.
            position: (B, Q, K + 1, D), zero for the instance token; added again before the cross-attention.
            reference_points: (B, Q, K + 1, 2), x and y as fractions of the image.
            attention_mask: (1, 1, Q, Q), added to the attention scores across instances.
            values: see [`DETRPoseValues`]; separate arguments, because reentrant checkpointing tracks only tensors.
            output_attentions: whether to return the weights.

        Returns:
            The tokens, and the weights of the three attention modules, each of which may be None.
        """
        # The position stays in the residual stream and in the values, as the released weights were trained.
        attended, within = self.within_attn(hidden_states, output_attentions=output_attentions)
        hidden_states = self.within_attn_layer_norm(hidden_states + attended)

        attended, across = self.across_attn(
            hidden_states.transpose(1, 2), attention_mask=attention_mask, output_attentions=output_attentions
        )
        hidden_states = self.across_attn_layer_norm(hidden_states + attended.transpose(1, 2)) + position

        attended, cross = self.cross_attn(hidden_states, reference_points, *values)
        hidden_states = self.gate(hidden_states, attended)

        hidden_states = hidden_states + self.fc2(self.activation(self.fc1(hidden_states)))
        hidden_states = self.final_layer_norm(hidden_states.clamp(-MAX_ACTIVATION, MAX_ACTIVATION))
        return hidden_states, (within, across, cross)


class DETRPoseQualityHead(nn.Module):
    """Pose-LQE: estimates pose quality from the finest encoder map at the keypoints (paper, section 3.3.1)."""

    read = staticmethod(bilinear_sample)

    def __init__(self, config):
        super().__init__()
        self.top_k = config.lqe_top_k
        self.mlp = DETRPoseMLP(config, (self.top_k + 1) * config.num_keypoints, config.lqe_hidden_dim, 1, 2)

    def forward(self, feature_map: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
        """Returns the quality (B, Q, 1) of keypoints (B, Q, K, 2) on a feature map (B, D, height, width)."""
        content = self.read(feature_map, keypoints).permute(0, 2, 3, 1)
        largest = content.topk(self.top_k, dim=-1).values
        statistics = torch.cat((largest, largest.mean(dim=-1, keepdim=True)), dim=-1)
        return self.mlp(statistics.flatten(2).to(self.mlp.layers[0].weight.dtype))


class DETRPoseNoQuality(nn.Module):
    """Replaces Pose-LQE where it is disabled: adds zero to every score."""

    def __init__(self, config):
        super().__init__()

    def forward(self, feature_map: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
        """Returns zeros (B, Q, 1) for keypoints (B, Q, K, 2)."""
        return keypoints.new_zeros(*keypoints.shape[:2], 1)


QUALITY_HEADS = {True: DETRPoseQualityHead, False: DETRPoseNoQuality}


class DETRPoseIntegral(nn.Module):
    """Converts distributions over bins to offsets, their means as fractions of the image (FDR, paper, section 3.3)."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def bin_offsets(self, device: torch.device) -> torch.Tensor:
        """Returns the offset of each bin, (R + 1,), as a fraction of the image."""
        return weighting_function(self.config, device) / self.config.reg_scale

    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns offsets (..., 2) and probabilities (..., 2, R + 1) of logits (..., 2 * (R + 1))."""
        probabilities = logits.view(*logits.shape[:-1], 2, -1).softmax(dim=-1, dtype=torch.float32)
        with without_autocast(logits.device):
            return probabilities @ self.bin_offsets(logits.device), probabilities

    def deviations(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Returns the standard deviations of x and y, (..., 2), under probabilities (..., 2, R + 1).

        The variance of an offset is E[(W - E[W])²], with the weighting function W divided by the regression scale. The
        predicted distributions are not calibrated.
        """
        offsets = self.bin_offsets(probabilities.device)
        with without_autocast(probabilities.device):
            errors = offsets - (probabilities @ offsets).unsqueeze(-1)
        return (probabilities * errors.square()).sum(dim=-1).sqrt()


class PosePrediction(NamedTuple):
    """The keypoints predicted by a decoder layer, and what the next layer needs to refine them.

    Args:
        keypoints: (B, Q, K, 2), x and y as fractions of the image.
        initial_keypoints: (B, Q, K, 2), predicted by the initial head after the first layer; the offsets of all layers
            are relative to them. None without FDR heads.
        distribution_logits: (B, Q, K, 2 * (R + 1)), or None.
        probabilities: (B, Q, K, 2, R + 1), or None.
    """

    keypoints: torch.Tensor
    initial_keypoints: torch.Tensor | None = None
    distribution_logits: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None


@dataclass
class DETRPoseDecoderOutput(ModelOutput):
    """Outputs of the decoder for all queries, including denoising queries.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints + 1, d_model)`):
            Tokens after the last layer.
        pred_distributions (`torch.Tensor` of shape `(batch_size, num_queries, num_keypoints, 2, max_num_bins + 1)`,
            *optional*):
            Probabilities of the offset bins after the last layer.
        output_sets (`list[dict[str, torch.Tensor]]`):
            `logits` and `pred_keypoints` of the initial keypoints (with FDR heads) and of all layers, or of the last
            only.
        hidden_states (`tuple[torch.Tensor]`): Tokens before the first and after each layer.
        attentions (`tuple[tuple[torch.Tensor]]`): For each layer, the weights within and across instances, and to the
            feature maps.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pred_distributions: torch.FloatTensor | None = None
    output_sets: list[dict[str, torch.FloatTensor]] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[tuple[torch.FloatTensor, ...], ...] | None = None


class DETRPoseDecoder(nn.Module):
    """Refines all poses layer by layer, and predicts keypoints and scores (paper, section 3.3)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        d_model, num_layers = config.d_model, config.decoder_layers
        self.values = DETRPoseValues(config)
        self.layers = nn.ModuleList(DETRPoseDecoderLayer(config) for _ in range(num_layers))
        self.position_head = DETRPosePositionHead(config)
        self.class_heads = nn.ModuleList(DETRPoseClassHead(config) for _ in range(num_layers))
        quality_head = QUALITY_HEADS[config.use_pose_lqe]
        self.quality_heads = nn.ModuleList(quality_head(config) for _ in range(num_layers))
        self.make_keypoint_heads(d_model, num_layers)

    def make_keypoint_heads(self, d_model: int, num_layers: int):
        """Creates the heads that `predict_keypoints` uses."""
        num_bins = self.config.max_num_bins + 1
        self.initial_keypoint_head = DETRPoseMLP(self.config, d_model, d_model, 2, 3)
        self.keypoint_heads = nn.ModuleList(
            DETRPoseMLP(self.config, d_model, d_model, 2 * num_bins, 3) for _ in range(num_layers)
        )
        self.integral = DETRPoseIntegral(self.config)

    @property
    def output_set_names(self) -> tuple[str, ...]:
        """The names of the output sets in the losses, in the order of computation."""
        return ("initial", *map(str, range(self.config.decoder_layers)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        keypoints: torch.Tensor,
        instance_points: torch.Tensor,
        feature_maps: list[torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        output_all_layers: bool = False,
        output_attentions: bool = False,
    ) -> DETRPoseDecoderOutput:
        """Refines the queries layer by layer.

        Args:
            hidden_states: (B, Q, K + 1, D).
            keypoints: (B, Q, K, 2), initial reference points of the keypoint tokens.
            instance_points: (B, Q, 1, 2), initial reference points of the instance tokens.
            feature_maps: of the encoder, finest first, each (B, D, height, width).
            attention_mask: (1, 1, Q, Q), added to the attention scores across instances.
            output_all_layers: whether to score the predictions of all layers, for the losses.
            output_attentions: whether to return the weights.
        """
        values = self.values(feature_maps)
        all_hidden_states, all_attentions, predictions = [hidden_states], [], []
        for layer in self.layers:
            position = F.pad(self.position_head(keypoints), (0, 0, 1, 0))  # zero for the instance token
            points = torch.cat((instance_points, keypoints), dim=2)
            located = hidden_states + position
            hidden_states, attentions = layer(
                located, position, points, attention_mask, *values, output_attentions=output_attentions
            )
            predictions.append(self.predict_keypoints(hidden_states, located, keypoints, predictions))
            keypoints = predictions[-1].keypoints.detach()
            instance_points = keypoints.mean(dim=2, keepdim=True)
            all_hidden_states.append(hidden_states)
            all_attentions.append(attentions)
        return DETRPoseDecoderOutput(
            last_hidden_state=hidden_states,
            pred_distributions=predictions[-1].probabilities,
            output_sets=self.score(all_hidden_states[1:], predictions, feature_maps[0], output_all_layers),
            hidden_states=tuple(all_hidden_states),
            attentions=tuple(all_attentions),
        )

    def predict_keypoints(
        self,
        hidden_states: torch.Tensor,
        located: torch.Tensor,
        keypoints: torch.Tensor,
        earlier: list[PosePrediction],
    ) -> PosePrediction:
        """Predicts keypoints as distributions over offsets from the initial keypoints (FDR).

        Args:
            hidden_states: tokens after the layer, (B, Q, K + 1, D).
            located: tokens before the layer, with their position added, (B, Q, K + 1, D).
            keypoints: the layer's input keypoints, (B, Q, K, 2).
            earlier: predictions of the preceding layers.
        """
        head, tokens = self.keypoint_heads[len(earlier)], hidden_states[:, :, 1:]
        if earlier:
            initial_keypoints = earlier[-1].initial_keypoints
            # As the released weights were trained: this head also gets the layer's input tokens with their position.
            logits = earlier[-1].distribution_logits + head(tokens + located[:, :, 1:].detach())
        else:
            initial_keypoints = torch.sigmoid(self.initial_keypoint_head(tokens) + clamped_logit(keypoints))
            logits = head(tokens)
        offsets, probabilities = self.integral(logits)
        return PosePrediction(initial_keypoints.detach() + offsets, initial_keypoints, logits, probabilities)

    def score(
        self,
        hidden_states: list[torch.Tensor],
        predictions: list[PosePrediction],
        feature_map: torch.Tensor,
        all_layers: bool,
    ) -> list[dict[str, torch.Tensor]]:
        """Scores the initial keypoints and the predictions of all layers, or only those of the last layer.

        Args:
            hidden_states: tokens after each layer, (B, Q, K + 1, D).
            predictions: one per layer.
            feature_map: the encoder's finest, (B, D, height, width).
            all_layers: whether to score all of them.

        Returns:
            `logits` (B, Q, C) and `pred_keypoints` (B, Q, K, 2) of each.
        """
        output_sets = []
        initial_keypoints = predictions[0].initial_keypoints
        if all_layers and initial_keypoints is not None:
            logits = self.class_heads[0](hidden_states[0][:, :, 0])
            output_sets.append({"logits": logits, "pred_keypoints": initial_keypoints})
        # Indexed from the end, because inference needs only the heads of the last layer.
        for index in range(-len(predictions) if all_layers else -1, 0):
            keypoints = predictions[index].keypoints
            quality = self.quality_heads[index](feature_map, keypoints)
            logits = self.class_heads[index](hidden_states[index][:, :, 0]) + quality
            output_sets.append({"logits": logits, "pred_keypoints": keypoints})
        return output_sets


class DETRPoseOffsetDecoder(DETRPoseDecoder):
    """The decoder without FDR, as in the paper's ablation: each layer predicts offsets from its input keypoints."""

    def make_keypoint_heads(self, d_model: int, num_layers: int):
        self.keypoint_heads = nn.ModuleList(DETRPoseMLP(self.config, d_model, d_model, 2, 3) for _ in range(num_layers))

    @property
    def output_set_names(self) -> tuple[str, ...]:
        return super().output_set_names[1:]

    def predict_keypoints(self, hidden_states, located, keypoints, earlier) -> PosePrediction:
        offsets = self.keypoint_heads[len(earlier)](hidden_states[:, :, 1:])
        return PosePrediction(torch.sigmoid(offsets + clamped_logit(keypoints)))


DECODERS = {True: DETRPoseDecoder, False: DETRPoseOffsetDecoder}


_BACKBONE_INITIAL_VALUES = {
    DETRPoseFrozenBatchNorm2d: {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0},
    DETRPoseLearnableAffineBlock: {"scale": 1.0, "bias": 0.0},
}


class DETRPosePreTrainedModel(PreTrainedModel):
    """Base class of the DETRPose models: configuration, initialization, saving."""

    config_class = DETRPoseConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Each combines tensors of several children, which must therefore be on one device. transformers' own list for the
    # backbone lacks its stem.
    _no_split_modules = [
        # trf-ignore: TRF022
        "HGNetV2Embeddings",
        "ECViTEmbeddings",
        "ECViTLayer",
        "ECViTPyramid",
        "DETRPoseHybridEncoder",
        "DETRPoseQuerySelection",
        "DETRPoseQueryContent",
        "DETRPoseDecoder",
    ]
    # Frozen batch norms lack this counter, which checkpoints of unfrozen ones contain.
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked"]

    # The base class would initialize the same weights first, from another distribution.
    # trf-ignore: TRF018
    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initializes a module that holds parameters."""
        if isinstance(module, DETRPoseSamplingOffsets):
            nn.init.zeros_(module.weight)
            init_copy(module.bias, module.initial_bias())
        elif isinstance(module, DETRPoseZeroLinear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        # CODEPATH: "default" is ECPose's, "xavier" DETRPose's.
        elif isinstance(module, nn.Conv2d) and self.config.convolution_initialization == "default":
            module.reset_parameters()
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.constant_(module.bias, self._prior_logit if isinstance(module, DETRPoseClassHead) else 0.0)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init_norm(module)
        elif isinstance(module, DETRPoseCalibration):
            for name, value in initial_values(self.config.num_keypoints, self.config.d_model).items():
                init_copy(getattr(module, name), value)

    @torch.no_grad()
    def initialize_weights(self):
        """Initializes all parameters and buffers that were not loaded from a checkpoint."""
        super().initialize_weights()
        # The backbone, itself a transformers model, initializes its own modules, except for these.
        for module in self.modules():
            for name, value in _BACKBONE_INITIAL_VALUES.get(type(module), {}).items():
                init_copy(getattr(module, name), value)
            if isinstance(module, HGNetV2ConvLayer):
                # transformers' standard deviation of 0.02, whatever the fan-in, slows down training from scratch.
                weight = module.convolution.weight
                init_copy(weight, nn.init.kaiming_normal_(torch.empty_like(weight)))

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers guesses this from the source code, differently in each version.
        return True

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs):
        """Selects the attention function, "sdpa" or "eager", except for backbones without attention."""
        # CODEPATH: HGNetV2, the backbone of DETRPose, has no attention; ECViT, that of ECPose, has.
        if isinstance(attn_implementation, str) and not supports_sdpa(self.config.backbone_config):
            attn_implementation = {"": attn_implementation}
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves weights, configuration and code to a folder; see `PreTrainedModel.save_pretrained`."""
        # Imported here, as only saving needs it; transformers copies all relatively imported files into the folder.
        from .pipeline_keypoint_detection import CUSTOM_PIPELINES

        # By default, transformers would list only the saved class, under one Auto class, and no pipeline.
        self.config.auto_map = {
            "AutoModel": f"modeling_detrpose.{DETRPoseModel.__name__}",
            "AutoModelForKeypointDetection": f"modeling_detrpose.{DETRPoseForPoseEstimation.__name__}",
            "AutoModelForPoseEstimation": f"modeling_detrpose.{DETRPoseForPoseEstimation.__name__}",
        }
        self.config.custom_pipelines = CUSTOM_PIPELINES
        super().save_pretrained(save_directory, *args, **kwargs)
        del self.config.custom_pipelines

    def push_to_hub(self, repo_id, *args, **kwargs):
        """Uploads weights, configuration, code and, if the repository has none, a model card.

        See `PreTrainedModel.push_to_hub` for the arguments and the result.
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
    """Copies `values` into a parameter or buffer unless it was loaded from a checkpoint."""
    if not getattr(tensor, "_is_hf_initialized", False):
        tensor.copy_(torch.as_tensor(values))


class DecoderQueries(NamedTuple):
    """Inputs of the decoder: P denoising queries, if any, followed by the Q selected queries.

    Args:
        content: tokens, (B, P + Q, K + 1, D).
        keypoints: (B, P + Q, K, 2), x and y as fractions of the image.
        instance_points: (B, P + Q, 1, 2).
        attention_mask: (1, 1, P + Q, P + Q), added to attention scores; None without denoising queries.
    """

    content: torch.Tensor
    keypoints: torch.Tensor
    instance_points: torch.Tensor
    attention_mask: torch.Tensor | None


class DETRPoseModel(DETRPosePreTrainedModel):
    """The network without losses; train and deploy [`DETRPoseForPoseEstimation`].

    Args:
        config ([`DETRPoseConfig`]): the configuration.
    """

    def __init__(self, config: DETRPoseConfig):
        super().__init__(config)
        # CODEPATH: HGNetV2, unlike ECViT, has no attention and rejects the implementation requested for the model.
        # trf-ignore: TRF051
        if config.backbone_config._attn_implementation == "sdpa" and not supports_sdpa(config.backbone_config):
            config.backbone_config._attn_implementation = None
        # In the precision of the whole model, whatever precision its own configuration was saved with.
        self.backbone = make_backbone(config.backbone_config)
        replace_affine_blocks(self.backbone)
        # CODEPATH: False is for training the backbone from random weights, and for ECPose.
        if config.freeze_backbone_batch_norms:
            freeze_batch_norms(self.backbone)
        self.encoder = DETRPoseHybridEncoder(config, self.backbone.channels)
        self.query_selection = DETRPoseQuerySelection(config)
        self.query_content = DETRPoseQueryContent(config)
        self.decoder = DECODERS[config.use_fdr_heads](config)
        warn_of_unscaled_images(self)
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
    ) -> tuple | DETRPoseModelOutput:
        """Predicts the poses in a batch of images.

        Args:
            pixel_values: (B, 3, height, width), RGB in [0, 1]; height and width are multiples of the largest stride.
            denoising_queries: denoising queries for the labels, see [`make_denoising_queries`].
            output_auxiliary: whether to return the predictions of earlier layers; by default only in training mode.
            output_distributions: whether to return the probabilities of the offset bins.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the tokens of all decoder layers and the encoder's feature maps.
            return_dict: whether to return a [`DETRPoseModelOutput`] instead of a tuple.

        Raises:
            ValueError: if `pixel_values` is not a batch of images of a valid size.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output_auxiliary = self.training if output_auxiliary is None else output_auxiliary
        check_pixel_values(pixel_values, self.config.feature_strides[-1])

        feature_maps = self.backbone(pixel_values.to(self.dtype)).feature_maps
        feature_maps, encoder_attention = self.encoder(feature_maps, output_attentions)
        encoder_hidden_states = torch.cat([x.flatten(2).transpose(1, 2) for x in feature_maps], dim=1)
        spatial_shapes = [tuple(x.shape[-2:]) for x in feature_maps]
        encoder_logits, encoder_keypoints = self.query_selection(encoder_hidden_states, spatial_shapes)
        queries = self._make_queries(encoder_keypoints.detach(), denoising_queries)
        decoded = self.decoder(
            queries.content,
            queries.keypoints,
            queries.instance_points,
            feature_maps,
            queries.attention_mask,
            output_all_layers=output_auxiliary,
            output_attentions=output_attentions,
        )

        fields = self._collect(decoded, denoising_queries, output_distributions)
        if output_auxiliary:
            encoder_set = {"logits": encoder_logits, "pred_keypoints": encoder_keypoints}
            fields["auxiliary_outputs"] = [encoder_set, *fields["auxiliary_outputs"]]
        fields["encoder_last_hidden_state"] = encoder_hidden_states
        if output_hidden_states:
            fields["hidden_states"] = decoded.hidden_states
            fields["encoder_hidden_states"] = tuple(feature_maps)
        if output_attentions:
            names = ("attentions", "across_attentions", "cross_attentions")
            fields.update(zip(names, zip(*decoded.attentions, strict=True), strict=True))
            fields["encoder_attentions"] = (encoder_attention,)
        # All fields at once: in transformers 4, fields that are set later are missing from the tuple.
        outputs = DETRPoseModelOutput(**fields)
        return outputs if return_dict else outputs.to_tuple()

    def _make_queries(self, keypoints: torch.Tensor, denoising_queries: DenoisingQueries | None) -> DecoderQueries:
        """Concatenates denoising queries, if any, and the selected queries, whose keypoints are (B, Q, K, 2)."""
        content = self.query_content(*keypoints.shape[:2])
        instance_points = keypoints.mean(dim=2, keepdim=True)
        if denoising_queries is None:
            return DecoderQueries(content, keypoints, instance_points, None)
        content = torch.cat((self.query_content.denoising(denoising_queries.labels), content), dim=1)
        instance, points = denoising_queries.reference_points.split((1, self.config.num_keypoints), dim=2)
        # A tiny image has fewer locations, and so fewer queries, than the mask.
        num_tokens = content.shape[1]
        forbidden = denoising_queries.attention_mask[None, None, :num_tokens, :num_tokens]
        mask = content.new_zeros(forbidden.shape).masked_fill(forbidden, torch.finfo(content.dtype).min)
        return DecoderQueries(
            content=content,
            keypoints=torch.cat((points.to(keypoints), keypoints), dim=1),
            instance_points=torch.cat((instance.to(keypoints), instance_points), dim=1),
            attention_mask=mask,
        )

    def _collect(
        self,
        decoded: DETRPoseDecoderOutput,
        denoising_queries: DenoisingQueries | None,
        output_distributions: bool,
    ) -> dict:
        """Returns the decoder's outputs as output fields, with the denoising queries separated."""
        num_denoising = 0 if denoising_queries is None else denoising_queries.labels.shape[1]
        *auxiliary, last = [
            {name: value[:, num_denoising:] for name, value in output_set.items()} for output_set in decoded.output_sets
        ]
        fields = {
            "last_hidden_state": decoded.last_hidden_state[:, num_denoising:],
            **last,
            "auxiliary_outputs": auxiliary or None,
        }
        if decoded.pred_distributions is not None:
            probabilities = decoded.pred_distributions[:, num_denoising:]
            fields["pred_keypoint_std"] = self.decoder.integral.deviations(probabilities)
            fields["pred_distributions"] = probabilities if output_distributions else None
        if denoising_queries is not None:
            fields["denoising_outputs"] = [
                {name: value[:, :num_denoising] for name, value in output_set.items()}
                for output_set in decoded.output_sets
            ]
        return fields


class DETRPoseForPoseEstimation(DETRPosePreTrainedModel):
    """DETRPose for multi-person pose estimation: the keypoints of every person in one pass, and the losses.

    Args:
        config ([`DETRPoseConfig`]): the configuration.
    """

    # Otherwise Trainer would expect a loss summed over items.
    accepts_loss_kwargs = False

    def __init__(self, config: DETRPoseConfig):
        super().__init__(config)
        self.model = DETRPoseModel(config)
        self.visibility_head = VISIBILITY_HEADS[config.use_visibility_head](config)
        self.calibration = CALIBRATIONS[config.use_calibration](config)
        self.post_init()

    @property
    def loss_function(self):
        """The loss function, [`pose_estimation_loss`]."""
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
        inputs_are_valid: bool = False,
        loss_divisors: torch.Tensor | None = None,
    ) -> tuple | DETRPoseForPoseEstimationOutput:
        """Predicts the poses in a batch of images and, given labels, computes the losses.

        Args:
            pixel_values: (B, 3, height, width), RGB in [0, 1]; height and width are multiples of the largest stride.
            labels: one dictionary per image with `class_labels` (n,) int64, `keypoints` (n, K, 3), x and y as fractions
                of the image and visibility 0, 1 or 2, and `area` (n,) as a fraction of the image area. n may be 0.
            denoising_queries: by default made from the labels in training mode.
            output_distributions: whether to return the probabilities of the offset bins.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the tokens of all decoder layers and the encoder's feature maps.
            return_dict: whether to return a [`DETRPoseForPoseEstimationOutput`] instead of a tuple.
            inputs_are_valid: whether the labels have already been checked by `validate_labels`, preferably on the host,
                as on a GPU the check makes the host wait for the device.
            loss_divisors: divisors of the losses if gradients are accumulated, see [`pose_estimation_loss`].

        Raises:
            ValueError: if images or labels are invalid; the message names the image and the key, and what was expected
                and found.

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
        if labels is not None:
            if not inputs_are_valid:
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
        outputs = self.visibility_head(outputs)
        loss, loss_dict = None, None
        if labels is not None:
            loss, loss_dict = self._compute_loss(outputs, labels, denoising_queries, loss_divisors)
        outputs = DETRPoseForPoseEstimationOutput(loss=loss, loss_dict=loss_dict, **self.calibration(outputs))
        return outputs if return_dict else outputs.to_tuple()

    def output_sets(self, outputs: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
        """Returns the outputs that the losses compare with the labels, by the names that [`pose_estimation_loss`] has
        for them; `outputs` are those of a model in training mode, or with labels."""
        last = {name: outputs[name] for name in ("logits", "pred_keypoints", "pred_visibility") if name in outputs}
        names = ("encoder", *self.model.decoder.output_set_names[:-1])
        return {"": last, **dict(zip(names, outputs["auxiliary_outputs"], strict=True))}

    def _compute_loss(
        self,
        outputs: Mapping[str, Any],
        labels: list[dict],
        denoising_queries: DenoisingQueries | None,
        divisors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the sum of the losses of all output sets, and each of them by name."""
        denoising_sets = None
        if denoising_queries is not None:
            names = self.model.decoder.output_set_names
            denoising_sets = dict(zip(names, outputs["denoising_outputs"], strict=True))
        loss, loss_dict = self.loss_function(
            self.output_sets(outputs), labels, self.config, denoising_queries, denoising_sets, divisors
        )
        if self.training and denoising_queries is None:
            # Distributed training needs every parameter in every step, also without people.
            unused = self.model.query_content.denoising(torch.zeros(1, 1, dtype=torch.int64, device=loss.device))
            loss = loss + 0 * unused.sum()
        return loss, loss_dict

    def fuse(self, target: str = "pytorch") -> "DETRPoseForPoseEstimation":
        """Returns a smaller and faster copy for deployment, with the same outputs to within 1e-4.

        See `transformers_detrpose.deployment.fuse`.

        Args:
            target: runtime of the copy: "pytorch", or "onnxruntime" or "tensorrt" for export.

        Raises:
            ImportError: if the package is not installed and the model was loaded from code saved with it.
            ValueError: if the target is unknown.
        """
        try:
            from transformers_detrpose.deployment import fuse
        except ImportError as error:
            raise ImportError("fusing a model needs `pip install transformers-detrpose`.") from error
        return fuse(self, target)
