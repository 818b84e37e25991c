"""The visibility head inside the model: what it predicts, its loss, and that it goes wherever the model goes."""

import copy
import json
import math

import pytest
import three_kinds
import torch
from PIL import Image
from transformers import pipeline

from tiny import make_labels, noisy, tiny_config
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseForPoseEstimationOutput,
    DETRPoseImageProcessor,
)
from transformers_detrpose.deployment import DETRPoseGraph, ORTDETRPoseForPoseEstimation, export_onnx
from transformers_detrpose.evaluation.coco_results import coco_records
from transformers_detrpose.keypoint_schemas import VISIBILITIES
from transformers_detrpose.loading import load_config, load_model
from transformers_detrpose.loss_detrpose import visibility_loss
from transformers_detrpose.model_card import model_card
from transformers_detrpose.pose_targets import IGNORED, pad_targets, visibility_targets
from transformers_detrpose.video import PoseTracker

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[100, 200], [300, 150]])


def make_model(device="cpu", **fields):
    torch.manual_seed(0)
    fields = {"use_visibility_head": True, "predict_absent_keypoints": True, **fields}
    model = noisy(DETRPoseForPoseEstimation(tiny_config(**fields)).eval())
    noisy(model.visibility_head, scale=0.5)  # for different answers
    return model.to(device)


@pytest.fixture(scope="module")
def model(device):
    return make_model(device)


@pytest.fixture(scope="module")
def outputs(model):
    with torch.no_grad():
        return model(IMAGES.to(model.device))


@pytest.fixture
def processor(model):
    return DETRPoseImageProcessor(keypoint_schema=model.config.keypoint_schema, size={"height": 64, "width": 64})


class TestOutputs:
    def test_shape_and_type(self, outputs):
        assert outputs.pred_visibility.shape == (2, 7, 3, 3) and outputs.pred_visibility.dtype == torch.float32
        assert len(outputs.pred_visibility.argmax(-1).unique()) > 1  # otherwise most tests here would prove nothing

    def test_a_keypoint_is_never_absent_unless_asked(self, device):
        with torch.no_grad():
            outputs = make_model(device, predict_absent_keypoints=False)(IMAGES.to(device))
        probabilities = outputs.pred_visibility.softmax(-1)
        assert outputs.pred_visibility.shape[-1] == 3 and (probabilities[..., 0] < 1e-30).all()
        torch.testing.assert_close(probabilities[..., 1:].sum(-1), torch.ones(2, 7, 3, device=device))

    def test_a_model_without_the_head_is_as_before(self, model, outputs):
        plain = DETRPoseForPoseEstimation(tiny_config()).eval()
        names = [name for name in model.state_dict() if not name.startswith("visibility_head")]
        assert list(plain.state_dict()) == names
        plain.load_state_dict({name: model.state_dict()[name].cpu() for name in names})
        with torch.no_grad():
            found = plain.to(model.device)(IMAGES.to(model.device))
        assert "pred_visibility" not in found and list(found) == [key for key in outputs if key != "pred_visibility"]
        for name in ("logits", "pred_keypoints", "pred_keypoint_std"):
            torch.testing.assert_close(found[name], outputs[name])
        assert "keypoint_visibility" not in DETRPoseGraph(plain, post_process=True).output_names

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, model, outputs, dtype):
        half = make_model(model.device).to(dtype)
        with torch.no_grad():
            found = half.visibility_head.classify(outputs.last_hidden_state[:, :, 1:].to(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, outputs.pred_visibility, atol=0.05, rtol=0.05)

    def test_absent_without_the_head(self):
        with pytest.raises(ValueError, match="predict_absent_keypoints"):
            tiny_config(predict_absent_keypoints=True)


class TestLoss:
    def targets(self, **fields):
        config = tiny_config(num_keypoints=3, use_visibility_head=True, **fields)
        labels = make_labels(config, [1])
        labels[0]["keypoints"][0, :, 2] = torch.tensor([0.0, 1.0, 2.0])
        return config, pad_targets(labels).at(torch.tensor([[-1, 0]]))

    def test_targets(self):
        config, matched = self.targets()
        assert visibility_targets(matched, config).tolist() == [[[IGNORED] * 3, [IGNORED, 1, 2]]]
        config, matched = self.targets(predict_absent_keypoints=True)
        assert visibility_targets(matched, config).tolist() == [[[IGNORED] * 3, [0, 1, 2]]]

    @pytest.mark.parametrize(("is_learnt", "kinds"), [(True, 3), (False, 2)])
    def test_by_hand(self, is_learnt, kinds):
        """Equal logits cost log 3 for each keypoint with a label; one of 2 for the right class of the last, less."""
        config, matched = self.targets(predict_absent_keypoints=is_learnt)
        logits = torch.zeros(1, 2, 3, 3)
        logits[0, 1, 2, 2] = 2
        expected = ((kinds - 1) * math.log(3) + math.log(2 + math.exp(2)) - 2) / 3
        assert visibility_loss(logits, matched, config).item() == pytest.approx(expected, abs=1e-6)

    def test_keypoints_that_a_class_lacks_are_not_absent(self):
        fields = {"use_visibility_head": True, "predict_absent_keypoints": True, "id2label": id2label()}
        config = DETRPoseConfig.from_variant("n", skeleton=three_kinds.SCHEMA, **fields)
        labels = make_labels(config, [1])
        labels[0]["class_labels"][0] = three_kinds.BALL
        own = list(config.keypoint_schema.of_class(three_kinds.BALL).indices)
        values = visibility_targets(pad_targets(labels), config)[0, 0]
        assert values[own].tolist() == [2] and (values == IGNORED).sum() == config.num_keypoints - 1

    def test_trains_the_head_on_the_last_layer(self, device):
        model = make_model(device).train()
        labels = make_labels(model.config, [2, 1], device=device)
        output = model(IMAGES.to(device), labels=labels)
        assert [name for name in output.loss_dict if "visibility" in name] == ["loss_visibility"]
        output.loss_dict["loss_visibility"].backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.visibility_head.parameters())

    def test_weight(self, device):
        losses = []
        for weight in (1.0, 3.0):
            model = make_model(device, weight_loss_visibility=weight)
            with torch.no_grad():
                output = model(IMAGES.to(device), labels=make_labels(model.config, [2, 1], device=device))
            losses.append(output.loss_dict["loss_visibility"].item())
        assert losses[0] > 0 and losses[1] == pytest.approx(3 * losses[0], rel=1e-4)

    def test_without_people(self, device):
        model = make_model(device).train()
        output = model(IMAGES.to(device), labels=make_labels(model.config, [0, 0], device=device))
        output.loss.backward()
        assert output.loss_dict["loss_visibility"].item() == 0
        assert all(parameter.grad is not None for parameter in model.visibility_head.parameters())


