"""The network against the reference numbers, and its other guarantees."""

import copy
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import FrozenBatchNorm2d
from transformers.models.hgnet_v2.modeling_hgnet_v2 import HGNetV2LearnableAffineBlock

import reference
import transformers_detrpose
from tiny import make_labels, noisy, tiny_config
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseImageProcessor,
)
from transformers_detrpose.affine_block import DETRPoseLearnableAffineBlock
from transformers_detrpose.modeling_detrpose import DETRPoseIntegral, weighting_function

CASES = (*reference.CASES, *reference.ECPOSE_CASES)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return reference.load_case(request.param)


@pytest.fixture(scope="module")
def model(case, converted, device):
    return DETRPoseForPoseEstimation.from_pretrained(converted(case.name)).to(device)


def largest_error(tensor, array):
    assert tuple(tensor.shape) == array.shape
    return np.abs(tensor.detach().cpu().numpy() - array).max()


class TestReference:
    @torch.no_grad()
    def test_evaluation(self, case, model):
        model.eval()
        image, (tolerance, keypoint_tolerance) = case.image(model.device), case.evaluation_tolerances
        outputs = model(image, output_hidden_states=True)
        feature_maps = {
            "backbone": model.model.backbone(image).feature_maps,
            "encoder": outputs.encoder_hidden_states,
        }
        for part, maps in feature_maps.items():
            assert len(maps) == len(case.json[part])
            for feature_map, expected in zip(maps, case.json[part], strict=True):
                assert list(feature_map.shape) == expected["shape"]
                positions = np.linspace(0, feature_map.numel() - 1, 64).astype(int)
                samples = feature_map.flatten().cpu()[positions]
                np.testing.assert_allclose(samples, expected["samples"], rtol=0, atol=tolerance)
                assert feature_map.std().item() == pytest.approx(expected["std"], rel=1e-4)
        assert largest_error(outputs.logits, case.arrays["logits"]) < tolerance
        assert largest_error(outputs.pred_keypoints, case.arrays["keypoints"]) < keypoint_tolerance

    @torch.no_grad()
    def test_post_processing(self, case, model, converted):
        processor = DETRPoseImageProcessor.from_pretrained(converted(case.name))
        outputs = model.eval()(case.image(model.device))
        poses = processor.post_process_keypoint_detection(outputs, threshold=0.0, target_sizes=[(853, 480)])[0]
        tolerance, keypoint_tolerance = case.evaluation_tolerances
        assert largest_error(poses["scores"], case.arrays["post_scores"][0]) < tolerance / 10
        assert (poses["labels"].cpu().numpy() == case.arrays["post_labels"][0]).all()
        assert largest_error(poses["keypoints"], case.arrays["post_keypoints"][0]) < 853 * keypoint_tolerance

    def test_training(self, case, model):
        outputs = self.train_step(case, model)
        expected = case.arrays
        names = model.model.decoder.output_set_names
        sets = dict(zip(("encoder", *names), (*outputs.auxiliary_outputs, outputs), strict=True))
        for layer, (logits, keypoints) in enumerate(
            zip(expected["train_logits"], expected["train_keypoints"], strict=True)
        ):
            assert largest_error(sets[str(layer)]["logits"], logits) < 1e-3
            assert largest_error(sets[str(layer)]["pred_keypoints"], keypoints) < 5e-5
        for name in ("encoder", "initial"):
            assert largest_error(sets[name]["logits"], expected[f"train_{name}_logits"]) < 1e-3
            assert largest_error(sets[name]["pred_keypoints"], expected[f"train_{name}_keypoints"]) < 5e-5

        losses = {reference.our_loss_name(name): value for name, value in case.json["losses"].items()}
        assert {name: loss.item() for name, loss in outputs.loss_dict.items()} == pytest.approx(losses, rel=1e-4)
        assert outputs.loss.item() == pytest.approx(case.json["loss"], rel=1e-4)

    def test_gradient_norms(self, case, model):
        self.train_step(case, model).loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.model.named_parameters()}
        expected = case.json["gradient_norms_without_denoising"]
        total = np.sqrt(sum(norm**2 for norm in expected.values()))
        for name, norm in expected.items():
            parts = [gradients[part] for part in case.our_names(name)]
            found = np.sqrt(sum(0.0 if part is None else part.square().sum().item() for part in parts))
            if ".lab." in name:  # scalars, dominated by the noise of float32
                assert abs(found - norm) < 2e-2 * total, name
            else:
                assert found == pytest.approx(norm, rel=2e-2, abs=1e-3), name
        assert all(gradient is not None for gradient in gradients.values())
        trained = {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}
        expected = {part for name, norm in expected.items() for part in case.our_names(name) if norm > 0}
        assert {name for name in trained ^ expected if ".lab." not in name} == set()  # their noise may be zero

    def test_denoising(self, case, model):
        outputs = self.train_step(case, model, case.denoising_queries(model.device))
        sets = dict(zip(model.model.decoder.output_set_names, outputs.denoising_outputs, strict=True))
        for layer, logits in enumerate(case.arrays["dn_logits"]):
            assert largest_error(sets[str(layer)]["logits"], logits) < 1e-3
            assert largest_error(sets[str(layer)]["pred_keypoints"], case.arrays["dn_keypoints"][layer]) < 5e-5
        assert largest_error(sets["initial"]["logits"], case.arrays["dn_initial_logits"]) < 1e-3
        assert largest_error(sets["initial"]["pred_keypoints"], case.arrays["dn_initial_keypoints"]) < 5e-5

        expected = {**case.json["losses"], **case.json["denoising_losses"]}
        losses = {reference.our_loss_name(name): value for name, value in expected.items()}
        assert {name: loss.item() for name, loss in outputs.loss_dict.items()} == pytest.approx(losses, rel=1e-4)

    @staticmethod
    def train_step(case, model, denoising_queries=None):
        """The reference batch in training mode; without denoising unless its queries are given."""
        model.train().zero_grad()
        # Batch norms must not remember the batch, as several tests share the model.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
        model.config.num_denoising = 0 if denoising_queries is None else 20
        images, labels = case.training_batch(model.device)
        return model(images, labels=labels, denoising_queries=denoising_queries)


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @torch.no_grad()
    def test_agrees_with_float32(self, dtype, converted, monkeypatch, device):
        """Poses of the same selected locations; with random weights, near ties may be selected in another order."""
        case = reference.load_case("detrpose-n-crowdpose")
        selections = []
        topk = torch.Tensor.topk

        def recorded(tensor, *args, **kwargs):
            result = topk(tensor, *args, **kwargs)
            if tensor.ndim == 2 and tensor.shape[1] > 1000:  # the query selection's, not Pose-LQE's
                selections.append(result.indices)
                return result if len(selections) == 1 else type(result)((result.values, selections[0]))
            return result

        monkeypatch.setattr(torch.Tensor, "topk", recorded)
        exact = DETRPoseForPoseEstimation.from_pretrained(converted(case.name)).to(device).eval()(case.image(device))
        model = DETRPoseForPoseEstimation.from_pretrained(converted(case.name), dtype=dtype).to(device).eval()
        outputs = model(case.image(device))
        assert len(selections) == 2
        assert outputs.logits.isfinite().all() and outputs.pred_keypoints.isfinite().all()
        common = np.isin(selections[0].cpu().numpy(), selections[1].cpu().numpy())
        assert common.mean() > 0.75
        errors = (outputs.pred_keypoints - exact.pred_keypoints).abs().amax(dim=(2, 3))
        assert (errors.cpu().numpy()[common] < 0.01).mean() >= 0.95

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_folder_loads_in_the_precision_it_was_saved_in(self, dtype, tmp_path):
        DETRPoseForPoseEstimation(tiny_config()).to(dtype).save_pretrained(tmp_path)
        model = DETRPoseForPoseEstimation.from_pretrained(tmp_path, dtype="auto")
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert DETRPoseForPoseEstimation.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


