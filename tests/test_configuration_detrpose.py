import contextlib
import io
import json
import math

import pytest
import torch
from transformers import AutoConfig, ResNetConfig

from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, KeypointSchema, unite_schemas
from transformers_detrpose.commands import sizes
from transformers_detrpose.keypoint_schemas import COCO_PERSON, CROWDPOSE_PERSON, SCHEMAS
from transformers_detrpose.variants import VARIANTS, hgnet_config, model_name

# For COCO: millions of parameters of the fused model; GFLOPs of the official model, as counted by `detrpose sizes`.
PARAMETERS = {"n": 4.07, "s": 11.51, "m": 20.76, "l": 32.75, "x": 73.34}
PARAMETERS |= {"ecpose-s": 9.923077, "ecpose-m": 19.756025, "ecpose-l": 34.264601, "ecpose-x": 50.568473}
GFLOPS = {"n": 8.91, "s": 31.55, "m": 65.16, "l": 103.86, "x": 232.04}
# Published, in whole numbers.
ECPOSE_GFLOPS = {"ecpose-s": 30, "ecpose-m": 63, "ecpose-l": 112, "ecpose-x": 172}


def hand_schema(num_keypoints):
    names = tuple(f"joint {index}" for index in range(num_keypoints))
    edges = tuple((index, index + 1) for index in range(num_keypoints - 1))
    return KeypointSchema(names=names, edges=edges, sigmas=(0.03,) * num_keypoints)


# ---------------------------------------------------------------- published models


@pytest.mark.parametrize("skeleton", SCHEMAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_models(variant, skeleton):
    config = DETRPoseConfig.from_variant(variant, skeleton=skeleton)
    with torch.device("meta"):
        model = DETRPoseForPoseEstimation(config)
    parameters = sum(parameter.numel() for parameter in model.fuse().parameters()) / 1e6
    # CrowdPose has three keypoints fewer.
    assert parameters == pytest.approx(PARAMETERS[variant], rel={"coco": 0.005, "crowdpose": 0.01}[skeleton])
    assert config.num_keypoints == {"coco": 17, "crowdpose": 14}[skeleton]
    assert config.num_labels == 2 and config.id2label[1] == "person"


@pytest.mark.parametrize(
    "variant, d_model, encoder_ffn, decoder_ffn, expansion, depth, layers, points, scale, affine, channels",
    [
        ("n", 128, 512, 512, 0.34, 0.5, 3, 6, 4, True, [512, 1024]),
        ("s", 256, 1024, 1024, 0.5, 0.34, 3, 4, 4, True, [256, 512, 1024]),
        ("m", 256, 1024, 1024, 1.0, 0.67, 4, 4, 4, True, [384, 768, 1536]),
        ("l", 256, 1024, 1024, 1.0, 1.0, 6, 4, 4, False, [512, 1024, 2048]),
        ("x", 384, 2048, 1024, 1.0, 1.0, 6, 4, 8, False, [512, 1024, 2048]),
    ],
)
def test_numbers_of_the_variants(
    variant, d_model, encoder_ffn, decoder_ffn, expansion, depth, layers, points, scale, affine, channels
):
    config = DETRPoseConfig.from_variant(variant)
    assert (config.d_model, config.encoder_ffn_dim, config.decoder_ffn_dim) == (d_model, encoder_ffn, decoder_ffn)
    assert (config.hidden_expansion, config.depth_mult) == (expansion, depth)
    assert (config.decoder_layers, config.decoder_n_points, config.reg_scale) == (layers, points, scale)
    assert config.backbone_config.use_learnable_affine_block == affine
    assert config.backbone_config.stage_out_channels[-len(channels) :] == channels
    assert config.feature_strides == [8, 16, 32][-len(channels) :]
    assert len(config.backbone_config.out_features) == len(channels)


def test_defaults_are_the_large_variant():
    assert DETRPoseConfig().to_dict() == DETRPoseConfig.from_variant("l", skeleton="coco").to_dict()


def test_fields_in_place_of_the_variant_s():
    config = DETRPoseConfig.from_variant("n", num_queries=7, feature_strides=(4, 8, 16, 32), use_pose_lqe=False)
    assert (config.num_queries, config.use_pose_lqe, config.d_model) == (7, False, 128)
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]
    finer = DETRPoseConfig.from_variant("n", feature_strides=(8, 16)).backbone_config
    assert (finer.out_features, finer.depths, len(finer.stage_in_channels)) == (["stage2", "stage3"], [1, 1, 2], 3)
    other = DETRPoseConfig.from_variant("n", backbone_config=ResNetConfig(out_features=["stage3", "stage4"]))
    assert other.backbone_config.model_type == "resnet"


