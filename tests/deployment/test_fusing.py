"""Fused models against the original models."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

import reference
from tiny import make_labels, noisy, tiny_config
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation
from transformers_detrpose.attention import bilinear_sample
from transformers_detrpose.deployment.folding import Constant, fold_affine
from transformers_detrpose.deployment.fusing import TARGETS, fuse
from transformers_detrpose.deployment.modules import softmax, written_out_softmax
from transformers_detrpose.deployment.sampling import FeatureTable, bilinear_gather, gather, look_up, sample_maps


@pytest.fixture(scope="module", params=reference.CASES)
def case(request):
    return reference.load_case(request.param)


@pytest.fixture(scope="module")
def model(case, converted, device):
    return DETRPoseForPoseEstimation.from_pretrained(converted(case.name)).to(device).eval()


@pytest.fixture(scope="module")
def tiny_model(device):
    torch.manual_seed(0)
    return noisy(DETRPoseForPoseEstimation(tiny_config()).to(device)).eval()


class TestFuse:
    @pytest.mark.parametrize("target", TARGETS)
    @torch.no_grad()
    def test_same_outputs(self, target, case, model):
        fused, image = model.fuse(target), case.image(model.device)
        exact, outputs = model(image), fused(image)
        assert (outputs.logits - exact.logits).abs().max() < 1e-4
        assert (outputs.pred_keypoints - exact.pred_keypoints).abs().max() < 1e-4
        assert not any(isinstance(m, (torch.nn.BatchNorm2d, FrozenBatchNorm2d)) for m in fused.modules())
        assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in model.parameters())

    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("size", [(64, 96), (32, 32)])
    @torch.no_grad()
    def test_any_size_and_batch(self, size, target, tiny_model, device):
        images = torch.rand(3, 3, *size, device=device)
        exact, outputs = tiny_model(images), tiny_model.fuse(target)(images)
        for name in ("logits", "pred_keypoints", "pred_keypoint_std"):
            torch.testing.assert_close(outputs[name], exact[name], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("fields", [{"use_fdr_heads": False}, {"use_pose_lqe": False}], ids=str)
    @torch.no_grad()
    def test_switches(self, fields, target, device):
        model = noisy(DETRPoseForPoseEstimation(tiny_config(**fields)).to(device)).eval()
        images = torch.rand(1, 3, 64, 64, device=device)
        exact, outputs = model(images), model.fuse(target)(images)
        for name in ("logits", "pred_keypoints"):
            torch.testing.assert_close(outputs[name], exact[name], atol=1e-4, rtol=0)

    @torch.no_grad()
    def test_attention_weights(self, tiny_model, device):
        images = torch.rand(2, 3, 64, 64, device=device)
        names = ("attentions", "across_attentions", "cross_attentions")
        exact, outputs = (x(images, output_attentions=True) for x in (tiny_model, tiny_model.fuse()))
        for name in names:
            for weights, expected in zip(outputs[name], exact[name], strict=True):
                torch.testing.assert_close(weights, expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @torch.no_grad()
    def test_half_precision(self, dtype, tiny_model, device):
        """Close if both select the same locations: the tiny image has no more of them than queries."""
        model = noisy(DETRPoseForPoseEstimation(tiny_config()).to(device), scale=0.01).eval()
        image = torch.rand(1, 3, 32, 32, device=device)
        exact, outputs = model(image), model.fuse().to(dtype)(image)
        assert outputs.pred_keypoints.dtype == torch.float32
        assert (outputs.pred_keypoints.sort(1)[0] - exact.pred_keypoints.sort(1)[0]).abs().max() < 0.02

    @torch.no_grad()
    def test_folds_in_float32(self, tiny_model, device):
        """A model in half precision is folded in float32 and rounded once."""
        half = DETRPoseForPoseEstimation(tiny_model.config).to(device)
        half.load_state_dict(tiny_model.state_dict())
        half = half.eval().to(torch.bfloat16)
        fused = half.fuse()
        # A copy of the same, already rounded, weights.
        expected = half.float().fuse().to(torch.bfloat16)
        for (name, found), other in zip(fused.named_parameters(), expected.parameters(), strict=True):
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, other), name

    @torch.no_grad()
    def test_constants_keep_their_precision(self, tiny_model):
        fused = tiny_model.fuse().half()
        constants = [module for module in fused.modules() if isinstance(module, Constant)]
        assert len(constants) == 3
        assert all(constant().dtype == torch.float32 for constant in constants)

    @torch.no_grad()
    def test_makes_no_constants_in_a_pass(self, tiny_model, device):
        """CUDA graphs cannot capture copies from the host."""

        class Lifted(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                names.append(func.name())
                return func(*args, **(kwargs or {}))

        names, fused, image = [], tiny_model.fuse(), torch.rand(1, 3, 64, 64, device=device)
        with Lifted():
            fused(image)
        assert "aten::convolution" in names
        assert not [name for name in names if name in ("aten::lift_fresh", "aten::_local_scalar_dense")]

    @pytest.mark.parametrize("scale", [0.7, -1.3])
    @pytest.mark.parametrize("bias", [0.4, -0.4])
    def test_affine_step(self, scale, bias, device):
        conv, image = torch.nn.Conv2d(3, 5, 3, padding=1).to(device), torch.randn(1, 3, 8, 8, device=device)
        expected = scale * conv(image).relu() + bias
        folded, activation = fold_affine(conv, *torch.tensor([[scale], [bias]], device=device))
        torch.testing.assert_close(activation(folded(image)), expected)

    def test_is_for_deployment(self, tmp_path, tiny_model, device):
        fused = tiny_model.fuse()
        with pytest.raises(ValueError, match="fused"):
            fused.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="fused"):
            fused(torch.rand(1, 3, 64, 64, device=device), labels=make_labels(tiny_model.config, [1], device=device))
        with pytest.raises(ValueError, match="fused"):
            fused.train()(torch.rand(1, 3, 64, 64, device=device))
        with pytest.raises(ValueError, match="fused"):
            fused.fuse()

    def test_unknown_target(self, tiny_model):
        with pytest.raises(ValueError, match="'pytorch', 'onnxruntime', 'tensorrt', but got 'cuda'"):
            fuse(tiny_model, "cuda")

    def test_leaves_the_model_as_it_is(self, tiny_model):
        before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
        tiny_model.fuse()
        after = tiny_model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_unfrozen_norms(self, device):
        model = DETRPoseForPoseEstimation(tiny_config(freeze_backbone_batch_norms=False)).to(device)
        model.train()(torch.rand(2, 3, 64, 64, device=device))
        image = torch.rand(1, 3, 64, 64, device=device)
        with torch.no_grad():
            assert (model.fuse()(image).logits - model.eval()(image).logits).abs().max() < 1e-4

    def test_softmax(self, device):
        logits = 30 * torch.randn(5, 7, dtype=torch.float32, device=device)
        torch.testing.assert_close(written_out_softmax(logits), softmax(logits))


class TestSampling:
    """Table look-ups against `grid_sample`, the reference."""

    @pytest.mark.parametrize("spread", [0.5, 1.5, 100.0], ids=["inside", "across the border", "far outside"])
    def test_points(self, spread, device):
        feature_map = torch.rand(2, 8, 5, 7, device=device)
        points = 0.5 + spread * 2 * (torch.rand(2, 30, 4, 2, device=device) - 0.5)
        corners = [[0.0, 0.0], [1.0, 1.0], [0.5 / 7, 0.5 / 5], [-0.5 / 7, 5.5 / 5]]
        points[:, :2] = torch.tensor(corners, device=device)
        expected = bilinear_sample(feature_map, points)
        torch.testing.assert_close(bilinear_gather(feature_map, points), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("read", [look_up, gather])
    def test_weighted_sums(self, read, device):
        maps = [torch.rand(2, 12, *size, device=device) for size in [(8, 6), (4, 3)]]
        points = 1.4 * torch.rand(2, 11, 2, device=device) - 0.2
        offsets = 4 * torch.randn(2, 11, 2, 3, 10, device=device)
        weights = torch.rand(2, 11, 3, 10, device=device) / 10
        head_maps = [x.view(6, 4, *x.shape[-2:]) for x in maps]
        expected = sample_maps(head_maps, points, offsets.permute(0, 1, 3, 4, 2), weights)
        table = FeatureTable(maps, num_heads=3, num_samples=5, read=read)
        torch.testing.assert_close(table.mix(points, offsets, weights), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("read", [look_up, gather])
    def test_nan_is_read_nowhere(self, read, device):
        """NaN and infinite points read valid rows of the table, and only they result in NaN."""
        maps = [torch.rand(1, 4, 6, 5, device=device)]
        points = [[[0.5, 0.5], [float("nan"), 0.5], [0.5, float("nan")], [float("inf"), 0.5]]]
        points, offsets = torch.tensor(points, device=device), torch.zeros(1, 4, 2, 2, 1, device=device)
        used = []

        def recording(indices, rows, weights):
            used.append((indices, len(rows)))
            return read(indices, rows, weights)

        table = FeatureTable(maps, num_heads=2, num_samples=1, read=recording)
        mixed = table.mix(points, offsets, torch.ones(1, 4, 2, 1, device=device))
        indices, num_rows = used[0]
        assert indices.min() >= 0 and indices.max() < num_rows
        assert mixed.isnan().all(-1).tolist() == [[False, True, True, False]]
        assert mixed[0, [0, 3]].isfinite().all()


def export(model, image, path, **options):
    names = {"input_names": ["pixel_values"], "output_names": ["logits", "pred_keypoints"]}
    torch.onnx.export(OnlyPoses(model), (image,), path, opset_version=18, dynamo=False, **names, **options)
    return path


class OnlyPoses(torch.nn.Module):
    """A model that returns a tuple, as exporters expect."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        outputs = self.model(pixel_values, return_dict=True)
        return outputs.logits, outputs.pred_keypoints


