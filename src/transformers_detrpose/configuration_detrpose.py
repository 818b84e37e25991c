"""DETRPose configuration: the hyperparameters of the network, its losses and its denoising, with their validation."""

import math
import re
from functools import partial
from itertools import pairwise
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .configuration_ecvit import ECViTConfig, is_ecvit
from .field_checks import is_number, list_of_numbers, require_field
from .keypoint_schemas import KeypointSchema
from .variants import VARIANTS, backbone_plan, hgnet_config

# Radii of the ellipses that contain 50 % and 90 % of a two-dimensional Gaussian, in standard deviations.
GAUSSIAN_RADII = (math.sqrt(2 * math.log(2)), math.sqrt(2 * math.log(10)))

# Labels of the official models, which use only the second.
OFFICIAL_ID2LABEL = {0: "N/A", 1: "person"}


class DETRPoseConfig(PretrainedConfig):
    """Configuration of a DETRPose model: backbone, hybrid encoder, pose decoder, losses and pose denoising.

    The defaults are DETRPose-L for COCO; `from_variant` gives the published sizes. Widths are in channels, coordinates
    are fractions of the image, and keypoint similarities (KS) lie in (0, 1].

    Args:
        backbone_config (`dict` or `PretrainedConfig`, *optional*):
            Configuration of any backbone that `AutoBackbone` supports; HGNetV2-B4 if not given.
        freeze_backbone_batch_norms (`bool`, defaults to `True`):
            Freeze the statistics and affine parameters of the backbone's batch norms. Training from random weights
            requires `False`.
        keypoint_schema (`KeypointSchema`, `dict` or `str`, *optional*):
            The skeleton, or the name of a known one ("coco", "crowdpose"); COCO's if not given. Its `classes` say which
            keypoints each class has, if they differ.
        id2label (`dict[int, str]`, *optional*):
            Names of the labels; `{0: "N/A", 1: "person"}` if neither it nor `num_labels` is given.
        feature_strides (`list[int]`, defaults to `[8, 16, 32]`):
            Strides of the backbone's feature maps, finest first; each twice the one before.
        d_model (`int`, defaults to 256): Channels D of encoder and decoder.
        activation_function (`str`, defaults to `"silu"`): Activation of the encoder's convolutions.
        batch_norm_eps (`float`, defaults to 1e-05): Epsilon of the encoder's batch norms.
        layer_norm_eps (`float`, defaults to 1e-05): Epsilon of all layer norms.
        encoder_ffn_dim (`int`, defaults to 1024): Feed-forward width of the encoder's transformer layer.
        encoder_attention_heads (`int`, defaults to 8): Heads of the encoder's self-attention.
        encoder_activation_function (`str`, defaults to `"gelu"`): Activation of the encoder's feed-forward part.
        encoder_position_encoding (`str`, defaults to `"fraction"`): Positions that the encoder's attention encodes:
            "fraction" (of height and width) or "grid" (rows and columns).
        encoder_position_temperature (`float`, defaults to 20.0): Temperature of the encoder's position encoding.
        use_input_projections (`bool`, defaults to `True`):
            Project the backbone's feature maps to D channels; `False` if they have D channels already.
        use_lateral_activation (`bool`, defaults to `True`): Whether an activation follows the encoder's lateral
            convolutions.
        fusion_operation (`str`, defaults to `"concatenate"`): How the encoder's fusion blocks combine two feature maps:
            "concatenate" or "sum".
        use_joint_csp_convolution (`bool`, defaults to `False`):
            Compute both branches of a CSP layer by one convolution instead of two.
        use_trailing_convolutions (`bool`, defaults to `True`): Whether a 3x3 convolution follows each CSP layer.
        convolution_initialization (`str`, defaults to `"xavier"`): Initial weights of the encoder's convolutions:
            "xavier" or "default", PyTorch's.
        hidden_expansion (`float`, defaults to 1.0): Width of the encoder's fusion blocks, relative to D / 2.
        depth_mult (`float`, defaults to 1.0): Depth of the encoder's fusion blocks, relative to 3.
        num_queries (`int`, defaults to 60): Instance queries Q, the maximum number of poses per image.
        decoder_layers (`int`, defaults to 6): Decoder layers L.
        decoder_ffn_dim (`int`, defaults to 1024): Feed-forward width of the decoder layers.
        decoder_attention_heads (`int`, defaults to 8): Heads H of all decoder attentions.
        decoder_n_points (`int`, defaults to 4): Sampling points per head and feature map.
        decoder_activation_function (`str`, defaults to `"relu"`): Activation in the decoder and its heads.
        decoder_position_temperature (`float`, defaults to 10000.0): Temperature of the keypoints' position encoding.
        anchor_margin (`float`, defaults to 0.01): Feature-map locations closer than this to the border of the image
            are not selected as queries.
        use_fdr_heads (`bool`, defaults to `True`):
            Refine keypoints through distributions over offsets (fine-grained distribution refinement). If `False`, each
            layer predicts offsets from the keypoints of the layer before.
        max_num_bins (`int`, defaults to 32): Number of bins of a distribution minus one, R; even, at least 4.
        reg_scale (`float`, defaults to 4.0): Regression scale, the divisor of the expected offset.
        up (`float`, defaults to 0.5): Upper bound of the weighting function, relative to `reg_scale`.
        use_pose_lqe (`bool`, defaults to `True`):
            Add a pose quality, estimated from the finest encoder feature map at the predicted keypoints, to the class
            logits (Pose-LQE).
        lqe_top_k (`int`, defaults to 4): Number of largest channels per keypoint that Pose-LQE uses, together with
            their mean.
        lqe_hidden_dim (`int`, defaults to 256): Hidden width of Pose-LQE.
        num_denoising (`int`, defaults to 20):
            Upper limit of denoising groups times people per image (there is at least one group); 0 disables pose
            denoising.
        num_denoising_labels (`int`, defaults to 80):
            Number of label ids from which label noise is drawn; the label embedding has one more row.
        label_noise_ratio (`float`, defaults to 0.25): Fraction of denoising queries that get a random label id.
        denoising_positive_similarity (`list[float]`, defaults to `[0.5, 1.0]`): Range of KS of positive queries.
        denoising_negative_similarity (`list[float]`, defaults to `[0.1, 0.5]`): Range of KS of negative queries.
        denoising_max_angle (`float`, defaults to 360.0):
            Keypoints are moved in directions drawn from 0 (right) to this angle, clockwise, in degrees: by default all
            directions, as in the paper. The official code moves them only right and down, which is 90.
        matcher_class_cost (`float`, defaults to 2.0): Weight of the classification cost in the matching.
        matcher_keypoints_cost (`float`, defaults to 10.0): Weight of the L1 cost in the matching.
        matcher_similarity_cost (`float`, defaults to 4.0): Weight of 1 - KS in the matching.
        matcher_alpha (`float`, defaults to 0.25): Alpha of the matcher's focal cost.
        matcher_gamma (`float`, defaults to 2.0): Gamma of the matcher's focal cost.
        classification_loss (`str`, defaults to `"ksvf"`): "ksvf" (keypoint similarity varifocal) or "focal".
        focal_loss_alpha (`float`, defaults to 0.25): Alpha of both classification losses.
        focal_loss_gamma (`float`, defaults to 2.0): Gamma of both classification losses.
        weight_loss_class (`float`, defaults to 2.0): Weight of the classification loss.
        weight_loss_keypoints (`float`, defaults to 10.0): Weight of the L1 loss of keypoints.
        weight_loss_similarity (`float`, defaults to 4.0): Weight of the 1 - KS loss.
        weight_loss_visibility (`float`, defaults to 1.0): Weight of the loss of the visibility head.
        initializer_bias_prior_prob (`float`, defaults to 0.01): Initial score of the classification heads.
        use_visibility_head (`bool`, defaults to `False`):
            Predict whether each keypoint is visible or occluded.
        predict_absent_keypoints (`bool`, defaults to `False`):
            Whether the visibility head predicts as well that a keypoint is absent, the class of keypoints with
            visibility 0. For datasets in which these are outside the image. By default they are left out of the loss,
            because in COCO, for example, 0 means only that nobody labeled them.
        use_calibration (`bool`, defaults to `False`):
            Whether scores and standard deviations are calibrated; set by `detrpose calibrate`.
        ellipse_radii (`list[float]`, defaults to those of a Gaussian, about 1.18 and 2.15):
            Radii, in standard deviations, of the ellipses that contain 50 % and 90 % of the true keypoints.

    Raises:
        ValueError: if a value is invalid; the message names the field, the value and what would be accepted.

    Example:

    ```python
    >>> from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation

    >>> config = DETRPoseConfig.from_variant("s", skeleton="coco")
    >>> model = DETRPoseForPoseEstimation(config)
    ```
    """

    model_type = "detrpose"
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "decoder_attention_heads"}

    def __init__(
        self,
        backbone_config: dict | PretrainedConfig | None = None,
        freeze_backbone_batch_norms: bool = True,
        keypoint_schema: KeypointSchema | dict | str | None = None,
        id2label: dict[int, str] | None = None,
        feature_strides: list[int] | tuple[int, ...] = (8, 16, 32),
        d_model: int = 256,
        activation_function: str = "silu",
        batch_norm_eps: float = 1e-5,
        layer_norm_eps: float = 1e-5,
        encoder_ffn_dim: int = 1024,
        encoder_attention_heads: int = 8,
        encoder_activation_function: str = "gelu",
        encoder_position_encoding: str = "fraction",
        encoder_position_temperature: float = 20.0,
        use_input_projections: bool = True,
        use_lateral_activation: bool = True,
        fusion_operation: str = "concatenate",
        use_joint_csp_convolution: bool = False,
        use_trailing_convolutions: bool = True,
        convolution_initialization: str = "xavier",
        hidden_expansion: float = 1.0,
        depth_mult: float = 1.0,
        num_queries: int = 60,
        decoder_layers: int = 6,
        decoder_ffn_dim: int = 1024,
        decoder_attention_heads: int = 8,
        decoder_n_points: int = 4,
        decoder_activation_function: str = "relu",
        decoder_position_temperature: float = 10000.0,
        anchor_margin: float = 0.01,
        use_fdr_heads: bool = True,
        max_num_bins: int = 32,
        reg_scale: float = 4.0,
        up: float = 0.5,
        use_pose_lqe: bool = True,
        lqe_top_k: int = 4,
        lqe_hidden_dim: int = 256,
        num_denoising: int = 20,
        num_denoising_labels: int = 80,
        label_noise_ratio: float = 0.25,
        denoising_positive_similarity: list[float] | tuple[float, float] = (0.5, 1.0),
        denoising_negative_similarity: list[float] | tuple[float, float] = (0.1, 0.5),
        denoising_max_angle: float = 360.0,
        matcher_class_cost: float = 2.0,
        matcher_keypoints_cost: float = 10.0,
        matcher_similarity_cost: float = 4.0,
        matcher_alpha: float = 0.25,
        matcher_gamma: float = 2.0,
        classification_loss: str = "ksvf",
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        weight_loss_class: float = 2.0,
        weight_loss_keypoints: float = 10.0,
        weight_loss_similarity: float = 4.0,
        weight_loss_visibility: float = 1.0,
        initializer_bias_prior_prob: float = 0.01,
        use_visibility_head: bool = False,
        predict_absent_keypoints: bool = False,
        use_calibration: bool = False,
        ellipse_radii: list[float] | tuple[float, float] = GAUSSIAN_RADII,
        **kwargs,
    ):
        self.feature_strides = list_of_numbers("feature_strides", feature_strides)
        self.backbone_config = _backbone_config(backbone_config, self.feature_strides)
        self.freeze_backbone_batch_norms = freeze_backbone_batch_norms
        self.keypoint_schema = KeypointSchema.of("coco" if keypoint_schema is None else keypoint_schema)
        self.d_model = d_model
        self.activation_function = activation_function
        self.batch_norm_eps = batch_norm_eps
        self.layer_norm_eps = layer_norm_eps
        self.encoder_ffn_dim = encoder_ffn_dim
        self.encoder_attention_heads = encoder_attention_heads
        self.encoder_activation_function = encoder_activation_function
        self.encoder_position_encoding = encoder_position_encoding
        self.encoder_position_temperature = encoder_position_temperature
        self.use_input_projections = use_input_projections
        self.use_lateral_activation = use_lateral_activation
        self.fusion_operation = fusion_operation
        self.use_joint_csp_convolution = use_joint_csp_convolution
        self.use_trailing_convolutions = use_trailing_convolutions
        self.convolution_initialization = convolution_initialization
        self.hidden_expansion = hidden_expansion
        self.depth_mult = depth_mult
        self.num_queries = num_queries
        self.decoder_layers = decoder_layers
        self.decoder_ffn_dim = decoder_ffn_dim
        self.decoder_attention_heads = decoder_attention_heads
        self.decoder_n_points = decoder_n_points
        self.decoder_activation_function = decoder_activation_function
        self.decoder_position_temperature = decoder_position_temperature
        self.anchor_margin = anchor_margin
        self.use_fdr_heads = use_fdr_heads
        self.max_num_bins = max_num_bins
        self.reg_scale = reg_scale
        self.up = up
        self.use_pose_lqe = use_pose_lqe
        self.lqe_top_k = lqe_top_k
        self.lqe_hidden_dim = lqe_hidden_dim
        self.num_denoising = num_denoising
        self.num_denoising_labels = num_denoising_labels
        self.label_noise_ratio = label_noise_ratio
        self.denoising_positive_similarity = list_of_numbers(
            "denoising_positive_similarity", denoising_positive_similarity
        )
        self.denoising_negative_similarity = list_of_numbers(
            "denoising_negative_similarity", denoising_negative_similarity
        )
        self.denoising_max_angle = denoising_max_angle
        self.matcher_class_cost = matcher_class_cost
        self.matcher_keypoints_cost = matcher_keypoints_cost
        self.matcher_similarity_cost = matcher_similarity_cost
        self.matcher_alpha = matcher_alpha
        self.matcher_gamma = matcher_gamma
        self.classification_loss = classification_loss
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.weight_loss_class = weight_loss_class
        self.weight_loss_keypoints = weight_loss_keypoints
        self.weight_loss_similarity = weight_loss_similarity
        self.weight_loss_visibility = weight_loss_visibility
        self.initializer_bias_prior_prob = initializer_bias_prior_prob
        self.use_visibility_head = use_visibility_head
        self.predict_absent_keypoints = predict_absent_keypoints
        self.use_calibration = use_calibration
        self.ellipse_radii = list_of_numbers("ellipse_radii", ellipse_radii)

        if id2label is None and kwargs.get("num_labels") is None:
            id2label = OFFICIAL_ID2LABEL
        if id2label is not None:
            id2label = _id2label(id2label)
            kwargs["label2id"] = {name: index for index, name in id2label.items()}
            kwargs.pop("num_labels", None)
        super().__init__(id2label=id2label, **kwargs)
        self._check_fields()

    @property
    def num_keypoints(self) -> int:
        """`int`: keypoints per pose, K."""
        return self.keypoint_schema.num_keypoints

    @property
    def sub_configs(self) -> dict[str, type[PretrainedConfig]]:
        """Nested configurations, as transformers expects them."""
        return {"backbone_config": type(self.backbone_config)}

    @classmethod
    def from_variant(cls, variant: str, skeleton: str | KeypointSchema = "coco", **kwargs) -> "DETRPoseConfig":
        """Returns the configuration of a published size.

        Args:
            variant: one of `VARIANTS`: "n", "s", "m", "l" or "x" of DETRPose, or "ecpose-s" to "ecpose-x".
            skeleton: "coco", "crowdpose" or a `KeypointSchema` of your own.
            kwargs: fields of the configuration that override those of the variant.

        Raises:
            ValueError: if the variant or the skeleton is unknown.
        """
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}: choose one of {', '.join(map(repr, VARIANTS))}.")
        fields = {**VARIANTS[variant], **kwargs}
        plan = fields.pop("backbone")
        fields.setdefault("backbone_config", backbone_plan(plan, fields.get("feature_strides", (8, 16, 32))))
        return cls(keypoint_schema=skeleton, **fields)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Builds the configuration from the dictionary in a `config.json`, as every transformers configuration does."""
        # Where this package is installed, its own pipeline is registered. With `custom_pipelines` in the configuration,
        # transformers would insist on `trust_remote_code=True` and take the pipeline that was saved with the model.
        if not __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            config_dict = {key: value for key, value in config_dict.items() if key != "custom_pipelines"}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as a dictionary of JSON types."""
        fields = super().to_dict()
        fields["keypoint_schema"] = self.keypoint_schema.to_dict()
        return fields

    def _check_fields(self):
        """Raises `ValueError` for the first field whose value is invalid."""
        from transformers.activations import ACT2FN  # here because it imports torch

        require = partial(require_field, self)
        for field in _SWITCHES:
            require(field, isinstance(getattr(self, field), bool), "True or False")
        for field, minimum in _INTEGERS.items():
            value = getattr(self, field)
            is_integer = isinstance(value, int) and is_number(value)
            require(field, is_integer and value >= minimum, f"an integer of at least {minimum}")
        for field, (low, high) in _NUMBERS.items():
            value = getattr(self, field)
            accepted = f"a number above {low}" if high is None else f"a number between {low} and {high}"
            in_range = is_number(value) and (value > low if high is None else low <= value <= high)
            require(field, in_range, accepted)
        for field in _WEIGHTS:
            value = getattr(self, field)
            require(field, is_number(value) and value >= 0, "a number of at least 0")
        for field in _ACTIVATIONS:
            value = getattr(self, field)
            require(field, isinstance(value, str) and value in ACT2FN, f"one of {', '.join(sorted(ACT2FN))}")
        for field in ("denoising_positive_similarity", "denoising_negative_similarity"):
            value = getattr(self, field)
            is_range = len(value) == 2 and 0 < value[0] <= value[1] <= 1
            require(field, is_range, "two similarities, low and high, with 0 < low <= high <= 1")

        strides = self.feature_strides
        doubling = all(fine * 2 == coarse for fine, coarse in pairwise(strides))
        require("feature_strides", len(strides) > 0 and doubling, "strides each twice the one before, such as [16, 32]")
        require("d_model", self.d_model % 4 == 0, "divisible by 4 (sine and cosine of x and y)")
        for heads in ("encoder_attention_heads", "decoder_attention_heads"):
            require(heads, self.d_model % getattr(self, heads) == 0, f"a divisor of `d_model` = {self.d_model}")
        width = self.hidden_expansion * self.d_model / 2
        require("hidden_expansion", 1 <= width, f"at least {2 / self.d_model:g}, for one channel of a fusion block")
        require("max_num_bins", self.max_num_bins % 2 == 0, "an even integer")
        require("lqe_top_k", self.lqe_top_k <= self.d_model, f"at most `d_model` = {self.d_model}")
        require("use_calibration", self.use_fdr_heads or not self.use_calibration, "False if `use_fdr_heads` is False")
        can_be_absent = self.use_visibility_head or not self.predict_absent_keypoints
        require("predict_absent_keypoints", can_be_absent, "False if `use_visibility_head` is False")
        radii = self.ellipse_radii
        require("ellipse_radii", len(radii) == 2 and 0 < radii[0] < radii[1], "two numbers above 0, in order")
        for field, choices in _CHOICES.items():
            require(field, getattr(self, field) in choices, " or ".join(map(repr, choices)))
        labels = sorted(self.id2label)
        require("id2label", labels == list(range(len(labels))) and labels, "names of the labels 0, 1, 2, ... in a row")
        unknown = [label for label in self.keypoint_schema.classes or () if label not in labels]
        require("id2label", not unknown, f"the names of all classes of `keypoint_schema`, also of {unknown}")
        enough_rows = self.num_denoising_labels + 1 >= len(labels)
        require("num_denoising_labels", enough_rows, f"at least the number of labels ({len(labels)}) minus one")
        num_channels = len(getattr(self.backbone_config, "out_features", None) or strides)
        require("feature_strides", num_channels == len(strides), f"one for each of {num_channels} feature maps")
        found = _backbone_strides(self.backbone_config)
        require("feature_strides", found in (None, strides), f"those of the backbone's feature maps, {found}")


