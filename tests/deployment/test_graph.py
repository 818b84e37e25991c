"""The outputs of graphs in PyTorch, without an exporter."""

import subprocess
import sys

import pytest
import torch

import transformers_detrpose.deployment
from small_models import make_model
from transformers_detrpose import DETRPoseForPoseEstimation
from transformers_detrpose.deployment import DETRPoseGraph
from transformers_detrpose.deployment.graph import POSE_OUTPUTS


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@torch.no_grad()
def test_outputs_of_the_network(model, images, target):
    graph = DETRPoseGraph(model, target=target)
    outputs, expected = graph(images(2)), model(images(2))
    assert tuple(outputs) == graph.output_names == ("logits", "pred_keypoints", "pred_keypoint_std")
    for name, values in outputs.items():
        torch.testing.assert_close(values, expected[name], atol=1e-5, rtol=0)
    assert type(model) is DETRPoseForPoseEstimation


@pytest.mark.parametrize("use_fdr_heads", [True, False])
@torch.no_grad()
def test_poses_are_those_of_the_image_processor(processor, images, use_fdr_heads):
    model = make_model(use_fdr_heads=use_fdr_heads)
    target_sizes = torch.tensor([[480, 640], [33, 7]])
    graph = DETRPoseGraph(model, post_process=True)
    poses = graph(images(2), target_sizes)
    assert tuple(poses) == graph.output_names == POSE_OUTPUTS
    expected = processor.post_process_keypoint_detection(model(images(2)), threshold=0.0, target_sizes=target_sizes)
    for index, image in enumerate(expected):
        for name in POSE_OUTPUTS:
            torch.testing.assert_close(poses[name][index], image[name], atol=1e-2, rtol=1e-4)


def test_without_fdr_heads_there_are_no_deviations():
    assert DETRPoseGraph(make_model(use_fdr_heads=False)).output_names == ("logits", "pred_keypoints")


def test_importing_loads_no_exporter():
    program = (
        "import sys, transformers_detrpose, transformers_detrpose.deployment;"
        "print({name.partition('.')[0] for name in sys.modules} & {'optimum', 'onnx', 'onnxruntime', 'onnxslim'})"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("ORTDETRPoseForPoseEstimation", "onnx"),
        ("export_onnx", "onnx"),
        ("known_to_optimum", "optimum"),
        ("validate_onnx", "onnx"),
    ],
)
def test_missing_extra(monkeypatch, name, extra):
    for module in ("validation", "simplify", "onnx_export", "optimum_onnx", "onnx_runtime"):
        monkeypatch.delitem(sys.modules, f"transformers_detrpose.deployment.{module}", raising=False)
    for module in ("onnxruntime", "optimum.exporters.onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{name} needs `pip install "transformers-detrpose\[{extra}\]"`'):
        getattr(transformers_detrpose.deployment, name)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        transformers_detrpose.deployment.nothing  # noqa: B018
