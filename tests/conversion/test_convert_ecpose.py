"""Converting ECPose checkpoints: layouts, the bare backbone, the wrong variant, other models, and licenses."""

import pytest
import torch
from safetensors.torch import load_file

import reference
from official_layouts import LAYOUTS, assert_same, save_pth, save_safetensors
from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands import convert as convert_detrpose
from transformers_detrpose.commands import convert_dfine
from transformers_detrpose.conversion.names import COMPUTED, COUNTER

ECPOSE_S = ("--variant", "ecpose-s")
BACKBONE = "backbone.backbone."
PERIODS = f"{BACKBONE}rope_embed.periods"


@pytest.fixture(scope="module")
def ecpose():
    """The tensors of the reference checkpoint; tests must not edit them."""
    return reference.load_case("ecpose-s-coco").state_dict()


@pytest.fixture(scope="module")
def vit(ecpose):
    """The checkpoint of the backbone alone."""
    return {name.removeprefix(BACKBONE): tensor for name, tensor in ecpose.items() if name.startswith(BACKBONE)}


@pytest.mark.parametrize("layout", ["averaged", "last, from DataParallel", "hub mixin"])
def test_layouts(layout, ecpose, converted, convert, tmp_path):
    tensors = convert(convert_detrpose, LAYOUTS[layout](ecpose, tmp_path), *ECPOSE_S)
    assert_same(tensors, load_file(converted("ecpose-s-coco") / "model.safetensors"))


def test_averaged_weights_are_preferred(ecpose, convert, tmp_path):
    token = f"{BACKBONE}register_token"
    averaged, last = ({**ecpose, token: torch.full_like(ecpose[token], value)} for value in (1.0, 0.0))
    path = save_pth(lambda _: {"model": last, "ema": {"module": averaged, "updates": 7}})(None, tmp_path)
    tensors = convert(convert_detrpose, path, *ECPOSE_S)
    assert (tensors["model.backbone.embeddings.register_token"] == 1).all()


@pytest.mark.parametrize("name", reference.ECPOSE_CASES)
def test_every_tensor_arrives(name, converted):
    case, used = reference.load_case(name), set()
    tensors = load_file(converted(name) / "model.safetensors")
    for official, tensor in case.state_dict().items():
        if not COMPUTED.match(official) and not COUNTER.search(official):
            parts = [f"model.{part}" for part in case.our_names(official)]
            assert torch.equal(torch.cat([tensors[part] for part in parts]), tensor), official
            used.update(parts)
    assert used == {name for name in tensors if not COUNTER.search(name)}


def test_folder(converted):
    processor = DETRPoseImageProcessor.from_pretrained(converted("ecpose-s-coco"))
    assert processor.do_normalize and list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]
    card = (converted("ecpose-s-coco") / "README.md").read_text(encoding="utf-8")
    assert "# ECPose: " in card and "- ecpose" in card and "official.pth" in card
    # A file that was merely given may be of either license.
    assert "license: unknown" in card and "non-commercial" in card


def test_bare_backbone(vit, output, converted, convert, tmp_path):
    tensors = convert(convert_detrpose, save_pth(lambda x: x)(vit, tmp_path), *ECPOSE_S, "--seed", "3")
    expected = load_file(converted("ecpose-s-coco") / "model.safetensors")
    of_the_vit = ("model.backbone.embeddings.", "model.backbone.layers.")
    same = {name for name in expected if torch.equal(tensors[name], expected[name])}
    assert {name for name in expected if name.startswith(of_the_vit)} <= same
    assert "model.encoder.fpn_blocks.0.conv1.conv.weight" not in same
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "license: unknown" in card and "everything else is untrained" in card
    model = DETRPoseForPoseEstimation.from_pretrained(output)
    assert not model.model.decoder.keypoint_heads[0].layers[-1].weight.any()


def test_wrong_variant(ecpose, vit, official, refusal, tmp_path):
    path = save_safetensors(ecpose, tmp_path)
    for variant in ("ecpose-x", "s"):
        message = refusal(convert_detrpose, path, "--variant", variant)
        assert f"fits --variant ecpose-s --dataset coco, not --variant {variant} --dataset coco" in message
    path = save_safetensors(vit, tmp_path)
    assert "fits --variant ecpose-s, not --variant ecpose-m" in refusal(convert_detrpose, path, "--variant", "ecpose-m")
    path = save_safetensors(official, tmp_path)
    assert "fits --variant n --dataset crowdpose, not --variant ecpose-s" in refusal(convert_detrpose, path, *ECPOSE_S)


def test_dfine_is_told_apart(ecpose, official, refusal, tmp_path):
    detector = {name.replace("transformer.", "decoder."): tensor for name, tensor in official.items()}
    message = refusal(convert_detrpose, save_safetensors(detector, tmp_path), *ECPOSE_S)
    assert "is a D-FINE detector: use `detrpose convert-dfine`" in message
    message = refusal(convert_dfine, save_safetensors(ecpose, tmp_path), "--variant", "s")
    assert "is an ECPose model, not a D-FINE detector: use `detrpose convert`" in message


def test_constants_are_checked(ecpose, convert, refusal, tmp_path):
    periods = 100 ** (torch.arange(16) / 16)
    wrong = (
        ({PERIODS: 1.1 * periods}, f"{PERIODS} is [1.1"),
        ({PERIODS: periods[:8]}, f"{PERIODS} is [1.0"),
        ({"decoder.reg_scale": torch.tensor([8])}, "decoder.reg_scale is [8], but the variant has 4.0"),
    )
    for change, message in wrong:
        assert message in refusal(convert_detrpose, save_safetensors({**ecpose, **change}, tmp_path), *ECPOSE_S)
    right = {PERIODS: periods, "decoder.reg_scale": torch.tensor([4]), "decoder.up": torch.tensor([0.5])}
    convert(convert_detrpose, save_safetensors({**ecpose, **right}, tmp_path), *ECPOSE_S)
