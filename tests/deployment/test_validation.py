"""Validation of graphs against PyTorch."""

import pytest
import torch

from small_models import NETWORK_OUTPUTS, make_model

for name in ("onnx", "onnxruntime", "onnxslim"):
    pytest.importorskip(name, reason=f"{name} is missing")

import numpy as np  # noqa: E402
import onnx  # noqa: E402

from transformers_detrpose.deployment import ExportError, export_onnx, onnx_export, validate_onnx  # noqa: E402
from transformers_detrpose.deployment.onnx_export import Variant  # noqa: E402
from transformers_detrpose.deployment.tf32 import tf32  # noqa: E402


def test_ties_are_no_differences(processor, tmp_path):
    """All locations have the same score, so PyTorch and ONNX Runtime may rank them in any order."""
    model = make_model()
    torch.nn.init.zeros_(model.model.query_selection.class_head.weight)
    export_onnx(model, processor, tmp_path / "out", size_hw=(96, 96))


def test_differences(export, model):
    differences = validate_onnx(export("default") / "model.onnx", model)
    assert tuple(differences) == (*NETWORK_OUTPUTS, "ranking")
    assert 0 < max(differences.values()) < 1e-5


def test_other_weights(export, model):
    other = make_model()
    torch.nn.init.normal_(other.model.decoder.keypoint_heads[-1].layers[-1].bias)
    with pytest.raises(ExportError, match="differs from PyTorch by more than 0.0001; .*: logits"):
        validate_onnx(export("default") / "model.onnx", other)


def test_wrong_ranking(export, model, tmp_path):
    graph = onnx.load(export("default") / "model.onnx")
    ranking = next(node for node in graph.graph.node if node.op_type == "TopK")
    attributes = [attribute for attribute in ranking.attribute if attribute.name != "largest"]
    del ranking.attribute[:]
    ranking.attribute.extend([*attributes, onnx.helper.make_attribute("largest", 0)])
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="ranking [1-9]"):
        validate_onnx(tmp_path / "model.onnx", model)


def test_not_a_number(export, model, tmp_path):
    graph = onnx.load(export("default") / "model.onnx")
    weights = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    array = np.full_like(onnx.numpy_helper.to_array(weights), np.nan)
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="logits nan"):
        validate_onnx(tmp_path / "model.onnx", model)


def test_a_graph_for_one_batch_size(export, model, tmp_path):
    graph = onnx.load(export("default") / "model.onnx")
    reshape = next(node for node in graph.graph.node if node.op_type == "Reshape" and "decoder" in node.name)
    shape = next(tensor for tensor in graph.graph.initializer if tensor.name == reshape.input[1])
    array = onnx.numpy_helper.to_array(shape)
    shape.CopyFrom(onnx.numpy_helper.from_array(np.where(array == -1, 2, array), shape.name))
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="does not run on images of the shape \\(3, 3, "):
        validate_onnx(tmp_path / "model.onnx", model)


@pytest.mark.parametrize(("name", "axis", "meaning"), [("pixel_values", 0, "batch_size"), ("logits", 0, "batch_size")])
def test_axes_that_are_fixed_by_mistake(export, model, tmp_path, name, axis, meaning):
    """Such a graph runs and agrees, in the one size that it has."""
    graph = onnx.load(export("default") / "model.onnx")
    value = next(value for value in (*graph.graph.input, *graph.graph.output) if value.name == name)
    value.type.tensor_type.shape.dim[axis].dim_value = 3
    onnx.save(graph, tmp_path / "model.onnx")
    axes = {name: {axis: meaning}}
    validate_onnx(export("default") / "model.onnx", model, axes=axes)
    with pytest.raises(ExportError, match=f"the {meaning} of {name} must be dynamic, but the graph fixes it to 3"):
        validate_onnx(tmp_path / "model.onnx", model, axes=axes)


def test_an_export_checks_its_axes(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(Variant, "input_axes", lambda self: {"pixel_values": {0: "batch_size", 2: "height"}})
    simplified = onnx_export.simplify

    def fix_height(file, size_hw, stride):
        simplified(file, size_hw, stride)
        graph = onnx.load(file)
        graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = size_hw[0]
        onnx.save(graph, file)

    monkeypatch.setattr(onnx_export, "simplify", fix_height)
    with pytest.raises(ExportError, match="the height of pixel_values must be dynamic, but the graph fixes it to 96"):
        export_onnx(model, processor, tmp_path / "out", size_hw=(96, 96))
    assert not (tmp_path / "out").exists()


def test_other_outputs(export, model):
    with pytest.raises(ExportError, match="must have the outputs scores, .*, but has logits, "):
        validate_onnx(export("default") / "model.onnx", model, post_process=True)


def test_files_that_are_no_graphs(model, tmp_path):
    (tmp_path / "broken.onnx").write_text("not a graph")
    with pytest.raises(ExportError, match="broken.onnx is not an ONNX file"):
        validate_onnx(tmp_path / "broken.onnx", model)


@pytest.mark.parametrize("enabled", [False, True])
def test_tf32(enabled):
    """Both switches are set, and restored also after an error."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    with tf32(not enabled):
        with pytest.raises(KeyError), tf32(enabled):
            assert [switch.allow_tf32 for switch in switches] == [enabled] * 2
            raise KeyError
        assert [switch.allow_tf32 for switch in switches] == [not enabled] * 2