class TestAutocast:
    """Mixed precision, as training uses it: half precision wherever float32 is not needed."""

    @torch.no_grad()
    def test_poses_stay(self, device):
        """The demonstration model's pose of the standing figure moves by less than a pixel at 640x640.

        Not that of the walking one, to its right: its legs cross, and in half precision an ankle is less certain.
        """
        folder = Path(transformers_detrpose.__file__).with_name("demonstration_model")
        model = DETRPoseForPoseEstimation.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        processor = DETRPoseImageProcessor.from_pretrained(folder)
        inputs = processor(images=Image.open(folder / "picture.jpg"), return_tensors="pt").to(device)
        exact = model(**inputs)
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(**inputs)
        figures = exact.pred_keypoints[0, exact.logits.amax(dim=-1)[0].topk(2).indices]
        standing = figures[figures[..., 0].mean(dim=-1).argmin()]
        errors = (outputs.pred_keypoints[0] - standing).abs().amax(dim=(1, 2))
        assert 640 * errors.min() < 1

    @pytest.mark.parametrize("fields", [{}, {"use_fdr_heads": False}, {"use_pose_lqe": False}], ids=str)
    def test_types(self, fields, device):
        config = tiny_config(**fields)
        model = DETRPoseForPoseEstimation(config).to(device).train()
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(torch.rand(2, 3, 64, 64, device=device), labels=make_labels(config, [2, 1], device=device))
        sets = (outputs, *outputs.auxiliary_outputs, *outputs.denoising_outputs)
        assert {x["logits"].dtype for x in sets} == {x["pred_keypoints"].dtype for x in sets} == {torch.float32}
        assert {loss.dtype for loss in outputs.loss_dict.values()} == {torch.float32}
        outputs.loss.backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)

    @torch.no_grad()
    def test_the_backbone_keeps_half_precision(self, device):
        """Frozen norms and affine steps have float32 parameters, which must not turn their results to float32."""
        model, types = DETRPoseForPoseEstimation(tiny_config()).to(device), defaultdict(set)
        for module in model.modules():
            if isinstance(module, (FrozenBatchNorm2d, HGNetV2LearnableAffineBlock)):
                module.register_forward_hook(lambda module, _, output: types[type(module)].add(output.dtype))
        with torch.autocast(device.type, torch.bfloat16):
            feature_maps = model.model.backbone(torch.rand(1, 3, 64, 64, device=device)).feature_maps
        assert list(types.values()) == [{torch.bfloat16}] * 2
        assert {feature_map.dtype for feature_map in feature_maps} == {torch.bfloat16}

    def test_affine_steps_are_trained(self, device):
        """In float32 they compute what transformers' do, bit by bit, and under autocast their gradients agree."""
        ours, theirs = DETRPoseLearnableAffineBlock().to(device), HGNetV2LearnableAffineBlock().to(device)
        for block in (ours, theirs):
            torch.nn.init.constant_(block.scale, 1.3)
            torch.nn.init.constant_(block.bias, -0.7)
        hidden_state = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
        assert torch.equal(ours(hidden_state), theirs(hidden_state))
        theirs(hidden_state).sum().backward()
        with torch.autocast(device.type, torch.bfloat16):
            ours(hidden_state.bfloat16()).sum().backward()
        torch.testing.assert_close(ours.scale.grad, theirs.scale.grad, rtol=2e-2, atol=0)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=2e-2, atol=0)


