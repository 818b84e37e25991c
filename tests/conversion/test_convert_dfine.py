"""Starting from D-FINE detectors: of transformers, as both lines name their tensors, and in the official layout."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DFineConfig, DFineForObjectDetection

import reference
from official_layouts import CASE, LAYOUTS, OUR_MARKER, assert_same, save_safetensors
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, hybrid_encoder
from transformers_detrpose.commands import convert_dfine
from transformers_detrpose.conversion.names import COUNTER
from transformers_detrpose.keypoint_schemas import CROWDPOSE_PERSON


def make_detector(variant):
    """D-FINE with backbone and encoder of a variant, a small decoder, and numbers of its own in every tensor."""
    config = DETRPoseConfig.from_variant(variant)
    levels = len(config.feature_strides)
    detector = DFineForObjectDetection(
        DFineConfig(
            backbone_config=config.backbone_config,
            encoder_in_channels=config.backbone_config.stage_out_channels[-levels:],
            feat_strides=config.feature_strides,
            encoder_hidden_dim=config.d_model,
            encoder_ffn_dim=config.encoder_ffn_dim,
            encode_proj_layers=[levels - 1],
            hidden_expansion=config.hidden_expansion,
            depth_mult=config.depth_mult,
            d_model=config.d_model,
            decoder_in_channels=[config.d_model] * levels,
            num_feature_levels=levels,
            decoder_n_points=[4] * levels,
            decoder_ffn_dim=64,
            decoder_layers=2,
            num_queries=10,
        )
    )
    for part in (detector.model.backbone, detector.model.encoder_input_proj, detector.model.encoder):
        for name, tensor in part.state_dict().items():
            values = reference.make_tensor(name.replace("embedder", "stem"), tensor.shape)
            tensor.copy_(torch.from_numpy(values))
    return detector.eval()


@pytest.fixture(scope="module", params=["n", "s"])
def detector(request):
    return request.param, make_detector(request.param)


# How transformers 4 and 5 call the same tensors.
SPELLINGS = [
    (".encoder.encoder.", ".encoder.aifi."),
    (".out_proj.", ".o_proj."),
    (".fc1.", ".mlp.layers.0."),
    (".fc2.", ".mlp.layers.1."),
]


def spell(name, line):
    for old, new in SPELLINGS:
        name = name.replace(old, new) if line == 5 else name.replace(new, old)
    return name


@pytest.mark.parametrize("line", ["this", 4, 5])
def test_detector_of_transformers(line, detector, convert, output, tmp_path, monkeypatch):
    variant, detector = detector
    source = tmp_path / "dfine"
    detector.save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    spellings = {other: {spell(name, other) for name in tensors} for other in (4, 5)}
    assert spellings[4] != spellings[5] and set(tensors) in spellings.values()
    if line != "this":
        save_file({spell(name, line): tensor for name, tensor in tensors.items()}, source / "model.safetensors")
    tensors = convert(convert_dfine, source, "--variant", variant, "--dataset", "crowdpose")

    parts = (detector.model.backbone, detector.model.encoder_input_proj, detector.model.encoder)
    assert_same_numbers(
        [tensor for part in parts for name, tensor in part.state_dict().items() if not COUNTER.search(name)],
        [tensor for name, tensor in tensors.items() if is_backbone_or_encoder(name) and not COUNTER.search(name)],
    )
    model = DETRPoseForPoseEstimation.from_pretrained(output)
    assert model.config.keypoint_schema == CROWDPOSE_PERSON
    assert_fresh_decoder(model)
    assert_same_feature_maps(detector.model, model.model, monkeypatch)


def is_backbone_or_encoder(name):
    return name.startswith(("model.backbone.", "model.encoder."))


def assert_same_numbers(tensors, expected):
    """Compares without regard to names and order."""
    assert sorted(x.numpy().tobytes() for x in tensors) == sorted(x.numpy().tobytes() for x in expected)


def assert_fresh_decoder(model):
    decoder, selection = model.model.decoder, model.model.query_selection
    zero_heads = [*decoder.keypoint_heads, decoder.initial_keypoint_head, selection.keypoint_head]
    for head in [*zero_heads, *(quality_head.mlp for quality_head in decoder.quality_heads)]:
        assert not head.layers[-1].weight.any() and not head.layers[-1].bias.any()
        assert head.layers[0].weight.std() > 0
    for head in [*decoder.class_heads, selection.class_head]:
        assert torch.allclose(head.bias.sigmoid(), torch.tensor(0.01))


@torch.no_grad()
def assert_same_feature_maps(detector, model, monkeypatch):
    """Compares the encoders' outputs, after giving ours the two things without weights that D-FINE has otherwise."""
    attention_inputs = {}
    for name, module in detector.encoder.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            part = name.split(".")[-1]
            module.register_forward_pre_hook(lambda _, inputs, part=part: attention_inputs.update({part: inputs[0]}))
    image = torch.from_numpy(reference.make_images("dfine", 1, 96, 128))
    expected = detector(image).encoder_last_hidden_state
    position = attention_inputs["q_proj"] - attention_inputs["v_proj"]
    assert position.abs().max() > 0.5
    monkeypatch.setattr(hybrid_encoder, "sine_position_encoding", lambda *args: position[0])
    for lateral_conv in model.encoder.lateral_convs:
        lateral_conv.activation = torch.nn.Identity()

    feature_maps, _ = model.eval().encoder(model.backbone(image).feature_maps)
    assert len(feature_maps) == len(expected)
    for feature_map, expected_map in zip(feature_maps, expected, strict=True):
        assert expected_map.std() > 0.1
        torch.testing.assert_close(feature_map, expected_map, atol=1e-4, rtol=1e-4)


