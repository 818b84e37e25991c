"""Fusing: copies a trained model for deployment and replaces its modules according to a table."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.hgnet_v2.modeling_hgnet_v2 import (
    HGNetV2ConvLayer,
    HGNetV2Embeddings,
    HGNetV2LearnableAffineBlock,
)

from ..attention import DETRPoseDeformableAttention, DETRPoseValues
from ..hybrid_encoder import (
    DETRPoseConvNorm,
    DETRPoseEncoderLayer,
    DETRPoseFusionBlock,
    DETRPoseHybridEncoder,
    DETRPoseRepVggBlock,
    DETRPoseSumFusionBlock,
)
from ..modeling_detrpose import (
    DETRPoseDecoder,
    DETRPoseDecoderLayer,
    DETRPoseForPoseEstimation,
    DETRPoseIntegral,
    DETRPoseMLP,
    DETRPoseModel,
    DETRPoseOffsetDecoder,
    DETRPosePositionHead,
    DETRPoseQualityHead,
    DETRPoseQueryContent,
)
from ..modeling_ecvit import ECViTEmbeddings, ECViTLayer, ECViTPyramid
from .folding import fold_affine
from .modules import (
    ConstantIntegral,
    FeatureTables,
    GatheringQualityHead,
    MapAttention,
    PairwiseMaximum,
    PhasePositionHead,
    RowDecoderLayer,
    RowEncoderLayer,
    RowHybridEncoder,
    RowMLP,
    SplitFusionBlock,
    TableAttention,
    WholeFusionBlock,
    softmax,
    written_out_softmax,
)
from .sampling import gather, look_up
from .vit_modules import PaddedEmbeddings, ProjectedPyramid, RowECViTLayer

TARGETS = ("pytorch", "onnxruntime", "tensorrt")
Builder = Callable[[nn.Module], nn.Module]


class FusedDETRPoseForPoseEstimation(DETRPoseForPoseEstimation):
    """A DETRPose model for deployment, made by [`fuse`]. It cannot be trained or saved.

    Args:
        config: the model's configuration.
        model: the network, with its modules replaced.
        visibility_head: the visibility head, likewise.
        calibration: the calibration of its outputs.
    """

    def __init__(self, config, model: DETRPoseModel, visibility_head: nn.Module, calibration: nn.Module):
        super(DETRPoseForPoseEstimation, self).__init__(config)
        self.model = model
        self.visibility_head = visibility_head
        self.calibration = calibration
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor, labels=None, **options):
        """Predicts poses as [`DETRPoseForPoseEstimation`] does.

        Raises:
            ValueError: if the model is in training mode or is given labels.
        """
        if self.training or labels is not None:
            raise ValueError("a fused model has no losses and cannot be trained: use the model that it was fused from.")
        return super().forward(pixel_values, **options)

    def save_pretrained(self, *args, **kwargs):
        """Raises `ValueError`: a fused model cannot be saved."""
        raise ValueError("a fused model cannot be saved: save the model it was fused from, and fuse after loading.")


@torch.no_grad()
def fuse(model: DETRPoseForPoseEstimation, target: str = "pytorch") -> FusedDETRPoseForPoseEstimation:
    """Returns a smaller and faster copy of a model for deployment, with the same outputs to within 1e-4.

    Norms and affine steps are folded into the preceding convolution, each RepVGG block into one convolution, and
    projections of the same input into one, all in float32; modules that only training needs are removed. The copy has
    the model's dtype and device. Keep the model: the copy cannot be trained or saved.

    Weights can amplify the rounding errors of float32: with the random ones of its reference case, logits of ECPose-L
    differ by up to 1.3e-4, no less if folded in float64; either model differs nearly as much from itself in float64.

    Args:
        model: the trained model, which is not modified.
        target: runtime of the copy. "pytorch" is optimized for the device that the model is on now. The others are for
            export: "onnxruntime" samples feature maps by GridSample, "tensorrt" by gathers and arithmetic, because
            TensorRT has miscompiled GridSample since 10.14 (NVIDIA/TensorRT#4813).

    Raises:
        ValueError: if the target is unknown or the model is already fused.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(map(repr, TARGETS))}, but got {target!r}.")
    if isinstance(model, FusedDETRPoseForPoseEstimation) or not isinstance(model, DETRPoseForPoseEstimation):
        raise ValueError(f"`model` must be a DETRPoseForPoseEstimation that is not fused, but got {type(model)}.")
    table = replacements(target, model)
    network, visibility_head = (
        replace_modules(copy.deepcopy(module).eval().float(), table).to(model.dtype)
        for module in (model.model, model.visibility_head)
    )
    config, calibration = copy.deepcopy((model.config, model.calibration))
    fused = FusedDETRPoseForPoseEstimation(config, network, visibility_head, calibration)
    return fused.to(memory_format=torch.channels_last)


