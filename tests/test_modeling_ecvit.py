"""ECViT alone, ECPose with it, and the options of the encoder: numbers by hand, sizes, precision, gradients, saving."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import FrozenBatchNorm2d
from transformers import AutoBackbone, AutoConfig, pipeline

from tiny import make_labels, noisy, tiny_config, tiny_ecpose_config
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseImageProcessor,
    ECViTBackbone,
    ECViTConfig,
)
from transformers_detrpose.loading import load_image_processor
from transformers_detrpose.modeling_ecvit import ECViTPyramid, rotary_encoding, rotate
from transformers_detrpose.position_encoding import grid_position_encoding
from transformers_detrpose.training.recipes import variant_of

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
STAGES = ["stage1", "stage2", "stage3"]


def tiny_backbone(**fields):
    torch.manual_seed(0)
    config = ECViTConfig(**{**TINY, "projection_size": 12, "out_features": STAGES, **fields})
    backbone = ECViTBackbone(config).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def test_rotary_encoding_by_hand():
    """Two rows and one column: y is -0.5 and 0.5, x is 0; eight channels have the periods 1 and 10."""
    cosines, sines = rotary_encoding(2, 1, 8, 100.0, torch.device("cpu"))
    assert cosines[0].tolist() == [1] * 8 and not sines[0].any()  # the register
    angles = [math.pi, math.pi / 10, 0, 0]  # of y = 0.5 for both periods, then of x
    for patch, sign in ((1, -1), (2, 1)):
        expected = [sign * angle for angle in angles] * 2
        assert cosines[patch].tolist() == pytest.approx([math.cos(angle) for angle in expected], abs=1e-6)
        signed = [-math.sin(angle) for angle in expected[:4]] + [math.sin(angle) for angle in expected[4:]]
        assert sines[patch].tolist() == pytest.approx(signed, abs=1e-6)


def test_rotation_of_pairs():
    """(a, b) with a channel of each half: a quarter turn gives (-b, a)."""
    states = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    quarter_turn = torch.zeros(1, 4), torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    assert rotate(states, quarter_turn).tolist() == [[-3.0, -4.0, 1.0, 2.0]]


def test_pyramid_by_hand():
    """Averages the layers, leaves the register out, and resizes the patches bilinearly, without projections."""
    pyramid = ECViTPyramid(ECViTConfig(**TINY, projected_stages=[]))
    tokens = torch.tensor([100.0, 0.0, 1.0, 2.0, 3.0]).view(1, 5, 1).expand(1, 5, 16)
    fine, middle, coarse = pyramid((tokens, 3 * tokens), (2, 2))
    assert middle[0, 0].tolist() == [[0, 2], [4, 6]]
    assert fine[0, 5].tolist()[0] == [0, 0.5, 1.5, 2] and fine.shape[-2:] == (4, 4)
    assert coarse[0, 9].tolist() == [[3]]


def test_layer_norms_have_their_own_epsilon():
    """1e-6, unlike the rest of the network: the reference numbers hardly show the difference."""
    norms = [module for module in tiny_backbone().modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 6 and {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
@torch.no_grad()
def test_sizes(size, device):
    feature_maps = tiny_backbone().to(device)(torch.rand(2, 3, *size, device=device)).feature_maps
    assert [tuple(x.shape) for x in feature_maps] == [(2, 12, size[0] // s, size[1] // s) for s in (8, 16, 32)]


@pytest.mark.parametrize("shape, message", [((1, 3, 64, 48), "multiples of 32"), ((3, 64, 64), "batch, channels")])
def test_bad_images(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_backbone()(torch.rand(shape))


@torch.no_grad()
def test_attention_functions_agree(device):
    backbone, image = tiny_backbone().to(device), torch.rand(2, 3, 64, 96, device=device)
    backbone.set_attn_implementation("sdpa")
    expected = backbone(image).feature_maps
    weights = backbone(image, output_attentions=True).attentions
    assert [tuple(x.shape) for x in weights] == [(2, 2, 25, 25)] * 3
    torch.testing.assert_close(weights[0].sum(-1), torch.ones_like(weights[0][..., 0]))
    backbone.set_attn_implementation("eager")
    for found, other in zip(backbone(image).feature_maps, expected, strict=True):
        torch.testing.assert_close(found, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype, device):
    backbone, image = tiny_backbone().to(device), torch.rand(1, 3, 64, 64, device=device)
    expected = backbone(image).feature_maps
    found = backbone.to(dtype)(image.to(dtype)).feature_maps
    for half, full in zip(found, expected, strict=True):
        assert half.dtype == dtype
        assert (half.float() - full).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_autocast(implementation, device):
    backbone = tiny_backbone().to(device).train()
    backbone.set_attn_implementation(implementation)
    with torch.autocast(device.type, torch.bfloat16):
        feature_maps = backbone(torch.rand(2, 3, 64, 64, device=device)).feature_maps
    sum(x.float().sum() for x in feature_maps).backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant, device):
    backbone, image = tiny_backbone().to(device).train(), torch.rand(2, 3, 64, 64, device=device)

    def gradients():
        backbone.zero_grad()
        sum(x.square().mean() for x in backbone(image).feature_maps).backward()
        return {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}

    expected, calls = gradients(), []
    backbone.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    backbone.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    found = gradients()
    assert len(calls) == 2  # computed again in the backward pass
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_initial_values():
    torch.manual_seed(0)
    backbone = ECViTBackbone(
        ECViTConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2)
    )
    linear, conv = backbone.layers[0].fc1, backbone.embeddings.projection
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1) and not linear.bias.any()
    assert 0 < backbone.embeddings.register_token.std() < 0.04
    bound = 1 / math.sqrt(conv.weight[0].numel())  # PyTorch's default
    assert 0.9 * bound < conv.weight.abs().max() <= bound


@torch.no_grad()
def test_saved_and_loaded(tmp_path):
    backbone, image = tiny_backbone(), torch.rand(1, 3, 64, 32)
    backbone.save_pretrained(tmp_path)
    loaded = ECViTBackbone.from_pretrained(tmp_path).eval()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ECViTConfig) and loaded.config.out_features == STAGES
    for found, expected in zip(loaded(image).feature_maps, backbone(image).feature_maps, strict=True):
        assert torch.equal(found, expected)


def test_auto_classes():
    config = AutoConfig.for_model("ecvit", **TINY, out_indices=[-1])
    assert isinstance(config, ECViTConfig) and config.out_features == ["stage3"]
    assert isinstance(AutoBackbone.from_config(config), ECViTBackbone)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": 20}, "`hidden_size` must be divisible by 8, but got 20"),
        ({"hidden_size": 0}, "`hidden_size` must be an integer of at least 1, but got 0"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must be a divisor of `hidden_size` / 4 = 96, but got 5"),
        ({"num_averaged_layers": 13}, "`num_averaged_layers` must be at most the layers, but got 13"),
        ({"layer_norm_eps": 0}, "`layer_norm_eps` must be a number above 0, but got 0"),
        ({"projection_size": 2.5}, "`projection_size` must be an integer of at least 1, but got 2.5"),
        ({"projected_stages": ["stage3", "stage1"]}, "`projected_stages` must be out of 'stage1', 'stage2' and"),
        ({"hidden_act": "none"}, "`hidden_act` must be one of "),
        ({"out_features": ["stage1"], "out_indices": [2]}, r"`out_indices` must be \[1\], those of `out_features`"),
    ],
)
def test_impossible_values(fields, message):
    with pytest.raises(ValueError, match=message):
        ECViTConfig(**fields)


class TestPoseEstimation:
    """ECPose: the pose estimator with this backbone."""

    def test_training_step(self, device):
        """Denoising included; nothing in the backbone is frozen, and every parameter learns."""
        config = tiny_ecpose_config()
        model = noisy(DETRPoseForPoseEstimation(config)).to(device).train()
        assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
        norms = [module for module in model.model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        outputs = model(torch.rand(2, 3, 64, 96, device=device), labels=make_labels(config, [2, 1], device=device))
        outputs.loss.backward()
        assert outputs.denoising_outputs is not None and outputs.loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert all(parameter.grad.any() for parameter in model.model.backbone.parameters())
        assert len(norms) == 6 and all(norm.num_batches_tracked == 1 for norm in norms)

    def test_attention_function_of_the_backbone(self, tmp_path):
        DETRPoseForPoseEstimation(tiny_ecpose_config()).save_pretrained(tmp_path)
        model = DETRPoseForPoseEstimation.from_pretrained(tmp_path, attn_implementation="eager")
        attention = model.model.backbone.layers[0].self_attn
        assert attention.config._attn_implementation == "eager"
        model.set_attn_implementation("sdpa")
        assert attention.config._attn_implementation == "sdpa"

    @torch.no_grad()
    def test_saved_and_loaded(self, tmp_path, device):
        model = noisy(DETRPoseForPoseEstimation(tiny_ecpose_config())).eval()
        model.save_pretrained(tmp_path)
        DETRPoseImageProcessor.for_model(model.config).save_pretrained(tmp_path)
        image = torch.rand(1, 3, 64, 32)
        loaded = DETRPoseForPoseEstimation.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(image).pred_keypoints, model(image).pred_keypoints)
        half = DETRPoseForPoseEstimation.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        assert half(image).pred_keypoints.isfinite().all()

        estimator = pipeline("keypoint-detection", model=str(tmp_path), device="cpu")
        assert estimator.image_processor.do_normalize
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
        assert len(estimator(picture, threshold=0.0)) == 7

    def test_no_graph_break(self):
        model = DETRPoseForPoseEstimation(tiny_ecpose_config()).eval()
        compiled, image = torch.compile(model, fullgraph=True, backend="eager"), torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(compiled(image).pred_keypoints, model(image).pred_keypoints)

    def test_channels_without_projection(self):
        backbone = {**tiny_ecpose_config().backbone_config.to_dict(), "projection_size": 24}
        message = "`use_input_projections` must be True for feature maps of the backbone with 24 channels"
        with pytest.raises(ValueError, match=message):
            DETRPoseForPoseEstimation(tiny_ecpose_config(backbone_config=backbone))
        model = DETRPoseForPoseEstimation(tiny_ecpose_config(backbone_config=backbone, use_input_projections=True))
        assert model.eval()(torch.rand(1, 3, 64, 64)).pred_keypoints.shape == (1, 7, 3, 2)

    @pytest.mark.parametrize("variant", ["l", "x", "ecpose-s", "ecpose-m", "ecpose-l", "ecpose-x"])
    def test_variant_is_found_out(self, variant):
        assert variant_of(DETRPoseConfig.from_variant(variant)) == variant

    @pytest.mark.parametrize("variant, normalizes", [("s", False), ("ecpose-s", True)])
    def test_image_processor(self, variant, normalizes):
        processor = load_image_processor(variant)
        assert processor.do_normalize == normalizes
        pixels = processor(images=Image.new("RGB", (8, 8), (255, 0, 51)), return_tensors="pt")["pixel_values"]
        expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225] if normalizes else [1, 0, 0.2]
        assert pixels[0, :, 100, 100].tolist() == pytest.approx(expected, abs=1e-5)


class TestEncoderOptions:
    """Each field alone, in a DETRPose model."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"fusion_operation": "sum"},
            {"use_lateral_activation": False},
            {"use_trailing_convolutions": False},
            {"use_joint_csp_convolution": True},
            {"encoder_activation_function": "silu"},
            {"convolution_initialization": "default"},
        ],
        ids=str,
    )
    @torch.no_grad()
    def test_option(self, fields):
        torch.manual_seed(0)
        model, image = noisy(DETRPoseForPoseEstimation(tiny_config(**fields))).eval(), torch.rand(1, 3, 64, 96)
        torch.testing.assert_close(model.fuse()(image).logits, model(image).logits, atol=1e-4, rtol=0)
        torch.manual_seed(0)
        other = noisy(DETRPoseForPoseEstimation(tiny_config())).eval()
        assert not torch.allclose(other(image).logits, model(image).logits, atol=1e-3)

    @pytest.mark.parametrize("field", ["fusion_operation", "encoder_position_encoding", "convolution_initialization"])
    def test_unknown_choice(self, field):
        with pytest.raises(ValueError, match=f"`{field}` must be '.*' or '.*', but got 'none'"):
            DETRPoseConfig(**{field: "none"})

    def test_grid_positions_by_hand(self):
        """Row 1, column 2 of a 2x3 grid: sines and cosines of row and column, with frequencies 1 and 1/10."""
        encoding = grid_position_encoding(2, 3, 8, 100.0, torch.device("cpu"))
        angles = [(math.sin(1), math.sin(0.1), math.cos(1), math.cos(0.1)), (math.sin(2), math.sin(0.2))]
        expected = [*angles[0], *angles[1], math.cos(2), math.cos(0.2)]
        assert encoding.shape == (6, 8)
        assert encoding[5].tolist() == pytest.approx(expected, abs=1e-6)
        assert encoding[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