def test_model_sizes():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert sizes.main(["--datasets", "coco"]) == 0

    heading, line, *rows = printed.getvalue().splitlines()
    assert heading.count("|") == line.count("|")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[:2] for row in cells] == [[model_name(variant), "coco"] for variant in VARIANTS]
    assert cells[0][0] == "DETRPose-N" and cells[-1][0] == "ECPose-X"
    assert {variant: float(row[2]) for variant, row in zip(VARIANTS, cells, strict=True)} == pytest.approx(
        PARAMETERS, rel=0.005
    )
    gflops = {variant: float(row[-1]) for variant, row in zip(VARIANTS, cells, strict=True)}
    assert {variant: gflops[variant] for variant in GFLOPS} == pytest.approx(GFLOPS, rel=0.01)
    assert {variant: gflops[variant] for variant in ECPOSE_GFLOPS} == pytest.approx(ECPOSE_GFLOPS, rel=0.025)


def test_no_sizes_of_models_that_do_not_exist(capsys):
    assert sizes.main(["--datasets", "crowdpose", "--variants", "n", "ecpose-s"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3  # heading, line, DETRPose-N


# ---------------------------------------------------------------- keypoints and classes of one's own


@pytest.mark.parametrize("num_keypoints", [1, 3, 21, 133])
def test_any_schema_and_several_classes(num_keypoints, tmp_path):
    id2label = {0: "cat", 1: "dog", 2: "horse"}
    config = DETRPoseConfig.from_variant("n", skeleton=hand_schema(num_keypoints), id2label=id2label)
    assert (config.num_keypoints, config.num_labels) == (num_keypoints, 3)
    assert config.label2id == {"cat": 0, "dog": 1, "horse": 2}
    with torch.device("meta"):
        outputs = DETRPoseForPoseEstimation(config).eval()(torch.zeros(2, 3, 256, 320))
    assert outputs.logits.shape == (2, config.num_queries, 3)
    assert outputs.pred_keypoints.shape == (2, config.num_queries, num_keypoints, 2)
    config.save_pretrained(tmp_path)
    loaded = DETRPoseConfig.from_pretrained(tmp_path)
    assert loaded.keypoint_schema == hand_schema(num_keypoints) and loaded.id2label == id2label


def test_forms_of_a_schema():
    schema = hand_schema(3)
    assert DETRPoseConfig(keypoint_schema=schema).keypoint_schema == schema
    assert DETRPoseConfig(keypoint_schema=schema.to_dict()).keypoint_schema == schema
    assert DETRPoseConfig(keypoint_schema="crowdpose").keypoint_schema == CROWDPOSE_PERSON
    assert DETRPoseConfig().keypoint_schema == COCO_PERSON


@pytest.mark.parametrize(
    "fields, id2label",
    [
        ({}, {0: "N/A", 1: "person"}),
        ({"num_labels": 3}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ({"id2label": {"0": "cat", "1": "dog"}}, {0: "cat", 1: "dog"}),  # as JSON has it
        ({"id2label": {0: "cat"}, "num_labels": 5}, {0: "cat"}),
    ],
)
def test_labels(fields, id2label):
    config = DETRPoseConfig(**fields)
    assert config.id2label == id2label and config.num_labels == len(id2label)
    assert config.label2id == {name: index for index, name in id2label.items()}


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("config_class", [DETRPoseConfig, AutoConfig])
@pytest.mark.parametrize(
    "config",
    [
        DETRPoseConfig.from_variant("n", skeleton="crowdpose"),
        DETRPoseConfig.from_variant("x", skeleton="coco"),
        DETRPoseConfig.from_variant(
            "s",
            skeleton=hand_schema(5),
            id2label={0: "left hand", 1: "right hand"},
            use_fdr_heads=False,
            use_pose_lqe=False,
            freeze_backbone_batch_norms=False,
            classification_loss="focal",
            num_denoising=0,
            denoising_negative_similarity=(0.2, 0.3),
            activation_function="relu",
            weight_loss_similarity=0,
        ),
    ],
)
def test_round_trip(config, config_class, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    assert type(loaded) is DETRPoseConfig
    saved, read = config.to_dict(), loaded.to_dict()
    assert {name for name in saved if saved[name] != read.get(name)} <= {"transformers_version", "_name_or_path"}
    assert loaded.keypoint_schema == config.keypoint_schema
    assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()


def test_what_the_file_says(tmp_path):
    DETRPoseConfig.from_variant("s").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert content["model_type"] == "detrpose"
    assert content["id2label"] == {"0": "N/A", "1": "person"}
    assert content["keypoint_schema"]["names"][0] == "nose" and len(content["keypoint_schema"]["sigmas"]) == 17
    assert content["backbone_config"]["model_type"] == "hgnet_v2"


def test_arguments_are_copied():
    strides = [16, 32]
    config = DETRPoseConfig.from_variant("n", feature_strides=strides)
    strides.append(64)
    assert config.feature_strides == [16, 32] and VARIANTS["n"]["feature_strides"] == (16, 32)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "field, value, accepted",
    [
        # integers
        ("d_model", "256", "an integer of at least 4"),
        ("d_model", 0, "an integer of at least 4"),
        ("d_model", 30, "divisible by 4"),
        ("d_model", True, "an integer"),
        ("encoder_ffn_dim", 0, "an integer of at least 1"),
        ("encoder_attention_heads", 0, "an integer of at least 1"),
        ("encoder_attention_heads", 7, "a divisor of `d_model` = 256"),
        ("decoder_attention_heads", 6, "a divisor of `d_model` = 256"),
        ("num_queries", 0, "an integer of at least 1"),
        ("num_queries", 1.5, "an integer"),
        ("decoder_layers", 0, "an integer of at least 1"),
        ("decoder_ffn_dim", -1, "an integer of at least 1"),
        ("decoder_n_points", None, "an integer of at least 1"),
        ("max_num_bins", 2, "an integer of at least 4"),
        ("max_num_bins", 33, "an even integer"),
        ("lqe_top_k", 0, "an integer of at least 1"),
        ("lqe_top_k", 257, "at most `d_model` = 256"),
        ("lqe_hidden_dim", 0, "an integer of at least 1"),
        ("num_denoising", -1, "an integer of at least 0"),
        ("num_denoising_labels", 0, "an integer of at least 1"),
        # numbers
        ("batch_norm_eps", 0, "a number above 0"),
        ("layer_norm_eps", -1e-5, "a number above 0"),
        ("encoder_position_temperature", 0, "a number above 0"),
        ("decoder_position_temperature", "10000", "a number above 0"),
        ("hidden_expansion", 0, "a number above 0"),
        ("hidden_expansion", 1e-3, "at least 0.0078125, for one channel"),
        ("depth_mult", 0.0, "a number above 0"),
        ("reg_scale", math.inf, "a number above 0"),
        ("reg_scale", math.nan, "a number above 0"),
        ("up", 0, "a number above 0"),
        ("anchor_margin", 0.5, "a number between 0 and 0.49"),
        ("label_noise_ratio", 1.5, "a number between 0 and 1"),
        ("matcher_alpha", -0.1, "a number between 0 and 1"),
        ("focal_loss_alpha", "0.25", "a number between 0 and 1"),
        ("initializer_bias_prior_prob", 0, "a number between 1e-06 and 0.999999"),
        # weights
        ("matcher_class_cost", -1, "a number of at least 0"),
        ("matcher_keypoints_cost", math.inf, "a number of at least 0"),
        ("matcher_similarity_cost", None, "a number of at least 0"),
        ("matcher_gamma", -2.0, "a number of at least 0"),
        ("focal_loss_gamma", "2", "a number of at least 0"),
        ("weight_loss_class", math.nan, "a number of at least 0"),
        ("weight_loss_keypoints", True, "a number of at least 0"),
        ("weight_loss_similarity", -0.1, "a number of at least 0"),
        # switches and choices
        ("freeze_backbone_batch_norms", None, "True or False"),
        ("use_fdr_heads", "no", "True or False"),
        ("use_pose_lqe", 1, "True or False"),
        ("classification_loss", "mal", "'ksvf' or 'focal'"),
        ("activation_function", "swoosh", "one of .*relu"),
        ("encoder_activation_function", None, "one of .*gelu"),
        ("decoder_activation_function", ["relu"], "one of .*relu"),
        # lists
        ("feature_strides", [], "each twice the one before"),
        ("feature_strides", [8, 32], "each twice the one before"),
        ("feature_strides", [32, 16], "finest first"),
        ("feature_strides", [16, 16], "finest first"),
        ("feature_strides", [32, 64], "out of 4, 8, 16 and 32"),
        ("feature_strides", 8, "a list of numbers"),
        ("feature_strides", ["8", "16"], "a list of numbers"),
        ("denoising_positive_similarity", [0.5], "two similarities"),
        ("denoising_positive_similarity", [0.9, 0.5], "0 < low <= high <= 1"),
        ("denoising_positive_similarity", 0.5, "a list of numbers"),
        ("denoising_negative_similarity", [0.0, 0.5], "0 < low <= high <= 1"),
        ("denoising_negative_similarity", [0.5, 1.5], "0 < low <= high <= 1"),
        ("denoising_negative_similarity", None, "a list of numbers"),
        # labels and backbone
        ("id2label", {}, "0, 1, 2, ... in a row"),
        ("id2label", {1: "person"}, "0, 1, 2, ... in a row"),
        ("id2label", ["person"], "map label ids to names"),
        ("id2label", {"person": 1}, "map label ids to names"),
        ("backbone_config", {}, "a `model_type` that transformers knows"),
        ("backbone_config", {"model_type": "nonesuch"}, "a `model_type` that transformers knows"),
        ("backbone_config", "hgnet_v2", "a `model_type` that transformers knows"),
    ],
)
def test_impossible_values(field, value, accepted):
    with pytest.raises(ValueError, match=f"(?s)`{field}`.* must .*{accepted}.*, but got ") as error:
        DETRPoseConfig(**{field: value})
    assert str(error.value).endswith(f"but got {value!r}.")


def test_values_that_do_not_fit_together():
    with pytest.raises(ValueError, match=r"`num_denoising_labels` must be at least the number of labels \(90\) minus"):
        DETRPoseConfig(num_labels=90)
    assert DETRPoseConfig(num_labels=90, num_denoising_labels=89).num_labels == 90
    with pytest.raises(ValueError, match="`feature_strides` must be one for each of 2 feature maps"):
        DETRPoseConfig(backbone_config=ResNetConfig(out_features=["stage3", "stage4"]))


@pytest.mark.parametrize(
    "stages, strides",
    [
        (["stage3", "stage4"], (8, 16)),  # as many, each twice the one before, but not the backbone's
        (["stage2", "stage3"], (16, 32)),
        (["stage1", "stage2", "stage3"], (8, 16, 32)),
    ],
)
def test_strides_that_are_not_the_backbones(stages, strides):
    backbone = {**hgnet_config("B0"), "out_features": stages}
    with pytest.raises(ValueError, match="`feature_strides` must be those of the backbone's feature maps, "):
        DETRPoseConfig(backbone_config=backbone, feature_strides=strides)


@pytest.mark.parametrize("variant", ["xl", "L", "", None])
def test_unknown_variant(variant):
    with pytest.raises(ValueError, match=f"unknown variant {variant!r}: choose one of 'n', 's', 'm', 'l', 'x'"):
        DETRPoseConfig.from_variant(variant)


@pytest.mark.parametrize("skeleton", ["mpii", "COCO", 17, ["nose"]])
def test_unknown_skeleton(skeleton):
    with pytest.raises(ValueError, match="unknown skeleton .*: choose one of 'coco', 'crowdpose'"):
        DETRPoseConfig.from_variant("s", skeleton=skeleton)


def test_classes_with_different_keypoints(tmp_path):
    classes = {0: hand_schema(3), 2: KeypointSchema(names=("tip",))}
    schema = unite_schemas(classes, {0: "hand", 2: "pen"})
    config = DETRPoseConfig(keypoint_schema=schema, id2label={0: "hand", 1: "N/A", 2: "pen"})
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["keypoint_schema"]["classes"]["2"]["indices"] == [3]
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.keypoint_schema == schema and again.num_keypoints == 4
    with pytest.raises(ValueError, match=r"`id2label` must be the names of all classes of .*, also of \[2\], but got"):
        DETRPoseConfig(keypoint_schema=schema, id2label={0: "hand", 1: "N/A"})


def test_the_keypoints_of_classes_are_not_written_if_they_do_not_differ():
    assert "classes" not in DETRPoseConfig().to_json_string()
