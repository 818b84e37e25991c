"""Exported models in ONNX Runtime."""

import shutil

import pytest
import torch
from PIL import Image
from transformers import pipeline

from small_models import assert_same

for name in ("onnx", "onnxruntime", "onnxslim"):
    pytest.importorskip(name, reason=f"{name} is missing")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseForPoseEstimationOutput  # noqa: E402
from transformers_detrpose.deployment import ORTDETRPoseForPoseEstimation  # noqa: E402
from transformers_detrpose.loading import load_pose_estimator  # noqa: E402


@torch.no_grad()
def test_outputs(export, model, images):
    onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default"), provider="CPUExecutionProvider")
    outputs = onnx_model(images(2))
    assert isinstance(outputs, DETRPoseForPoseEstimationOutput)
    assert_same(outputs, model(images(2)))
    arrays = onnx_model(pixel_values=images(2).numpy())
    assert isinstance(arrays.logits, np.ndarray)


def test_poses(export, images):
    onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("poses+any-size+tensorrt"))
    poses = onnx_model(images(2), target_sizes=torch.tensor([[10, 20], [30, 40]]))
    assert poses.keypoints.shape == (2, 7, 3, 2)
    assert poses.labels.dtype == torch.int64
    with pytest.raises(ValueError, match="model.onnx needs `target_sizes`"):
        onnx_model(images(2))


def test_superfluous_target_sizes(export, images):
    onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default"))
    with pytest.raises(ValueError, match="model.onnx takes no `target_sizes`"):
        onnx_model(images(1), target_sizes=torch.tensor([[10, 20]]))


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_provider_is_what_was_asked_for(export, provider):
    if provider in onnxruntime.get_available_providers():
        assert ORTDETRPoseForPoseEstimation.from_pretrained(export("default"), provider=provider).provider == provider
    else:
        with pytest.raises(ValueError, match=provider):
            ORTDETRPoseForPoseEstimation.from_pretrained(export("default"), provider=provider)


def test_pipeline(export, model, processor):
    pictures = [
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, 50, 3), dtype=np.uint8))
        for height in (40, 60, 80)
    ]
    onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default"))
    found = pipeline("keypoint-detection", model=onnx_model, image_processor=processor)(
        pictures, threshold=0.0, batch_size=2
    )
    expected = pipeline("keypoint-detection", model=model, image_processor=processor)(pictures, threshold=0.0)
    assert len(found) == 3 and len(found[0]) == 7
    for poses, expected_poses in zip(found, expected, strict=True):
        for pose, expected_pose in zip(poses, expected_poses, strict=True):
            assert pose["score"] == pytest.approx(expected_pose["score"], abs=1e-5)
            assert pose["label"] == expected_pose["label"]
            for keypoint, other in zip(pose["keypoints"], expected_pose["keypoints"], strict=True):
                assert keypoint["name"] == other["name"]
                assert [keypoint[key] for key in ("x", "y", "score")] == pytest.approx(
                    [other[key] for key in ("x", "y", "score")], abs=1e-2
                )


def test_float16(export, images):
    model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default", torch.float16))
    assert model.dtype == torch.float16 and model.device == torch.device("cpu")
    assert model(images(1)).pred_keypoints.dtype == torch.float32


def test_damaged_file(export, tmp_path):
    folder = shutil.copytree(export("default"), tmp_path / "copy")
    content = (folder / "model.onnx").read_bytes()
    for damaged in (b"", b"not a graph", content[: len(content) // 2]):
        (folder / "model.onnx").write_bytes(damaged)
        with pytest.raises(ValueError, match="^(ONNX Runtime cannot load )?.*copy/model.onnx") as caught:
            ORTDETRPoseForPoseEstimation.from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_foreign_file(export, tmp_path):
    folder = shutil.copytree(export("default"), tmp_path / "copy")
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, [1])]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [1])]
    graph = helper.make_graph([helper.make_node("Neg", ["input_ids"], ["last_hidden_state"])], "graph", inputs, outputs)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), folder / "model.onnx"
    )
    with pytest.raises(ValueError, match="copy/model.onnx is not an exported DETRPose: it takes input_ids and ret"):
        ORTDETRPoseForPoseEstimation.from_pretrained(folder)


def test_file_of_another_configuration(export, tmp_path):
    folder = shutil.copytree(export("default"), tmp_path / "copy")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_queries": 7', '"num_queries": 8'))
    with pytest.raises(
        ValueError, match=r"copy/model.onnx does not belong .*: logits has the shape .* \(batch, 8, 2\)"
    ):
        ORTDETRPoseForPoseEstimation.from_pretrained(folder)


def test_folders_without_a_graph(model_dir, tmp_path):
    with pytest.raises(OSError, match="model.onnx"):
        ORTDETRPoseForPoseEstimation.from_pretrained(model_dir)
    with pytest.raises(ValueError, match="there is no model nowhere"):
        ORTDETRPoseForPoseEstimation.from_pretrained("nowhere")


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 64, 96), (1, 1, 64, 96)])
def test_wrong_shapes(export, shape):
    model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default"))
    with pytest.raises(ValueError, match=r"model.onnx takes `pixel_values` of the shape \(batch_size, 3, 64, 96\)"):
        model(torch.rand(shape))


def test_wrong_shapes_where_sizes_are_free(export):
    model = ORTDETRPoseForPoseEstimation.from_pretrained(export("poses+any-size+tensorrt"))
    with pytest.raises(ValueError, match="multiples of 32, but got \\(1, 3, 64, 100\\)"):
        model(torch.rand(1, 3, 64, 100), target_sizes=torch.tensor([[10, 20]]))
    with pytest.raises(ValueError, match="takes `target_sizes` of the shape"):
        model(torch.rand(1, 3, 64, 96), target_sizes=torch.tensor([[10, 20], [30, 40]]))


class TestLoadPoseEstimator:
    @torch.no_grad()
    def test_both_kinds_estimate_the_same(self, export, model_dir, images):
        fused, exported = load_pose_estimator(str(model_dir)), load_pose_estimator(str(export("default")))
        assert isinstance(fused, DETRPoseForPoseEstimation) and isinstance(exported, ORTDETRPoseForPoseEstimation)
        pixel_values = images(2).to(exported.device, exported.dtype)
        assert_same(exported(pixel_values), fused(pixel_values))

    def test_precision(self, export, model_dir):
        assert load_pose_estimator(str(model_dir), dtype=torch.bfloat16).dtype == torch.bfloat16
        assert load_pose_estimator(str(export("default", torch.float16))).dtype == torch.float16
        with pytest.raises(ValueError, match="was exported in torch.float32, so it cannot run in torch.float16"):
            load_pose_estimator(str(export("default")), dtype=torch.float16)

    def test_what_cannot_be_used(self, export):
        with pytest.raises(ValueError, match="runs on cpu or cuda, not on meta"):
            load_pose_estimator(str(export("default")), "meta")
        with pytest.raises(ValueError, match="was exported with poses"):
            load_pose_estimator(str(export("poses+any-size+tensorrt")))
