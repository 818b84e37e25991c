"""The exporters of transformers 5."""

import pytest
import torch

for name in ("transformers.exporters", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is missing", exc_type=ImportError)

from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter  # noqa: E402

BATCH = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
OUTPUTS = ("logits", "pred_keypoints", "pred_keypoint_std")


def assert_same_outputs(exported, model, pixel_values):
    found = exported(pixel_values=pixel_values)
    with torch.no_grad():
        expected = model(pixel_values)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=0)


def test_onnx(model, images, tmp_path):
    # With a sample batch of one image, the batch size would be fixed.
    exporter, sample = OnnxExporter(), {"pixel_values": images(2)}
    exporter.export(model.fuse(), sample, OnnxConfig(dynamic_shapes=BATCH)).save_pretrained(tmp_path)
    exported = ExportedModel.from_pretrained(tmp_path, device="cpu")
    for batch_size in (1, 2, 3):
        assert_same_outputs(exported, model, images(batch_size))


def test_openvino(model, images, tmp_path):
    pytest.importorskip("openvino", reason="openvino is missing")
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    exporter, sample = OpenVINOExporter(), {"pixel_values": images(2)}
    exporter.export(model.fuse(), sample, OpenVINOConfig(dynamic_shapes=BATCH)).save_pretrained(tmp_path)
    # Processors with matrix extensions would otherwise compute in bfloat16.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    exported = ExportedModel.from_pretrained(tmp_path, device="cpu", config=precision)
    for batch_size in (1, 3):
        assert_same_outputs(exported, model, images(batch_size))