def replace_modules(module: nn.Module, table: dict[type, Builder]) -> nn.Module:
    """Returns the replacement of a module, after replacing its descendants in place."""
    for name, child in module.named_children():
        setattr(module, name, replace_modules(child, table))
    build = table.get(type(module))
    return module if build is None else build(module)


def replacements(target: str, model: DETRPoseForPoseEstimation) -> dict[type, Builder]:
    """Returns the table {class of a trained module: builder of its replacement} for a target."""
    on_processor = target == "pytorch" and model.device.type == "cpu"
    how = {"softmax": written_out_softmax if on_processor else softmax}
    heads, num_points = model.config.decoder_attention_heads, model.config.decoder_n_points
    table = partial(FeatureTables, num_heads=heads, num_samples=num_points)
    by_table = partial(TableAttention, **how)
    sampling = {
        "pytorch": {DETRPoseValues: partial(table, read=look_up), DETRPoseDeformableAttention: by_table},
        "onnxruntime": {DETRPoseDeformableAttention: partial(MapAttention, **how)},
        "tensorrt": {DETRPoseValues: partial(table, read=gather), DETRPoseDeformableAttention: by_table}
        | {DETRPoseQualityHead: GatheringQualityHead},
    }
    exported = {
        ECViTEmbeddings: PaddedEmbeddings,
        ECViTLayer: RowECViTLayer,
        DETRPoseEncoderLayer: RowEncoderLayer,
        DETRPoseHybridEncoder: RowHybridEncoder,
    }
    by_runtime = {HGNetV2Embeddings: pool_by_maxima} if target == "pytorch" else exported
    return {
        HGNetV2ConvLayer: fold_backbone_layer,
        DETRPoseConvNorm: fold_conv_norm,
        DETRPoseRepVggBlock: fold_rep_vgg_block,
        DETRPoseFusionBlock: SplitFusionBlock,
        DETRPoseSumFusionBlock: WholeFusionBlock,
        DETRPoseQueryContent: drop_denoising,
        DETRPoseMLP: RowMLP,
        DETRPosePositionHead: PhasePositionHead,
        DETRPoseDecoderLayer: partial(RowDecoderLayer, **how),
        DETRPoseIntegral: partial(ConstantIntegral, **how, device=model.device),
        DETRPoseDecoder: keep_last_heads,
        DETRPoseOffsetDecoder: keep_last_heads,
        nn.ReLU: in_place,
        nn.SiLU: in_place,
        ECViTPyramid: ProjectedPyramid,
        **by_runtime,
        **sampling[target],
    }


def fold_conv_norm(layer: DETRPoseConvNorm) -> nn.Sequential:
    """Returns a convolution with bias, followed by the activation."""
    return nn.Sequential(fuse_conv_bn_eval(layer.conv, layer.norm), layer.activation)


def fold_backbone_layer(layer: HGNetV2ConvLayer) -> nn.Sequential:
    """Returns a convolution with bias, followed by an activation equivalent to activation and affine step."""
    conv = fuse_conv_bn_eval(layer.convolution, layer.normalization)
    if isinstance(layer.activation, nn.ReLU) and isinstance(layer.lab, HGNetV2LearnableAffineBlock):
        return nn.Sequential(*fold_affine(conv, layer.lab.scale, layer.lab.bias))
    return nn.Sequential(conv, layer.activation, layer.lab)


def fold_rep_vgg_block(block: DETRPoseRepVggBlock) -> nn.Sequential:
    """Returns one 3x3 convolution for the two branches, whose norms are already folded, followed by the activation."""
    (wide, _), (narrow, _) = block.conv1, block.conv2
    wide.weight += F.pad(narrow.weight, (1, 1, 1, 1))
    wide.bias += narrow.bias
    return nn.Sequential(wide, block.activation)


def pool_by_maxima(stem: HGNetV2Embeddings) -> HGNetV2Embeddings:
    """Replaces the pooling in the backbone's stem."""
    stem.pool = PairwiseMaximum()
    return stem


def keep_last_heads(decoder: DETRPoseDecoder) -> DETRPoseDecoder:
    """Removes the heads that only training needs."""
    decoder.class_heads, decoder.quality_heads = decoder.class_heads[-1:], decoder.quality_heads[-1:]
    return decoder


def drop_denoising(content: DETRPoseQueryContent) -> DETRPoseQueryContent:
    """Removes the embeddings of pose denoising."""
    del content.denoising_label_embedding, content.denoising_keypoint_embedding
    return content


def in_place(activation: nn.Module) -> nn.Module:
    """Returns the in-place version of an activation."""
    return type(activation)(inplace=True)
