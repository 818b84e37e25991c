"""The hybrid encoder: attention in the coarsest feature map, then top-down and bottom-up fusion of all maps.

Tables map the value of a field of the configuration to the class that it chooses.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .attention import DETRPoseSelfAttention
from .position_encoding import grid_position_encoding, sine_position_encoding


class DETRPoseConvNorm(nn.Module):
    """A convolution without bias, a batch norm and an optional activation."""

    def __init__(self, config, in_channels, out_channels, kernel_size, stride=1, groups=1, activation=None):
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps)
        self.activation = nn.Identity() if activation is None else ACT2FN[activation]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.conv(hidden_state)))


class DETRPoseRepVggBlock(nn.Module):
    """The sum of a 3x3 and a 1x1 convolution."""

    def __init__(self, config, channels):
        super().__init__()
        self.conv1 = DETRPoseConvNorm(config, channels, channels, 3)
        self.conv2 = DETRPoseConvNorm(config, channels, channels, 1)
        self.activation = ACT2FN[config.activation_function]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv1(hidden_state) + self.conv2(hidden_state))


class DETRPoseCSPLayer(nn.Module):
    """The sum of two 1x1 branches, one of them followed by RepVGG blocks."""

    def __init__(self, config, in_channels, out_channels):
        super().__init__()
        activation = config.activation_function
        self.conv1 = DETRPoseConvNorm(config, in_channels, out_channels, 1, activation=activation)
        self.conv2 = DETRPoseConvNorm(config, in_channels, out_channels, 1, activation=activation)
        num_blocks = round(3 * config.depth_mult)
        self.bottlenecks = nn.ModuleList(DETRPoseRepVggBlock(config, out_channels) for _ in range(num_blocks))

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        shortcut = self.conv2(hidden_state)
        hidden_state = self.conv1(hidden_state)
        for block in self.bottlenecks:
            hidden_state = block(hidden_state)
        return hidden_state + shortcut


class DETRPoseJointCSPLayer(nn.Module):
    """A 1x1 convolution whose outputs are a shortcut and the input of RepVGG blocks, and the sum of both."""

    def __init__(self, config, in_channels, out_channels):
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = DETRPoseConvNorm(config, in_channels, 2 * out_channels, 1, activation=config.activation_function)
        num_blocks = round(3 * config.depth_mult)
        self.bottlenecks = nn.Sequential(*(DETRPoseRepVggBlock(config, out_channels) for _ in range(num_blocks)))

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        shortcut, hidden_state = self.conv1(hidden_state).split(self.out_channels, dim=1)
        return shortcut + self.bottlenecks(hidden_state)


CSP_LAYERS = {False: DETRPoseCSPLayer, True: DETRPoseJointCSPLayer}


class DETRPoseFusionBlock(nn.Module):
    """Fuses two feature maps into one, by concatenation: the RepNCSPELAN4 block of D-FINE.

    Args:
        config: the model's configuration.
        upsample: whether to upsample the first map, which then has half the height and width of the second.
    """

    combined_maps = 2  # channels after combining both maps, relative to those of one

    def __init__(self, config, upsample: bool):
        super().__init__()
        channels, width = config.d_model, int(config.hidden_expansion * config.d_model / 2)
        activation, csp_layer = config.activation_function, CSP_LAYERS[config.use_joint_csp_convolution]
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()
        self.conv1 = DETRPoseConvNorm(config, self.combined_maps * channels, 2 * channels, 1, activation=activation)
        self.csp1 = csp_layer(config, channels, width)
        self.conv2 = self.trailing_convolution(config, width)
        self.csp2 = csp_layer(config, width, width)
        self.conv3 = self.trailing_convolution(config, width)
        self.conv4 = DETRPoseConvNorm(config, 2 * channels + 2 * width, channels, 1, activation=activation)

    @staticmethod
    def trailing_convolution(config, width: int) -> nn.Module:
        """Returns the 3x3 convolution after a CSP layer, if the configuration has it."""
        if not config.use_trailing_convolutions:
            return nn.Identity()
        return DETRPoseConvNorm(config, width, width, 3, activation=config.activation_function)

    def combine(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Combines two feature maps of the same size."""
        return torch.cat((first, second), dim=1)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        halves = self.conv1(self.combine(self.upsample(first), second)).chunk(2, dim=1)
        stage1 = self.conv2(self.csp1(halves[1]))
        stage2 = self.conv3(self.csp2(stage1))
        return self.conv4(torch.cat((*halves, stage1, stage2), dim=1))