class TestInputs:
    @pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 64), (160, 32)])
    def test_sizes(self, size, device):
        model = DETRPoseForPoseEstimation(tiny_config()).to(device).eval()
        outputs = model(torch.rand(2, 3, *size, device=device))
        num_locations = sum(size[0] // stride * (size[1] // stride) for stride in (16, 32))
        num_queries = min(7, num_locations)  # a tiny image has fewer locations than queries
        assert outputs.pred_keypoints.shape == (2, num_queries, 3, 2)
        assert outputs.encoder_last_hidden_state.shape == (2, num_locations, 32)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [((3, 64, 64), "batch, channels, height, width"), ((1, 3, 64, 65), "multiples of 32.*64 x 65")],
    )
    def test_bad_images(self, shape, message, device):
        with pytest.raises(ValueError, match=message):
            DETRPoseForPoseEstimation(tiny_config()).to(device)(torch.rand(shape, device=device))

    def test_bad_labels_name_the_image(self, device):
        config = tiny_config()
        labels = make_labels(config, [1, 2], device=device)
        labels[1]["keypoints"] = labels[1]["keypoints"][:, :2]
        message = r"labels\[1\]\['keypoints'\]` must be .* \(2, 3, 3\), but got .* \(2, 2, 3\)"
        with pytest.raises(ValueError, match=message):
            DETRPoseForPoseEstimation(config).to(device)(torch.rand(2, 3, 64, 64, device=device), labels=labels)

    def test_batch_is_independent_of_its_images(self, device):
        model = DETRPoseForPoseEstimation(tiny_config()).to(device).eval()
        images = torch.rand(3, 3, 64, 64, device=device)
        together, alone = model(images), model(images[1:2])
        torch.testing.assert_close(together.pred_keypoints[1:2], alone.pred_keypoints, atol=1e-5, rtol=0)


