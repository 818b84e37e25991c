"""`export_onnx`: the written files, the graphs' outputs, and errors."""

import copy

import pytest
import torch

from small_models import SIZE, TRIANGLE, assert_same, make_model

for name in ("onnx", "onnxruntime", "onnxslim"):
    pytest.importorskip(name, reason=f"{name} is missing")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402

from transformers_detrpose import (  # noqa: E402
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseImageProcessor,
    KeypointSchema,
    unite_schemas,
)
from transformers_detrpose.deployment import (  # noqa: E402
    DETRPoseGraph,
    ExportError,
    ORTDETRPoseForPoseEstimation,
    export_onnx,
    validate_onnx,
)
from transformers_detrpose.deployment.graph import POSE_OUTPUTS  # noqa: E402
from transformers_detrpose.deployment.onnx_export import Variant, image_size, write_graph  # noqa: E402
from transformers_detrpose.deployment.simplify import simplify  # noqa: E402


def run_graph(folder, **inputs):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: value.numpy() for name, value in inputs.items()}), strict=True))


def axes(values):
    return {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in values}


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@torch.no_grad()
def test_dynamic_batch(export, model, images, batch_size):
    pixel_values = images(batch_size)
    assert_same(run_graph(export("default"), pixel_values=pixel_values), model(pixel_values))


@pytest.mark.parametrize("size_hw", [(64, 96), (128, 64), (96, 160)])
@torch.no_grad()
def test_dynamic_size(export, model, images, size_hw):
    pixel_values = images(2, *size_hw)
    assert_same(run_graph(export("any-size"), pixel_values=pixel_values), model(pixel_values))


@torch.no_grad()
def test_all_features_together(export, model, processor, images):
    pixel_values, target_sizes = images(3, 96, 64), torch.tensor([[480, 640], [33, 7], [96, 64]])
    poses = run_graph(export("poses+any-size+tensorrt"), pixel_values=pixel_values, target_sizes=target_sizes)
    expected = processor.post_process_keypoint_detection(model(pixel_values), 0.0, target_sizes)
    expected = {name: torch.stack([image[name] for image in expected]) for name in POSE_OUTPUTS}
    assert_same(poses, expected, POSE_OUTPUTS, atol=1e-2)


def test_axes(export):
    graph = onnx.load(export("default") / "model.onnx").graph
    assert axes(graph.input) == {"pixel_values": ["batch_size", 3, 64, 96]}
    assert axes(graph.output) == {
        "logits": ["batch_size", 7, 2],
        "pred_keypoints": ["batch_size", 7, 3, 2],
        "pred_keypoint_std": ["batch_size", 7, 3, 2],
    }
    graph = onnx.load(export("poses+any-size+tensorrt") / "model.onnx").graph
    assert axes(graph.input)["pixel_values"] == ["batch_size", 3, "height", "width"]
    assert axes(graph.input)["target_sizes"] == ["batch_size", 2]


def test_nodes(export):
    graph = onnx.load(export("default") / "model.onnx").graph
    nodes = [node.op_type for node in graph.node]
    assert "GridSample" in nodes
    # The norms have been fused, and the graph has been simplified: one shape, that of the batch, is left.
    assert not set(nodes) & {"Constant", "Identity", "BatchNormalization"}
    assert nodes.count("Shape") <= 1
    nodes = {node.op_type for node in onnx.load(export("poses+any-size+tensorrt") / "model.onnx").graph.node}
    assert "GridSample" not in nodes


def test_number_of_nodes(tmp_path):
    """DETRPose-N has 581 nodes; additional ones need a reason."""
    model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant("n"))
    graph, file, size_hw = DETRPoseGraph(model), tmp_path / "model.onnx", (160, 160)
    variant = Variant()
    axes = {**variant.input_axes(), **variant.output_axes(model.config)}
    write_graph(graph, file, variant.sample_inputs(2, size_hw, torch.float32), axes)
    simplify(file, size_hw, stride=32)
    assert len(onnx.load(file).graph.node) <= 600


