"""ECPose fused and exported, against the trained model."""

import pytest
import torch

import reference
from small_models import assert_same
from tiny import noisy, tiny_ecpose_config
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.deployment.fusing import TARGETS
from transformers_detrpose.deployment.vit_modules import ProjectedPyramid
from transformers_detrpose.synthetic.pictures import generate_picture


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return noisy(DETRPoseForPoseEstimation(tiny_ecpose_config())).eval()


@pytest.mark.parametrize("target", TARGETS)
@torch.no_grad()
def test_reference(target, converted, device):
    case = reference.load_case("ecpose-s-coco")
    model = DETRPoseForPoseEstimation.from_pretrained(converted(case.name)).eval().to(device)
    outputs, (tolerance, keypoint_tolerance) = model.fuse(target)(case.image(device)), case.evaluation_tolerances
    assert (outputs.logits.cpu() - torch.from_numpy(case.arrays["logits"])).abs().max() < tolerance
    assert (outputs.pred_keypoints.cpu() - torch.from_numpy(case.arrays["keypoints"])).abs().max() < keypoint_tolerance


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stages", [["stage1", "stage2", "stage3"], ["stage3"]], ids=len)
@torch.no_grad()
def test_any_size_and_batch(stages, target, device):
    backbone = {**tiny_ecpose_config().backbone_config.to_dict(), "projected_stages": stages}
    model = noisy(DETRPoseForPoseEstimation(tiny_ecpose_config(backbone_config=backbone))).eval().to(device)
    fused = model.fuse(target)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert isinstance(fused.model.backbone.pyramid, ProjectedPyramid)
    for shape in ((3, 3, 64, 96), (1, 3, 32, 32)):
        images = torch.rand(shape, device=device)
        exact, outputs = model(images), fused(images)
        for name in ("logits", "pred_keypoints", "pred_keypoint_std"):
            torch.testing.assert_close(outputs[name], exact[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
@torch.no_grad()
def test_attention_weights(target, model):
    images = torch.rand(2, 3, 64, 64)
    exact, outputs = (x.model.backbone(images, output_attentions=True).attentions for x in (model, model.fuse(target)))
    for weights, expected in zip(outputs, exact, strict=True):
        torch.testing.assert_close(weights, expected, atol=1e-4, rtol=0)
    exact, outputs = (x(images, output_attentions=True).encoder_attentions[0] for x in (model, model.fuse(target)))
    torch.testing.assert_close(outputs, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["tensorrt", "any-size+poses"])
@torch.no_grad()
def test_export(variant, model, tmp_path, images):
    """Graphs are validated on one batch and one size while they are written; batches of other sizes run as well."""
    pytest.importorskip("onnxslim")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from transformers_detrpose.deployment import ORTDETRPoseForPoseEstimation, export_onnx

    processor = DETRPoseImageProcessor.for_model(model.config, size={"height": 64, "width": 96})
    differences = export_onnx(model, processor, tmp_path / "onnx", variant)
    assert max(differences.values()) < 1e-4
    file = tmp_path / "onnx" / "model.onnx"
    assert onnx.load(file).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch_size"
    assert DETRPoseImageProcessor.from_pretrained(tmp_path / "onnx").do_normalize
    if "poses" in variant:
        return
    loaded = ORTDETRPoseForPoseEstimation.from_pretrained(tmp_path / "onnx")
    for batch_size in (1, 3):
        found, expected = loaded(images(batch_size)), model(images(batch_size))
        names = ("logits", "pred_keypoints", "pred_keypoint_std")
        assert_same({name: found[name] for name in names}, expected)


@torch.no_grad()
def test_quantized(tmp_path):
    """With as many queries as locations, another ranking changes their order only."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxslim")
    pytest.importorskip("onnxruntime")
    from transformers_detrpose.deployment import ORTDETRPoseForPoseEstimation, export_onnx
    from transformers_detrpose.deployment.quantization import OPERATORS, quantize_onnx

    torch.manual_seed(0)
    model = noisy(DETRPoseForPoseEstimation(tiny_ecpose_config(num_queries=84))).eval()
    processor = DETRPoseImageProcessor.for_model(model.config, size={"height": 64, "width": 64})
    export_onnx(model, processor, tmp_path / "onnx")
    pictures = [generate_picture(0, index, 64)[0] for index in range(6)]
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    quantize_onnx(tmp_path / "onnx", [tmp_path / f"{index}.png" for index in range(5)], tmp_path / "int8")
    products = [node for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node if node.op_type in OPERATORS]
    assert all(name.endswith("DequantizeLinear_Output") for node in products for name in node.input[:2])
    inputs = processor(images=pictures[5], return_tensors="pt")["pixel_values"]
    folders = (tmp_path / "onnx", tmp_path / "int8")
    exact, found = (ORTDETRPoseForPoseEstimation.from_pretrained(folder)(inputs).logits for folder in folders)
    difference = (found.sort(dim=1).values - exact.sort(dim=1).values).abs().mean()
    assert 0 < difference < 0.25 * exact.std(dim=1).mean()  # random weights make errors larger


def test_number_of_nodes(tmp_path):
    """ECPose-S has 900 nodes, of which 28 in each of its 12 ViT layers; additional ones need a reason."""
    pytest.importorskip("onnxslim")
    onnx = pytest.importorskip("onnx")
    from transformers_detrpose.deployment.graph import DETRPoseGraph
    from transformers_detrpose.deployment.onnx_export import Variant, write_graph
    from transformers_detrpose.deployment.simplify import simplify

    config = DETRPoseConfig.from_variant("ecpose-s")
    config.backbone_config.num_hidden_layers = 2
    model = DETRPoseForPoseEstimation(config)
    file, size_hw, variant = tmp_path / "model.onnx", (160, 160), Variant()
    axes = {**variant.input_axes(), **variant.output_axes(model.config)}
    write_graph(DETRPoseGraph(model), file, variant.sample_inputs(2, size_hw, torch.float32), axes)
    simplify(file, size_hw, stride=32)
    assert len(onnx.load(file).graph.node) <= 900 - 10 * 28
