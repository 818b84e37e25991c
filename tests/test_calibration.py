"""The calibration inside the model: what it computes, and that it goes wherever the model goes."""

import math

import pytest
import torch

from tiny import noisy, tiny_config
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.calibration import calibrate_logits, deviation_factors
from transformers_detrpose.deployment import DETRPoseGraph, export_onnx
from transformers_detrpose.evaluation.calibrating import calibrated
from transformers_detrpose.loading import load_config, load_model, load_pose_estimator

FITTED = {
    "score_exponents": torch.tensor([2.0, 0.5]),
    "score_bias": torch.tensor(0.25),
    "log_factors": torch.tensor([-1.0, 0.0, 0.5]),
    "log_factor_slope": torch.tensor(-0.5),
    "log_factor_weights": torch.linspace(-1, 1, 33)[:32],
}
RADII = [0.75, 2.5]
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models():
    """A model, and the same one calibrated."""
    torch.manual_seed(0)
    model = noisy(DETRPoseForPoseEstimation(tiny_config()).eval())
    other = DETRPoseForPoseEstimation(tiny_config()).eval()
    other.load_state_dict(model.state_dict())
    return model, calibrated(other, FITTED, RADII)


@pytest.fixture(scope="module")
def outputs(models):
    with torch.no_grad():
        return [model(IMAGES) for model in models]


