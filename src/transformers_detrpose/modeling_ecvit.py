"""ECViT, the backbone of ECPose: a compact vision transformer whose last layers become a pyramid of feature maps.

Symbols in shapes: batch size B, channels E, patches N = height / 16 · width / 16.

Source: EdgeCrafter (arXiv 2603.18739); rotary position encoding as in DINOv3 (arXiv 2508.10104).
"""

import math
from itertools import pairwise

import torch
from torch import nn
from transformers import AutoBackbone, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention_forward
from .batch_norm import init_norm
from .configuration_ecvit import ECViTConfig, is_ecvit
from .first_batch import check_pixel_values
from .hybrid_encoder import DETRPoseConvNorm
from .position_encoding import pixel_centers

try:
    from transformers.backbone_utils import BackboneMixin
except ImportError:  # transformers 4
    from transformers.utils.backbone_utils import BackboneMixin

PATCH_SIZE, LARGEST_STRIDE = 16, 32


Rotation = tuple[torch.Tensor, torch.Tensor]


def rotary_encoding(height: int, width: int, head_dim: int, theta: float, device: torch.device) -> Rotation:
    """Returns the factors of the rotary position encoding, see [`rotate`].

    The first token, the register, has no position: its angles are zero. A patch has the angles 2π · y / period for all
    head_dim / 4 periods, then those of x, and all of them again, with y and x from -1 to 1.

    Args:
        height: rows of patches.
        width: patches in a row.
        head_dim: channels of an attention head, divisible by 4.
        theta: the longest period would be theta; the shortest is 1.
        device: device of the result.

    Returns:
        Cosines, and sines with the sign of the rotation, both (height * width + 1, head_dim) in float32.
    """
    points = 2 * pixel_centers(height, width, device).flip(-1) - 1
    periods = theta ** (4 * torch.arange(head_dim // 4, device=device, dtype=torch.float32) / head_dim)
    angles = nn.functional.pad((2 * math.pi * points.unsqueeze(-1) / periods).flatten(1), (0, 0, 1, 0))
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates queries or keys, (B, heads, tokens, head_dim): each channel of the first half with one of the second."""
    cosines, sines = (factors.to(states.dtype) for factors in rotation)
    # `split` is exported as one node, `chunk` as two.
    first, second = states.split(states.shape[-1] // 2, dim=-1)
    return states * cosines + torch.cat((second, first), dim=-1) * sines


class ECViTEmbeddings(nn.Module):
    """Embeds patches of 16x16 pixels by four convolutions, and adds a learnt register token before them."""

    def __init__(self, config: ECViTConfig):
        super().__init__()
        self.register_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        sizes = [config.num_channels, *(config.hidden_size // divisor for divisor in (8, 4, 2))]
        self.convs = nn.ModuleList(
            DETRPoseConvNorm(config, size, next_size, 3, stride=2, activation="relu")
            for size, next_size in pairwise(sizes)
        )
        self.projection = nn.Conv2d(sizes[-1], config.hidden_size, 3, stride=2, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns the tokens (B, N + 1, E) of images, the register first, then the patches row by row."""
        hidden_state = pixel_values
        for conv in self.convs:
            hidden_state = conv(hidden_state)
        patches = self.projection(hidden_state).flatten(2).transpose(1, 2)
        return torch.cat((self.register_token.expand(patches.shape[0], -1, -1), patches), dim=1)


class ECViTAttention(nn.Module):
    """Multi-head self-attention with a rotary position encoding and one projection for queries, keys and values."""

    is_causal = False

    def __init__(self, config: ECViTConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, rotation: Rotation, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the attended values (B, N + 1, E), and the weights (B, heads, N + 1, N + 1) or None."""
        states = self.qkv_proj(hidden_states).view(*hidden_states.shape[:-1], 3, self.num_heads, self.head_dim)
        query, key, value = states.permute(2, 0, 3, 1, 4)
        query, key = rotate(query, rotation), rotate(key, rotation)

        # Only eager attention returns the weights.
        attention = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation)
        if output_attentions or attention is None:
            attention = eager_attention_forward
        attended, weights = attention(self, query, key, value, None, dropout=0.0, scaling=self.scaling, is_causal=False)
        return self.o_proj(attended.reshape(hidden_states.shape)), weights


class ECViTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: ECViTConfig):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ECViTAttention(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, rotation: Rotation, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Refines tokens (B, N + 1, E); `rotation` comes from [`rotary_encoding`]."""
        attended, weights = self.self_attn(self.self_attn_layer_norm(hidden_states), rotation, output_attentions)
        hidden_states = hidden_states + attended
        update = self.fc2(self.activation(self.fc1(self.final_layer_norm(hidden_states))))
        return hidden_states + update, weights


class ECViTPyramid(nn.Module):
    """Makes the feature maps at strides of 8, 16 and 32 from the outputs of the last layers."""

    def __init__(self, config: ECViTConfig):
        super().__init__()
        self.resizings = nn.ModuleList(
            (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Identity(), nn.AvgPool2d(kernel_size=2))
        )
        self.projectors = nn.ModuleList(self.projector(config, stage) for stage in config.stage_names[1:])

    @staticmethod
    def projector(config: ECViTConfig, stage: str) -> nn.Module:
        """Returns the projector of a feature map, or nothing in its place."""
        # CODEPATH: ECPose-S and M project the coarsest feature map only, L and X all three.
        if stage not in config.projected_stages:
            return nn.Identity()
        return DETRPoseConvNorm(config, config.hidden_size, config.projection_size or config.hidden_size, 1)

    def forward(self, last_states: tuple[torch.Tensor, ...], size_hw: tuple[int, int]) -> list[torch.Tensor]:
        """Makes the feature maps.

        Args:
            last_states: tokens after the last layers, each (B, N + 1, E).
            size_hw: rows of patches and patches in a row.

        Returns:
            The feature maps, finest first, each (B, channels, height, width).
        """
        mean = sum(last_states) / len(last_states)
        patches = patch_map(mean, size_hw)
        return [projection(resize(patches)) for resize, projection in zip(self.resizings, self.projectors, strict=True)]


def patch_map(tokens: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Returns the patches among tokens (B, N + 1, E) as a feature map (B, E, height, width)."""
    return tokens[:, 1:].transpose(1, 2).reshape(-1, tokens.shape[-1], *size_hw)


class ECViTPreTrainedModel(PreTrainedModel):
    """Base class of ECViT: configuration, initialization, saving."""

    config_class = ECViTConfig
    base_model_prefix = "ecvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ECViTEmbeddings", "ECViTLayer", "ECViTPyramid"]

    # The base class would initialize the same weights first, from another distribution.
    # trf-ignore: TRF018
    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initializes a module that holds parameters."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, ECViTEmbeddings):
            nn.init.trunc_normal_(module.register_token, std=self.config.initializer_range)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init_norm(module)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers guesses this from the source code, differently in each version.
        return True


class ECViTBackbone(BackboneMixin, ECViTPreTrainedModel):
    """ECViT as a backbone: feature maps at strides of 8, 16 and 32.

    Args:
        config ([`ECViTConfig`]): the configuration.

    Example:

    ```python
    >>> import torch
    >>> import transformers_detrpose
    >>> from transformers import AutoBackbone, AutoConfig

    >>> config = AutoConfig.for_model("ecvit", out_features=["stage1", "stage2", "stage3"])
    >>> backbone = AutoBackbone.from_config(config)
    >>> feature_maps = backbone(torch.rand(1, 3, 640, 480)).feature_maps
    ```
    """

    has_attentions = True

    def __init__(self, config: ECViTConfig):
        super().__init__(config)
        if hasattr(self, "_init_backbone"):  # transformers 4
            self._init_backbone(config)
        self.num_features = config.num_features
        self.embeddings = ECViTEmbeddings(config)
        self.layers = nn.ModuleList(ECViTLayer(config) for _ in range(config.num_hidden_layers))
        self.pyramid = ECViTPyramid(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> tuple | BackboneOutput:
        """Computes the feature maps of a batch of images.

        Args:
            pixel_values: (B, 3, height, width); height and width are multiples of 32.
            output_hidden_states: whether to return the tokens (B, N + 1, E) before the first and after each layer.
            output_attentions: whether to return the attention weights (B, heads, N + 1, N + 1) of each layer.
            return_dict: whether to return a `BackboneOutput` instead of a tuple.

        Raises:
            ValueError: if `pixel_values` is not a batch of images of a valid size.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        check_pixel_values(pixel_values, LARGEST_STRIDE)
        size_hw = tuple(size // PATCH_SIZE for size in pixel_values.shape[-2:])
        tokens = self.embeddings(pixel_values)
        head_dim = config.hidden_size // config.num_attention_heads
        rotation = rotary_encoding(*size_hw, head_dim, config.rope_theta, tokens.device)
        rotation = tuple(factors.to(tokens.dtype) for factors in rotation)

        hidden_states, attentions = (tokens,), ()
        for layer in self.layers:
            tokens, weights = layer(tokens, rotation, output_attentions)
            hidden_states += (tokens,)
            attentions += (weights,)
        maps = [
            patch_map(hidden_states[0], size_hw),
            *self.pyramid(hidden_states[-config.num_averaged_layers :], size_hw),
        ]
        outputs = BackboneOutput(
            feature_maps=tuple(
                x for stage, x in zip(self.stage_names, maps, strict=True) if stage in self.out_features
            ),
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()


def make_backbone(backbone_config) -> PreTrainedModel:
    """Returns a new backbone, of this package or of transformers, in PyTorch's default precision."""
    make = ECViTBackbone._from_config if is_ecvit(backbone_config) else AutoBackbone.from_config
    return make(backbone_config, dtype=torch.get_default_dtype())


def supports_sdpa(backbone_config) -> bool:
    """Returns whether a backbone has attention that SDPA can compute."""
    return is_ecvit(backbone_config) or AutoBackbone._model_mapping[type(backbone_config)]._supports_sdpa