def id2label():
    return {index: three_kinds.NAMES.get(index, f"no {index}") for index in range(max(three_kinds.NAMES) + 1)}


class TestPostProcessing:
    def test_values_go_with_their_pose(self, processor):
        """Two queries; the second is the better pose."""
        logits = torch.full((1, 2, 2), -5.0)
        logits[0, :, 1] = torch.tensor([0.0, 1.0])
        visibility = torch.zeros(1, 2, 3, 3)
        visibility[0, 0, :, 1] = 1  # all occluded
        visibility[0, 1] = torch.eye(3)
        outputs = DETRPoseForPoseEstimationOutput(
            logits=logits, pred_keypoints=torch.rand(1, 2, 3, 2), pred_visibility=visibility
        )
        poses = processor.post_process_keypoint_detection(outputs, 0.3, [(10, 10)])[0]
        assert poses["keypoint_visibility"].dtype == torch.int64
        assert poses["keypoint_visibility"].tolist() == [[0, 1, 2], [1, 1, 1]]
        listed = processor.post_process_pose_estimation(outputs, threshold=0.3, target_sizes=[(10, 10)])[0]
        assert [pose["keypoint_visibility"].tolist() for pose in listed] == [[0, 1, 2], [1, 1, 1]]
        assert processor.post_process_keypoint_detection(outputs, 1.0)[0]["keypoint_visibility"].shape == (0, 3)

    def test_wrong_shape(self, processor, outputs):
        outputs = DETRPoseForPoseEstimationOutput(**{**outputs, "pred_visibility": outputs.pred_visibility[..., :2]})
        with pytest.raises(ValueError, match="`pred_visibility` must have the shape"):
            processor.post_process_keypoint_detection(outputs)

    def test_classes_with_keypoints_of_their_own(self):
        schema = three_kinds.SCHEMA
        own = list(schema.of_class(three_kinds.BALL).indices)
        logits = torch.full((1, 1, len(id2label())), -5.0)
        logits[..., three_kinds.BALL] = 3
        visibility = torch.zeros(1, 1, schema.num_keypoints, 3)
        visibility[..., 2] = 1
        outputs = DETRPoseForPoseEstimationOutput(
            logits=logits, pred_keypoints=torch.rand(1, 1, schema.num_keypoints, 2), pred_visibility=visibility
        )
        processor = DETRPoseImageProcessor(keypoint_schema=schema)
        poses = processor.post_process_keypoint_detection(outputs, target_sizes=[(10, 10)])[0]
        values = poses["keypoint_visibility"][0]
        assert values[own].tolist() == [2] and values.sum() == 2
        listed = processor.post_process_pose_estimation(outputs, threshold=0.5, target_sizes=[(10, 10)])[0]
        assert listed[0]["keypoint_visibility"].tolist() == [2]
        assert coco_records(poses, schema=schema)[0]["keypoint_visibility"] == [2]

    def test_records_are_json(self, processor, outputs):
        poses = processor.post_process_keypoint_detection(outputs, 0.0, SIZES)[0]
        records = json.loads(json.dumps(coco_records(poses)))
        assert [record["keypoint_visibility"] for record in records] == poses["keypoint_visibility"].tolist()

    def test_tracks_keep_it(self, processor, outputs):
        poses = processor.post_process_keypoint_detection(outputs, 0.0, SIZES)[0]
        tracked = PoseTracker(processor.keypoint_schema).update(poses, 0.0)
        assert tracked["keypoint_visibility"].shape == (len(tracked["scores"]), 3)

    def test_pipeline(self, model, processor):
        pipe = pipeline("keypoint-detection", model=model, image_processor=processor, device=model.device)
        picture = Image.fromarray((IMAGES[0] * 255).byte().permute(1, 2, 0).numpy())
        found = pipe(picture, threshold=0.0)
        with torch.no_grad():
            outputs = model(**processor(images=picture, return_tensors="pt").to(model.device))
        poses = processor.post_process_keypoint_detection(outputs, 0.0, [(64, 64)])[0]
        names = [[VISIBILITIES[value] for value in values] for values in poses["keypoint_visibility"].tolist()]
        assert [[keypoint["visibility"] for keypoint in pose["keypoints"]] for pose in found] == names


