"""Tables that map the tensor names of official checkpoints to ours.

A table is a list of (pattern, replacement), applied in order; a name may match several rows.
"""

import re
from collections.abc import Iterable

import torch

_BACKBONE = [
    (r"^backbone\.stem\.", "backbone.embedder."),
    (r"^backbone\.stages\.", "backbone.encoder.stages."),
    (r"^(backbone\..*)\.conv\.", r"\1.convolution."),
    (r"^(backbone\..*)\.bn\.", r"\1.normalization."),
]

_ENCODER = [
    (r"^encoder\.input_proj\.", "encoder.input_projections."),
    (r"^encoder\.encoder\.0\.layers\.0\.", "encoder.transformer_layer."),
    (r"^(encoder\.transformer_layer\.self_attn)\.out_proj\.", r"\1.o_proj."),
    (r"^(encoder\.transformer_layer)\.linear(\d)\.", r"\1.fc\2."),
    (r"^(encoder\.transformer_layer)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^(encoder\.transformer_layer)\.norm2\.", r"\1.final_layer_norm."),
    (r"^(encoder\.(?:fpn|pan)_blocks\.\d+)\.cv1\.", r"\1.conv1."),
    (r"^(encoder\.(?:fpn|pan)_blocks\.\d+)\.cv2\.0\.", r"\1.csp1."),
    (r"^(encoder\.(?:fpn|pan)_blocks\.\d+)\.cv2\.1\.", r"\1.conv2."),
    (r"^(encoder\.(?:fpn|pan)_blocks\.\d+)\.cv3\.0\.", r"\1.csp2."),
    (r"^(encoder\.(?:fpn|pan)_blocks\.\d+)\.cv3\.1\.", r"\1.conv3."),
    (r"^(encoder\.(?:fpn|pan)_blocks\.\d+)\.cv4\.", r"\1.conv4."),
    (r"^(encoder\.downsample_convs\.\d+)\.0\.cv(\d)\.", r"\1.conv\2."),
]