def assert_same(found, expected):
    for name in ("logits", "pred_keypoints", "pred_keypoint_std"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_scores_by_hand():
    # s = 0.8: 2 log(0.8) - 0.5 log(0.2) + 0.25
    logits = calibrate_logits(torch.logit(torch.tensor([0.8])), FITTED["score_exponents"], FITTED["score_bias"])
    assert logits.item() == pytest.approx(2 * math.log(0.8) - 0.5 * math.log(0.2) + 0.25, abs=1e-5)


def test_scores_keep_their_order():
    logits = calibrate_logits(torch.linspace(-8, 8, 100), FITTED["score_exponents"], FITTED["score_bias"])
    assert (logits.diff() > 0).all()


def test_factors_by_hand():
    tokens = torch.zeros(1, 3, 32)
    tokens[0, 2, :2] = torch.tensor([1.0, -2.0])
    factors = deviation_factors(torch.tensor([2.0]), tokens, FITTED)
    expected = [math.exp(-2), math.exp(-1), math.exp(-0.5 - 1 + 2 * 0.9375)]
    torch.testing.assert_close(factors, torch.tensor([expected]))


def test_outputs_of_the_model(outputs):
    plain, fitted = outputs
    assert torch.equal(fitted.pred_keypoints, plain.pred_keypoints)
    best = plain.logits.amax(-1)
    factors = deviation_factors(best, plain.last_hidden_state[:, :, 1:], FITTED)
    expected = plain.pred_keypoint_std * factors.unsqueeze(-1)
    torch.testing.assert_close(fitted.pred_keypoint_std, expected)
    expected = calibrate_logits(plain.logits, FITTED["score_exponents"], FITTED["score_bias"])
    torch.testing.assert_close(fitted.logits, expected)


def test_is_not_less_accurate_under_autocast(models, outputs):
    """Given the same outputs of the network."""
    with torch.autocast("cpu", torch.bfloat16):
        found = models[1].calibration(outputs[0])
    expected = models[1].calibration(outputs[0])
    for name in ("logits", "pred_keypoint_std"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_tuple(models, outputs):
    with torch.no_grad():
        found = models[1](IMAGES, return_dict=False)
    assert any(torch.equal(value, outputs[1].logits) for value in found if isinstance(value, torch.Tensor))


def test_losses_are_those_of_the_network(models):
    labels = [{"class_labels": torch.tensor([1]), "keypoints": torch.full((1, 3, 3), 0.5), "area": torch.tensor([0.1])}]
    labels[0]["keypoints"][..., 2] = 2
    with torch.no_grad():
        plain, fitted = (model(IMAGES[:1], labels=labels).loss for model in models)
    torch.testing.assert_close(plain, fitted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_and_loaded(models, outputs, tmp_path, dtype):
    models[1].save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype=dtype)
    assert loaded.config.use_calibration and loaded.config.ellipse_radii == RADII
    for name, value in FITTED.items():  # exact in half precision as well
        assert torch.equal(getattr(loaded.calibration, name), value.to(dtype))
    if dtype == torch.float32:
        with torch.no_grad():
            assert_same(loaded.eval()(IMAGES), outputs[1])


def test_loaded_without_calibration(models, outputs, tmp_path):
    models[1].save_pretrained(tmp_path)
    with torch.no_grad():
        found = load_model(str(tmp_path), load_config(str(tmp_path), use_calibration=False)).eval()(IMAGES)
    assert_same(found, outputs[0])


def test_new_calibration_changes_nothing(models, outputs, tmp_path):
    """Weights without a calibration, loaded into a model with one: its values must be initialized."""
    models[0].save_pretrained(tmp_path)
    with torch.no_grad():
        found = load_model(str(tmp_path), load_config(str(tmp_path), use_calibration=True)).eval()(IMAGES)
    assert_same(found, outputs[0])


@pytest.mark.parametrize("target", ["pytorch", "onnxruntime", "tensorrt"])
def test_fused(models, outputs, target):
    with torch.no_grad():
        assert_same(models[1].fuse(target)(IMAGES), outputs[1])


def test_graph_with_poses_agrees_with_the_image_processor(models, outputs):
    processor = DETRPoseImageProcessor(keypoint_schema=models[1].config.keypoint_schema, do_scale_deviations=False)
    sizes = torch.tensor([[100, 200], [300, 150]])
    expected = processor.post_process_keypoint_detection(outputs[1], threshold=0, target_sizes=sizes)
    with torch.no_grad():
        found = DETRPoseGraph(models[1], post_process=True)(IMAGES, sizes)
    for index, poses in enumerate(expected):
        torch.testing.assert_close(found["keypoint_scores"][index], poses["keypoint_scores"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found["scores"][index], poses["scores"], atol=1e-4, rtol=0)


def test_deviations_of_a_calibrated_model_are_not_scaled(models, outputs):
    processor = DETRPoseImageProcessor(keypoint_schema=models[1].config.keypoint_schema, do_scale_deviations=False)
    poses = processor.post_process_keypoint_detection(outputs[1], threshold=0, target_sizes=[(1, 1), (1, 1)])
    order = outputs[1].logits.amax(-1)[0].argmax()
    torch.testing.assert_close(poses[0]["keypoint_std"][0], outputs[1].pred_keypoint_std[0, order])


def test_exported(models, outputs, tmp_path):
    """The export itself compares the graph with the calibrated model."""
    processor = DETRPoseImageProcessor(
        keypoint_schema=models[1].config.keypoint_schema, size={"height": 64, "width": 64}, do_scale_deviations=False
    )
    export_onnx(models[1], processor, tmp_path / "onnx")
    assert not DETRPoseImageProcessor.from_pretrained(tmp_path / "onnx").do_scale_deviations
    model = load_pose_estimator(str(tmp_path / "onnx"))
    assert model.config.use_calibration and model.config.ellipse_radii == RADII
    assert_same(model(IMAGES), outputs[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_calibration": "yes"}, "`use_calibration` must be True or False"),
        ({"use_calibration": True, "use_fdr_heads": False}, "`use_calibration` must be False if"),
        ({"ellipse_radii": [2.0, 1.0]}, "`ellipse_radii` must be two numbers above 0, in order"),
        ({"ellipse_radii": [1.0]}, "`ellipse_radii` must be two numbers"),
    ],
)
def test_invalid_configuration(fields, message):
    with pytest.raises(ValueError, match=message):
        DETRPoseConfig(**fields)