class DETRPoseSumFusionBlock(DETRPoseFusionBlock):
    """Fuses two feature maps into one, by their sum."""

    combined_maps = 1

    def combine(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first + second


FUSION_BLOCKS = {"concatenate": DETRPoseFusionBlock, "sum": DETRPoseSumFusionBlock}


class DETRPoseDownsample(nn.Module):
    """Halves a feature map's height and width: a 1x1 convolution, then a depthwise one with stride 2."""

    def __init__(self, config):
        super().__init__()
        self.conv1 = DETRPoseConvNorm(config, config.d_model, config.d_model, 1)
        self.conv2 = DETRPoseConvNorm(config, config.d_model, config.d_model, 3, stride=2, groups=config.d_model)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(hidden_state))


class DETRPoseEncoderLayer(nn.Module):
    """A post-norm transformer layer over the locations of the coarsest feature map."""

    def __init__(self, config):
        super().__init__()
        self.self_attn = DETRPoseSelfAttention(config, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.encoder_activation_function]
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, position: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Refines locations (B, S, D) at positions (S, D); returns them and the weights (B, heads, S, S) or None."""
        attended, weights = self.self_attn(hidden_states, position, output_attentions=output_attentions)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        update = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + update), weights


class DETRPoseFractionPosition(nn.Module):
    """Position encoding of a feature map's locations by their fractions of its height and width."""

    def __init__(self, config):
        super().__init__()
        self.num_channels, self.temperature = config.d_model, config.encoder_position_temperature

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Returns the encoding (height * width, D) of a feature map (B, D, height, width)."""
        height, width = feature_map.shape[-2:]
        # Positions count from 1 to the size; they are not pixel centers.
        x = torch.arange(1, width + 1, device=feature_map.device, dtype=torch.float32) / (width + 1e-6)
        y = torch.arange(1, height + 1, device=feature_map.device, dtype=torch.float32) / (height + 1e-6)
        points = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
        return sine_position_encoding(points, self.num_channels, self.temperature)


class DETRPoseGridPosition(DETRPoseFractionPosition):
    """Position encoding of a feature map's locations by their rows and columns."""

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Returns the encoding (height * width, D) of a feature map (B, D, height, width)."""
        size_hw = feature_map.shape[-2:]
        return grid_position_encoding(*size_hw, self.num_channels, self.temperature, feature_map.device)


POSITIONS = {"fraction": DETRPoseFractionPosition, "grid": DETRPoseGridPosition}


class DETRPoseHybridEncoder(nn.Module):
    """Fuses the backbone's feature maps: attention in the coarsest, then top-down and bottom-up fusion."""

    def __init__(self, config, in_channels):
        super().__init__()
        self.config = config
        self.input_projections = nn.ModuleList(self.input_projection(config, channels) for channels in in_channels)
        self.position = POSITIONS[config.encoder_position_encoding](config)
        self.transformer_layer = DETRPoseEncoderLayer(config)
        steps = range(len(in_channels) - 1)
        activation = config.activation_function if config.use_lateral_activation else None
        fusion_block = FUSION_BLOCKS[config.fusion_operation]
        self.lateral_convs = nn.ModuleList(
            DETRPoseConvNorm(config, config.d_model, config.d_model, 1, activation=activation) for _ in steps
        )
        self.fpn_blocks = nn.ModuleList(fusion_block(config, upsample=True) for _ in steps)
        self.downsample_convs = nn.ModuleList(DETRPoseDownsample(config) for _ in steps)
        self.pan_blocks = nn.ModuleList(fusion_block(config, upsample=False) for _ in steps)

    @staticmethod
    def input_projection(config, channels: int) -> nn.Module:
        """Returns what brings a feature map with these channels to D channels."""
        if config.use_input_projections:
            return DETRPoseConvNorm(config, channels, config.d_model, 1)
        if channels != config.d_model:
            raise ValueError(
                f"`use_input_projections` must be True for feature maps of the backbone with {channels} channels, not "
                f"`d_model` = {config.d_model}, but got False."
            )
        return nn.Identity()

    def forward(
        self, feature_maps: tuple[torch.Tensor, ...], output_attentions: bool = False
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Fuses the feature maps.

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
        """Applies the transformer layer to a feature map, (B, D, height, width)."""
        height, width = feature_map.shape[-2:]
        position = self.position(feature_map)
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens, weights = self.transformer_layer(tokens, position.to(tokens.dtype), output_attentions)
        return tokens.transpose(1, 2).reshape(-1, self.config.d_model, height, width), weights
