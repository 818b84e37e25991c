"""ECViT configuration: the hyperparameters of ECPose's backbone, with their validation."""

from functools import partial

from transformers import PretrainedConfig

try:
    from transformers.backbone_utils import BackboneConfigMixin
except ImportError:  # transformers 4
    from transformers.utils.backbone_utils import BackboneConfigMixin

from .field_checks import is_number, require_field

# Mean and standard deviation of the RGB images that ECViT was trained on, from 0 to 1 (those of ImageNet).
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ECViTConfig(BackboneConfigMixin, PretrainedConfig):
    """Configuration of ECViT, a compact vision transformer with feature maps at strides of 8, 16 and 32.

    The feature maps are "stage1" (stride 8), "stage2" (16) and "stage3" (32); "stem" is the patch embedding (16). The
    defaults are the backbone of ECPose-L.

    Args:
        num_channels (`int`, defaults to 3): Channels of the image.
        hidden_size (`int`, defaults to 384): Channels of the tokens, E; divisible by 8.
        intermediate_size (`int`, defaults to 1536): Feed-forward width of a layer.
        num_hidden_layers (`int`, defaults to 12): Transformer layers.
        num_attention_heads (`int`, defaults to 6): Heads of the attention; the channels of each are divisible by 4.
        num_averaged_layers (`int`, defaults to 2): Number of last layers whose outputs are averaged.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward parts.
        rope_theta (`float`, defaults to 100.0): Ratio of the periods of the rotary position encoding.
        projected_stages (`list[str]`, defaults to all three stages): Feature maps that are projected.
        projection_size (`int`, *optional*, defaults to 256): Channels of projected feature maps; E if `None`.
        layer_norm_eps (`float`, defaults to 1e-06): Epsilon of the layer norms.
        batch_norm_eps (`float`, defaults to 1e-05): Epsilon of the batch norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of initial weights.
        out_features (`list[str]`, *optional*): Feature maps to return, in the order of their names; "stage3" if
            neither this nor `out_indices` is given.
        out_indices (`list[int]`, *optional*): The same by index, 0 for "stem" to 3 for "stage3".

    Raises:
        ValueError: if a value is invalid; the message names the field, the value and what would be accepted.

    Source: EdgeCrafter (arXiv 2603.18739).
    """

    model_type = "ecvit"

    def __init__(
        self,
        num_channels: int = 3,
        hidden_size: int = 384,
        intermediate_size: int = 1536,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 6,
        num_averaged_layers: int = 2,
        hidden_act: str = "gelu",
        rope_theta: float = 100.0,
        projected_stages: list[str] | tuple[str, ...] = ("stage1", "stage2", "stage3"),
        projection_size: int | None = 256,
        layer_norm_eps: float = 1e-6,
        batch_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_channels = num_channels
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_averaged_layers = num_averaged_layers
        self.hidden_act = hidden_act
        self.rope_theta = rope_theta
        self.projected_stages = list(projected_stages)
        self.projection_size = projection_size
        self.layer_norm_eps = layer_norm_eps
        self.batch_norm_eps = batch_norm_eps
        self.initializer_range = initializer_range
        self.stage_names = ["stem", "stage1", "stage2", "stage3"]
        self._choose_outputs(out_features, out_indices)
        self._check_fields()

    @property
    def num_features(self) -> list[int]:
        """`list[int]`: channels of all feature maps, in the order of `stage_names`."""
        projected = self.hidden_size if self.projection_size is None else self.projection_size
        return [projected if stage in self.projected_stages else self.hidden_size for stage in self.stage_names]

    def _choose_outputs(self, out_features: list[str] | None, out_indices: list[int] | None):
        if out_features is None:
            self.out_indices = out_indices
            return
        self.out_features = out_features
        count = len(self.stage_names)
        if out_indices is not None and [index % count for index in out_indices] != list(self.out_indices):
            raise ValueError(
                f"`out_indices` must be {self.out_indices}, those of `out_features`, but got {out_indices!r}."
            )

    def _check_fields(self):
        """Raises `ValueError` for the first field whose value is invalid."""
        from transformers.activations import ACT2FN  # here because it imports torch

        require = partial(require_field, self)
        projection = () if self.projection_size is None else ("projection_size",)
        for field in (*_INTEGERS, *projection):
            value = getattr(self, field)
            require(field, type(value) is int and value >= 1, "an integer of at least 1")
        for field in _NUMBERS:
            value = getattr(self, field)
            require(field, is_number(value) and value > 0, "a number above 0")
        require("hidden_size", self.hidden_size % 8 == 0, "divisible by 8")
        remainder = self.hidden_size % (4 * self.num_attention_heads)
        require("num_attention_heads", remainder == 0, f"a divisor of `hidden_size` / 4 = {self.hidden_size / 4:g}")
        require("num_averaged_layers", self.num_averaged_layers <= self.num_hidden_layers, "at most the layers")
        require("hidden_act", self.hidden_act in ACT2FN, f"one of {', '.join(sorted(ACT2FN))}")
        stages = [stage for stage in self.stage_names[1:] if stage in self.projected_stages]
        require("projected_stages", stages == self.projected_stages, "out of 'stage1', 'stage2' and 'stage3', in order")


_INTEGERS = (
    "num_channels",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_averaged_layers",
)
_NUMBERS = ("rope_theta", "layer_norm_eps", "batch_norm_eps", "initializer_range")


def is_ecvit(backbone_config: PretrainedConfig) -> bool:
    """Returns whether a configuration is of ECViT; the class may be another copy, from code saved with a model."""
    return backbone_config.model_type == ECViTConfig.model_type