_ACTIVATIONS = ("activation_function", "encoder_activation_function", "decoder_activation_function")
_SWITCHES = (
    "freeze_backbone_batch_norms",
    "use_input_projections",
    "use_lateral_activation",
    "use_joint_csp_convolution",
    "use_trailing_convolutions",
    "use_fdr_heads",
    "use_pose_lqe",
    "use_visibility_head",
    "predict_absent_keypoints",
    "use_calibration",
)
_CHOICES = {
    "classification_loss": ("ksvf", "focal"),
    "convolution_initialization": ("xavier", "default"),
    "encoder_position_encoding": ("fraction", "grid"),
    "fusion_operation": ("concatenate", "sum"),
}
_INTEGERS = {
    "d_model": 4,
    "encoder_ffn_dim": 1,
    "encoder_attention_heads": 1,
    "num_queries": 1,
    "decoder_layers": 1,
    "decoder_ffn_dim": 1,
    "decoder_attention_heads": 1,
    "decoder_n_points": 1,
    "max_num_bins": 4,
    "lqe_top_k": 1,
    "lqe_hidden_dim": 1,
    "num_denoising": 0,
    "num_denoising_labels": 1,
}
# Lower bound (exclusive if there is no upper bound) and upper bound.
_NUMBERS = {
    "batch_norm_eps": (0, None),
    "layer_norm_eps": (0, None),
    "encoder_position_temperature": (0, None),
    "decoder_position_temperature": (0, None),
    "hidden_expansion": (0, None),
    "depth_mult": (0, None),
    "reg_scale": (0, None),
    "up": (0, None),
    "anchor_margin": (0, 0.49),
    "label_noise_ratio": (0, 1),
    "denoising_max_angle": (0, 360),
    "matcher_alpha": (0, 1),
    "focal_loss_alpha": (0, 1),
    "initializer_bias_prior_prob": (1e-6, 1 - 1e-6),
}
_WEIGHTS = (
    "matcher_class_cost",
    "matcher_keypoints_cost",
    "matcher_similarity_cost",
    "matcher_gamma",
    "focal_loss_gamma",
    "weight_loss_class",
    "weight_loss_keypoints",
    "weight_loss_similarity",
    "weight_loss_visibility",
)