_TRANSFORMER = [
    (r"^transformer\.enc_output\.", "query_selection.output_proj."),
    (r"^transformer\.enc_output_norm\.", "query_selection.output_norm."),
    (r"^transformer\.enc_out_class_embed\.", "query_selection.class_head."),
    (r"^transformer\.enc_pose_embed\.", "query_selection.keypoint_head."),
    (r"^transformer\.instance_embedding\.", "query_content.instance_embedding."),
    (r"^transformer\.keypoint_embedding\.", "query_content.keypoint_embedding."),
    (r"^transformer\.tgt_embed\.", "query_content.query_embedding."),
    (r"^transformer\.label_enc\.", "query_content.denoising_label_embedding."),
    (r"^transformer\.pose_enc\.", "query_content.denoising_keypoint_embedding."),
    (r"^transformer\.class_embed\.", "decoder.class_heads."),
    (r"^transformer\.pose_embed\.", "decoder.keypoint_heads."),
    (r"^transformer\.pre_pose_embed\.", "decoder.initial_keypoint_head."),
    (r"^transformer\.lqe_embed\.(\d+)\.reg_conf\.", r"decoder.quality_heads.\1.mlp."),
    (r"^transformer\.decoder\.half_pose_ref_point_head\.", "decoder.position_head."),
    (r"^transformer\.decoder\.layers\.", "decoder.layers."),
    (r"^(decoder\.layers\.\d+\.\w+_attn)\.out_proj\.", r"\1.o_proj."),
    (r"^(decoder\.layers\.\d+)\.within_norm\.", r"\1.within_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.across_norm\.", r"\1.across_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.gateway\.", r"\1.gate."),
    (r"^(decoder\.layers\.\d+)\.linear(\d)\.", r"\1.fc\2."),
    (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
]

_ECVIT = [
    (r"^backbone\.backbone\.register_token$", "backbone.embeddings.register_token"),
    (r"^backbone\.backbone\.patch_embed\.convs\.", "backbone.embeddings.convs."),
    (r"^backbone\.backbone\.patch_embed\.proj\.", "backbone.embeddings.projection."),
    (r"^backbone\.backbone\.blocks\.(\d+)\.norm1\.", r"backbone.layers.\1.self_attn_layer_norm."),
    (r"^backbone\.backbone\.blocks\.(\d+)\.attn\.qkv\.", r"backbone.layers.\1.self_attn.qkv_proj."),
    (r"^backbone\.backbone\.blocks\.(\d+)\.attn\.proj\.", r"backbone.layers.\1.self_attn.o_proj."),
    (r"^backbone\.backbone\.blocks\.(\d+)\.norm2\.", r"backbone.layers.\1.final_layer_norm."),
    (r"^backbone\.backbone\.blocks\.(\d+)\.mlp\.fc(\d)\.", r"backbone.layers.\1.fc\2."),
]

OFFICIAL = _BACKBONE + _ENCODER + _TRANSFORMER
# ECPose calls `decoder` what DETRPose calls `transformer`.
_ECPOSE = [*_ECVIT, *_ENCODER, (r"^decoder\.", "transformer."), *_TRANSFORMER]
OFFICIAL_DFINE = _BACKBONE + _ENCODER

# D-FINE of transformers 4 and 5; 5.x renamed the parts of the encoder's transformer layer.
TRANSFORMERS_DFINE = [
    (r"^model\.", ""),
    (r"^backbone\.model\.", "backbone."),
    (r"^encoder_input_proj\.(\d+)\.0\.", r"encoder.input_projections.\1.conv."),
    (r"^encoder_input_proj\.(\d+)\.1\.", r"encoder.input_projections.\1.norm."),
    (r"^encoder\.(?:encoder|aifi)\.0\.layers\.0\.", "encoder.transformer_layer."),
    (r"^(encoder\.transformer_layer\.self_attn)\.out_proj\.", r"\1.o_proj."),
    (r"^(encoder\.transformer_layer)\.mlp\.layers\.0\.", r"\1.fc1."),
    (r"^(encoder\.transformer_layer)\.mlp\.layers\.1\.", r"\1.fc2."),
    (r"^(encoder\.(?:fpn|pan)_blocks\.\d+)\.csp_rep(\d)\.", r"\1.csp\2."),
]

# Official tensors that this package computes: anchors and their mask, frequencies, scales.
COMPUTED = re.compile(
    r"^(transformer|decoder)\.(up|reg_scale|anchors|valid_mask|decoder\.dim_t)$|^backbone\.backbone\.rope_embed\.periods$"
)
COUNTER = re.compile(r"\.num_batches_tracked$")


def is_ecpose(names: Iterable[str]) -> bool:
    """Returns whether a checkpoint with these official names is of ECPose; D-FINE's have the same first words."""
    return any(name.startswith("backbone.backbone.") for name in names)


def is_bare_ecvit(names: Iterable[str]) -> bool:
    """Returns whether a checkpoint with these names is of ECViT alone."""
    return {"register_token", "patch_embed.proj.weight"} <= set(names)


def is_dfine(names: Iterable[str]) -> bool:
    """Returns whether a checkpoint with these names is of D-FINE, which says `decoder` as ECPose does."""
    parts = {name.split(".")[0] for name in names}
    return {"backbone", "encoder", "decoder"} <= parts and "query_selection" not in parts and not is_ecpose(names)


def official_table(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the table of an official DETRPose or ECPose checkpoint with these names."""
    names = list(names)
    if not is_ecpose(names):
        return OFFICIAL
    # A single projector is that of the coarsest feature map; three are in the order of the maps, finest first.
    is_single = not any(name.startswith("backbone.projector.1.") for name in names)
    number = "2" if is_single else r"\1"
    return [(r"^backbone\.projector\.(\d)\.", f"backbone.pyramid.projectors.{number}."), *_ECPOSE]


def rename(name: str, table: list[tuple[str, str]]) -> str:
    """Renames a tensor by a table of (pattern, replacement)."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def translate(state_dict: dict[str, torch.Tensor], table: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a checkpoint and splits joint query, key and value projections into three.

    Args:
        state_dict: name → tensor, as in the file.
        table: rows of (pattern, replacement).

    Returns:
        name → tensor, as [`DETRPoseModel`] names them.

    Raises:
        ValueError: if two tensors of the checkpoint would get the same name.
    """
    translated, source_of = {}, {}
    for source, tensor in state_dict.items():
        name = rename(source, table)
        joint = re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name)
        parts = {name: tensor}
        if joint is not None and tensor.ndim > 0:
            chunks = zip("qkv", tensor.tensor_split(3), strict=True)
            parts = {f"{joint[1]}.{part}_proj.{joint[2]}": chunk.clone() for part, chunk in chunks}
        for part in parts:
            if part in translated:
                raise ValueError(f"{source_of[part]} and {source} are two names for one tensor, {part}.")
        translated.update(parts)
        source_of.update(dict.fromkeys(parts, source))
    return translated