class TestConfigurations:
    @pytest.mark.parametrize("num_keypoints", [1, 3, 21, 133])
    def test_any_skeleton(self, num_keypoints, device):
        config = tiny_config(num_keypoints, id2label={0: "cat", 1: "dog", 2: "bird"})
        model = DETRPoseForPoseEstimation(config).to(device).train()
        outputs = model(torch.rand(2, 3, 64, 64, device=device), labels=make_labels(config, [2, 1], device=device))
        outputs.loss.backward()
        assert outputs.logits.shape == (2, 7, 3)
        assert outputs.pred_keypoints.shape == (2, 7, num_keypoints, 2)
        processor = DETRPoseImageProcessor(keypoint_schema=config.keypoint_schema)
        poses = processor.post_process_keypoint_detection(outputs, threshold=0.0, target_sizes=[(50, 70)] * 2)
        assert poses[0]["keypoints"].shape == (7, num_keypoints, 2)
        assert ((0 <= poses[0]["keypoint_scores"]) & (poses[0]["keypoint_scores"] <= 1)).all()

    @pytest.mark.parametrize(
        "fields",
        [
            {"use_fdr_heads": False},
            {"use_pose_lqe": False},
            {"use_fdr_heads": False, "use_pose_lqe": False, "classification_loss": "focal", "num_denoising": 0},
            {"classification_loss": "focal"},
            {"decoder_layers": 1},
            {"freeze_backbone_batch_norms": False},
        ],
        ids=str,
    )
    def test_switches(self, fields, device):
        config = tiny_config(**fields)
        model = DETRPoseForPoseEstimation(config).to(device).train()
        outputs = model(torch.rand(2, 3, 64, 64, device=device), labels=make_labels(config, [2, 1], device=device))
        outputs.loss.backward()
        assert outputs.loss.isfinite()
        # The query selection, the initial keypoints, and all layers but the last.
        assert len(outputs.auxiliary_outputs) == config.decoder_layers + config.use_fdr_heads
        assert (outputs.pred_keypoint_std is not None) == config.use_fdr_heads
        assert (outputs.denoising_outputs is not None) == (config.num_denoising > 0)
        assert any("quality_heads" in name for name, _ in model.named_parameters()) == config.use_pose_lqe
        is_frozen = isinstance(model.model.backbone.embedder.stem1.normalization, FrozenBatchNorm2d)
        assert is_frozen == config.freeze_backbone_batch_norms
        model.eval()(torch.rand(1, 3, 64, 64, device=device))

    @pytest.mark.parametrize("counts", [[0, 0], [0, 2]])
    def test_nobody_in_the_picture(self, counts, device):
        config = tiny_config()
        model = DETRPoseForPoseEstimation(config).to(device).train()
        outputs = model(torch.rand(2, 3, 64, 64, device=device), labels=make_labels(config, counts, device=device))
        outputs.loss.backward()
        assert outputs.loss.isfinite()
        assert (outputs.denoising_outputs is not None) == any(counts)
        assert model.model.decoder.class_heads[-1].weight.grad.abs().sum() > 0

    def test_losses_in_evaluation(self, device):
        config = tiny_config()
        model = DETRPoseForPoseEstimation(config).to(device).eval()
        outputs = model(torch.rand(1, 3, 64, 64, device=device), labels=make_labels(config, [2], device=device))
        assert outputs.loss.isfinite() and outputs.denoising_outputs is None
        assert outputs.loss.item() == pytest.approx(sum(loss.item() for loss in outputs.loss_dict.values()), rel=1e-5)