def _backbone_config(backbone_config, feature_strides) -> PretrainedConfig:
    if backbone_config is None:
        backbone_config = hgnet_config("B4", feature_strides)
    if isinstance(backbone_config, PretrainedConfig):
        return backbone_config
    fields = dict(backbone_config) if isinstance(backbone_config, dict) else {}
    model_type = fields.pop("model_type", None)
    if model_type == ECViTConfig.model_type:  # not registered where this file was loaded with a model
        return ECViTConfig(**fields)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`backbone_config` must have a `model_type` that transformers knows, but got {backbone_config!r}."
        )
    return CONFIG_MAPPING[model_type](**fields)


def _backbone_strides(backbone_config) -> list[int] | None:
    """Returns the strides of HGNetV2's or ECViT's feature maps; `None` for other backbones, which do not say."""
    names = backbone_config.out_features
    if is_ecvit(backbone_config):
        return [{"stem": 16, "stage1": 8, "stage2": 16, "stage3": 32}[name] for name in names]
    if backbone_config.model_type != "hgnet_v2" or not all(re.fullmatch(r"stage[1-9]", name) for name in names):
        return None
    # The stem has a stride of 4; a stage halves the map or leaves it as it is.
    halvings = [sum(backbone_config.stage_downsample[: int(name[5:])]) for name in names]
    return [4 * 2**halving for halving in halvings]


def _id2label(id2label) -> dict[int, str]:
    try:
        return {int(index): str(name) for index, name in id2label.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"`id2label` must map label ids to names, but got {id2label!r}.") from error