class TestDeployment:
    @pytest.mark.parametrize("target", ["pytorch", "onnxruntime", "tensorrt"])
    def test_fused(self, model, outputs, target):
        with torch.no_grad():
            found = model.fuse(target)(IMAGES.to(model.device))
        torch.testing.assert_close(found.pred_visibility, outputs.pred_visibility, atol=1e-4, rtol=1e-4)

    def test_graph_with_poses(self, model, outputs, processor):
        expected = processor.post_process_keypoint_detection(outputs, 0.0, SIZES)
        graph = DETRPoseGraph(model, post_process=True)
        assert graph.output_names[-1] == "keypoint_visibility"
        with torch.no_grad():
            found = graph(IMAGES.to(model.device), SIZES.to(model.device))
        for index, poses in enumerate(expected):
            assert torch.equal(found["keypoint_visibility"][index], poses["keypoint_visibility"])

    @pytest.mark.parametrize("variant", ["default", "poses"])
    def test_exported(self, model, processor, tmp_path, variant):
        """The export itself compares the graph with the model on noise."""
        pytest.importorskip("onnxruntime")
        model, post_process = copy.deepcopy(model).cpu(), variant == "poses"
        export_onnx(model, processor, tmp_path / "onnx", variant)
        runtime = ORTDETRPoseForPoseEstimation.from_pretrained(tmp_path / "onnx")
        with torch.no_grad():
            expected = DETRPoseGraph(model, post_process=post_process)(IMAGES, SIZES)
        found = runtime(IMAGES, target_sizes=SIZES) if post_process else runtime(IMAGES)
        name = "keypoint_visibility" if post_process else "pred_visibility"
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_saved_and_loaded(self, model, outputs, tmp_path, dtype):
        model.save_pretrained(tmp_path)
        loaded = load_model(str(tmp_path), dtype=dtype)
        assert loaded.config.use_visibility_head and loaded.config.predict_absent_keypoints
        assert loaded.visibility_head.mlp.layers[0].weight.dtype == dtype
        if dtype == torch.float32:
            with torch.no_grad():
                found = loaded.eval().to(model.device)(IMAGES.to(model.device))
            torch.testing.assert_close(found.pred_visibility, outputs.pred_visibility, atol=1e-4, rtol=1e-4)

    def test_new_head_of_an_old_model(self, tmp_path):
        """It is initialized to predict nothing, and the rest is loaded."""
        DETRPoseForPoseEstimation(tiny_config()).save_pretrained(tmp_path)
        loaded = load_model(str(tmp_path), load_config(str(tmp_path), use_visibility_head=True)).eval()
        with torch.no_grad():
            assert loaded(IMAGES).pred_visibility[..., 1:].abs().max() == 0

    def test_model_card(self, model):
        card = model_card(model.config, "name", "From here.")
        assert "`keypoint_visibility` does: absent (0), occluded (1), visible (2)." in card
        config = tiny_config(use_visibility_head=True)
        assert "`keypoint_visibility` does: occluded (1), visible (2)." in model_card(config, "name", "From here.")
        assert "keypoint_visibility" not in model_card(tiny_config(), "name", "From here.")