class TestDistributions:
    def test_weighting_function(self):
        """a = 2: bins from -4 to 4, with -2 and 2 next to the ends and 0 in the middle."""
        offsets = weighting_function(DETRPoseConfig(), torch.device("cpu"))
        assert offsets.shape == (33,)
        assert offsets[[0, 1, 16, 31, 32]].tolist() == pytest.approx([-4, -2, 0, 2, 4], abs=1e-5)
        assert offsets[17].item() == pytest.approx(3 ** (2 / 30) - 1, rel=1e-5)
        torch.testing.assert_close(offsets, -offsets.flip(0))

    def test_two_bins(self):
        """Half of the mass at -4 and half at 4: mean 0, standard deviation 4, divided by the regression scale 4."""
        config = DETRPoseConfig()
        logits = torch.full((1, 1, 17, 2, 33), -100.0)
        logits[..., [0, 32]] = 0
        deviations = DETRPoseIntegral(config).deviations(logits.softmax(dim=-1))
        assert deviations.flatten().tolist() == pytest.approx([1.0] * 34)

    def test_on_request(self, device):
        model = DETRPoseForPoseEstimation(tiny_config()).to(device).eval()
        image = torch.rand(1, 3, 64, 64, device=device)
        assert model(image).pred_distributions is None
        outputs = model(image, output_distributions=True)
        assert outputs.pred_distributions.shape == (1, 7, 3, 2, 33)
        torch.testing.assert_close(outputs.pred_distributions.sum(-1), torch.ones(1, 7, 3, 2, device=device))
        offsets = weighting_function(model.config, device)
        mean = outputs.pred_distributions @ offsets
        variance = outputs.pred_distributions @ offsets.square() - mean.square()
        torch.testing.assert_close(outputs.pred_keypoint_std, variance.sqrt() / 4, atol=1e-4, rtol=1e-3)


class TestTraining:
    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing(self, use_reentrant, device):
        config = tiny_config(num_denoising=0)
        model = noisy(DETRPoseForPoseEstimation(config).to(device)).train()
        images, labels = torch.rand(2, 3, 64, 64, device=device), make_labels(config, [2, 1], device=device)

        def gradients():
            model.zero_grad()
            model(images, labels=labels).loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        expected = gradients()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        found = gradients()
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)

    def test_fewer_locations_than_queries(self, device):
        """A 32-pixel image has five locations, and seven queries are configured: denoising still fits."""
        config = tiny_config()
        model = DETRPoseForPoseEstimation(config).to(device).train()
        outputs = model(torch.rand(2, 3, 32, 32, device=device), labels=make_labels(config, [2, 1], device=device))
        outputs.loss.backward()
        assert outputs.loss.isfinite() and outputs.denoising_outputs is not None
        assert outputs.pred_keypoints.shape == (2, 5, 3, 2)

    def test_frozen_norms_stay(self, device):
        config = tiny_config()
        model = DETRPoseForPoseEstimation(config).to(device).train()
        before = {name: value.clone() for name, value in model.model.backbone.named_buffers()}
        assert before
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        labels = make_labels(config, [1, 1], device=device)
        model(torch.rand(2, 3, 64, 64, device=device), labels=labels).loss.backward()
        optimizer.step()
        for name, value in model.model.backbone.named_buffers():
            assert torch.equal(value, before[name]), name


class TestMemory:
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc, as Linux has it")
    def test_of_the_large_model(self):
        """L on one 640x640 image in float32: the whole process uses less than 1.5 GB."""
        script = (
            "import re, torch\n"
            "from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation\n"
            "model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant('l')).eval()\n"
            "with torch.no_grad():\n"
            "    model(torch.rand(1, 3, 640, 640))\n"
            "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert 3e8 < int(result.stdout) * 1024 < 1.5e9


class TestCompile:
    def test_no_graph_break(self, device):
        model = DETRPoseForPoseEstimation(tiny_config()).to(device).eval()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        image = torch.rand(1, 3, 64, 96, device=device)
        with torch.no_grad():
            expected, outputs = model(image), compiled(image)
        torch.testing.assert_close(outputs.pred_keypoints, expected.pred_keypoints)
        torch.testing.assert_close(outputs.logits, expected.logits)


class TestUnscaledImages:
    """Images in 0 to 255 would give poses, but wrong ones."""

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
    def test_integers_are_refused(self, dtype, device):
        model = DETRPoseForPoseEstimation(tiny_config()).to(device).eval()
        with pytest.raises(ValueError, match=f"floating-point numbers from 0 to 1, but got {dtype}"):
            model(torch.zeros(1, 3, 64, 64, dtype=dtype, device=device))

    @pytest.mark.parametrize("scale, warned", [(255, True), (1, False)])
    def test_the_first_batch_is_looked_at(self, scale, warned, caplog, device):
        model = copy.deepcopy(DETRPoseForPoseEstimation(tiny_config()).to(device).eval())
        images = scale * torch.rand(1, 3, 64, 64, device=device)
        for _ in range(2):
            model(pixel_values=images)
        assert sum("expects images scaled to [0, 1]" in record.getMessage() for record in caplog.records) == warned