@torch.no_grad()
def test_float16(export, model, images):
    # In half precision, each operation has a relative rounding error of 5e-4, and queries may be in another order.
    graph = onnx.load(export("default", torch.float16) / "model.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    differences = validate_onnx(export("default", torch.float16) / "model.onnx", model, atol=2e-2)
    assert max(differences.values()) > 1e-5
    outputs = ORTDETRPoseForPoseEstimation.from_pretrained(export("default", torch.float16))(images(2))
    for expected in (model(images(2)), make_model().half()(images(2))):
        found = torch.as_tensor(outputs.logits).float().sigmoid().flatten(1).sort().values
        torch.testing.assert_close(found, expected.logits.float().sigmoid().flatten(1).sort().values, atol=1e-2, rtol=0)


def test_what_is_written(export, model):
    folder = export("default")
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "preprocessor_config.json", "model.onnx"} <= files
    assert not {path for path in files if path.endswith(".safetensors")}
    assert DETRPoseConfig.from_pretrained(folder).keypoint_schema == model.config.keypoint_schema
    assert dict(DETRPoseImageProcessor.from_pretrained(folder).size) == SIZE


def test_the_log_says_that_the_graph_is_right_and_the_model_stays_as_it_is(model, processor, tmp_path, caplog):
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level("INFO", logger="transformers_detrpose"):
        differences = export_onnx(model, processor, tmp_path / "out")
    assert f"{tmp_path / 'out' / 'model.onnx'} agrees with PyTorch; largest differences: logits " in caplog.text
    assert 0 < max(differences.values()) < 1e-5
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fast"}, "--variant must be one of default, tensorrt, any-size, poses, or several .*'fast'"),
        ({"size_hw": (100, None)}, "height and width must be multiples of 32, but got 100 x 96"),
        ({"opset": 11}, "opset must be from 17 to 20, but got 11"),
    ],
)
def test_impossible_exports(model, processor, tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        export_onnx(model, processor, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_kept(model, processor, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        export_onnx(model, processor, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def alter_weights(file):
    graph = onnx.load(file)
    weights = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    array = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(1.1 * array, weights.name))
    onnx.save(graph, file)


def test_a_wrong_graph_is_an_error_and_leaves_nothing(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers_detrpose.deployment.onnx_export.simplify", lambda file, *sizes: alter_weights(file)
    )
    with pytest.raises(ExportError, match="model.onnx differs from PyTorch by more than 0.0001"):
        export_onnx(model, processor, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_sizes(model):
    assert image_size(model.config) == (640, 640)
    assert image_size(model.config, width=320) == (640, 320)


def test_variants():
    assert Variant.parse("default") == Variant()
    assert Variant.parse("poses+tensorrt") == Variant("tensorrt", any_size=False, post_process=True)


@pytest.mark.parametrize("use_fdr_heads", [True, False])
@torch.no_grad()
def test_poses_of_classes_with_different_keypoints(use_fdr_heads, tmp_path, images):
    schemas = {
        0: TRIANGLE,
        1: KeypointSchema(names=("left", "tip"), sigmas=(0.2, 0.1)),
        2: KeypointSchema(names=("dot",)),
    }
    schema = unite_schemas(schemas, {0: "triangle", 1: "arrow", 2: "dot"})
    model = make_model(
        keypoint_schema=schema, id2label={0: "triangle", 1: "arrow", 2: "dot"}, use_fdr_heads=use_fdr_heads
    )
    processor = DETRPoseImageProcessor(size=SIZE, keypoint_schema=schema)
    export_onnx(model, processor, tmp_path / "onnx", "poses")
    pixel_values, sizes = images(3), torch.tensor([[480, 640], [33, 70], [96, 64]])
    found = ORTDETRPoseForPoseEstimation.from_pretrained(tmp_path / "onnx")(pixel_values, sizes)
    expected = processor.post_process_keypoint_detection(model(pixel_values), 0.0, sizes)
    expected = {name: torch.stack([image[name] for image in expected]) for name in POSE_OUTPUTS}
    assert len({*expected["labels"].flatten().tolist()}) > 1
    assert not expected["keypoint_scores"].all() and expected["keypoint_scores"].any()
    assert_same(found, expected, POSE_OUTPUTS, atol=1e-2)


def test_graphs_are_the_same_if_every_class_has_all_keypoints(export):
    """The tables of classes are in the graph only if classes differ."""
    graph = onnx.load(export("poses+any-size+tensorrt") / "model.onnx").graph
    constants = [tuple(tensor.dims) for tensor in graph.initializer]
    assert (2, 3) not in constants and "Where" not in {node.op_type for node in graph.node if "/poses" in node.name}