class TestGraph:
    """Fused models in an exporter, on the CPU."""

    @pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "any batch and size"])
    @pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
    @torch.no_grad()
    def test_runs(self, target, dynamic, tmp_path, tiny_model):
        onnx = pytest.importorskip("onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
        tiny_model, images = copy.deepcopy(tiny_model).cpu(), torch.rand(2, 3, 64, 96)
        options = {"dynamic_axes": {"pixel_values": {0: "batch", 2: "height", 3: "width"}}} if dynamic else {}
        path = export(tiny_model.fuse(target), images, str(tmp_path / "model.onnx"), **options)
        uses_grid_sample = any(node.op_type == "GridSample" for node in onnx.load(path).graph.node)
        assert uses_grid_sample == (target == "onnxruntime")
        session = onnxruntime.InferenceSession(path)
        for batch in (images, torch.rand(3, 3, 96, 160)) if dynamic else (images,):
            logits, keypoints = session.run(None, {"pixel_values": batch.numpy()})
            expected = tiny_model(batch)
            torch.testing.assert_close(torch.from_numpy(logits), expected.logits, atol=1e-4, rtol=0)
            torch.testing.assert_close(torch.from_numpy(keypoints), expected.pred_keypoints, atol=1e-4, rtol=0)

    def test_is_lean(self, tmp_path):
        """Operators of N at fixed size, constants not counted."""
        onnx, onnxslim = pytest.importorskip("onnx"), pytest.importorskip("onnxslim")
        model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant("n")).fuse("onnxruntime")
        path = export(model, torch.rand(1, 3, 640, 640), str(tmp_path / "model.onnx"))
        operators = [node.op_type for node in onnxslim.slim(onnx.load(path)).graph.node]
        assert sum(operator != "Constant" for operator in operators) <= 600
        assert "Shape" not in operators