def test_detector_without_its_heads(detector, convert, tmp_path):
    variant, detector = detector
    detector.save_pretrained(tmp_path / "whole")
    detector.model.save_pretrained(tmp_path / "base")
    whole, base = (
        convert(convert_dfine, tmp_path / name, "--variant", variant, output=tmp_path / f"from {name}")
        for name in ("whole", "base")
    )
    assert_same(base, whole)


@pytest.fixture
def official_detector(official, tmp_path):
    """A D-FINE checkpoint in its official layout: its backbone and encoder have the same names as DETRPose's."""
    tensors = {name: tensor for name, tensor in official.items() if name.startswith(("backbone.", "encoder."))}
    tensors["decoder.input_proj.0.conv.weight"] = torch.ones(128, 128, 1, 1)
    tensors["decoder.decoder.layers.0.self_attn.in_proj_weight"] = torch.ones(384, 128)
    return LAYOUTS["averaged"](tensors, tmp_path)


@pytest.mark.parametrize("dataset", ["coco", "crowdpose"])
def test_official_detector(dataset, official_detector, converted, convert, output):
    tensors = convert(convert_dfine, official_detector, "--variant", "n", "--dataset", dataset)
    expected = load_file(converted(CASE.name) / "model.safetensors")
    assert_same(*({name: x[name] for name in x if is_backbone_or_encoder(name)} for x in (tensors, expected)))
    model = DETRPoseForPoseEstimation.from_pretrained(output)
    assert model.config.num_keypoints == {"coco": 17, "crowdpose": 14}[dataset]
    assert_fresh_decoder(model)
    assert "the pose decoder is untrained" in (output / "README.md").read_text(encoding="utf-8")


def test_seed_of_the_decoder(official_detector, convert, tmp_path):
    first, again, other = (
        convert(convert_dfine, official_detector, "--variant", "n", "--seed", seed, output=tmp_path / name)
        for name, seed in (("first", "1"), ("again", "1"), ("other", "2"))
    )
    assert_same(again, first)
    assert not torch.equal(other[OUR_MARKER], first[OUR_MARKER])


def test_wrong_variant_of_detector(official_detector, refusal):
    assert "fits --variant n, not --variant s." in refusal(convert_dfine, official_detector, "--variant", "s")


def test_other_detector(official, refusal, tmp_path):
    backbone = {name: tensor for name, tensor in official.items() if name.startswith("backbone.")}
    message = refusal(convert_dfine, save_safetensors(backbone, tmp_path), "--variant", "n")
    assert "fits no published variant" in message and "missing encoder." in message
