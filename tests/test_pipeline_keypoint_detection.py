import numpy as np
import pytest
import three_kinds
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from colored_people import SIZE, ColorModel, walk
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseForPoseEstimationOutput,
    DETRPoseImageProcessor,
    KeypointDetectionPipeline,
    KeypointSchema,
)
from transformers_detrpose.pipeline_keypoint_detection import register_pipeline
from transformers_detrpose.video import PoseTracker

TRIANGLE = KeypointSchema(names=("top", "left", "right"))


def tiny_model():
    """A model with only random weights; heads initialized to zero would put all keypoints of a pose in one place."""
    backbone = {
        "model_type": "hgnet_v2",
        "stem_channels": [3, 4, 8],
        "stage_in_channels": [8, 8, 8, 16],
        "stage_mid_channels": [4, 4, 4, 8],
        "stage_out_channels": [8, 8, 16, 16],
        "hidden_sizes": [8, 8, 16, 16],
        "embedding_size": 8,
        "depths": [1, 1, 1, 1],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
        "out_features": ["stage3", "stage4"],
    }
    config = DETRPoseConfig(
        backbone_config=backbone,
        feature_strides=[16, 32],
        keypoint_schema=TRIANGLE,
        d_model=32,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        num_queries=7,
        decoder_layers=1,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        decoder_n_points=2,
    )
    model = DETRPoseForPoseEstimation(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def tiny_processor():
    return DETRPoseImageProcessor(keypoint_schema=TRIANGLE, size={"height": 64, "width": 64})


@pytest.fixture(scope="module")
def pipe(device):
    return pipeline("keypoint-detection", model=tiny_model(), image_processor=tiny_processor(), device=device)


def images(count=3):
    """Images of different sizes, wide and tall."""
    generator = np.random.default_rng(0)
    shapes = [(40 + 30 * index, 90 - 20 * index, 3) for index in range(count)]
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


class PreTrainedModel:
    """transformers 4 recognizes PyTorch models by the name of a base class, which ONNX Runtime's models have, too."""


class KnownModel(PreTrainedModel):
    """Finds seven people with known scores in a bright image and none in a dark one, without rounding errors."""

    device = torch.device("cpu")
    config = DETRPoseConfig(keypoint_schema=TRIANGLE)

    def to(self, device):
        return self

    def __call__(self, pixel_values):
        is_bright = pixel_values.mean(dim=(1, 2, 3)) > 0.5
        person = torch.tensor([4.0, 3.0, 2.0, 1.0, -1.0, -2.0, -3.0])  # scores from 0.98 to 0.05
        logits = torch.where(is_bright[:, None], person, torch.tensor(-9.0))
        return DETRPoseForPoseEstimationOutput(
            logits=torch.stack([torch.full_like(logits, -9.0), logits], dim=-1),
            pred_keypoints=torch.rand(len(logits), 7, 3, 2, generator=torch.Generator().manual_seed(0)),
        )


def known_pipeline(**kwargs):
    return pipeline("keypoint-detection", model=KnownModel(), image_processor=tiny_processor(), device="cpu", **kwargs)


@pytest.fixture(scope="module")
def known_pipe():
    return known_pipeline()


def bright_image():
    return Image.new("RGB", (90, 40), "white")


def dark_image():
    return Image.new("RGB", (50, 70), "black")


def assert_same_poses(actual, expected):
    assert len(actual) == len(expected)
    for pose, reference in zip(actual, expected, strict=True):
        assert pose["label"] == reference["label"]
        assert pose["score"] == pytest.approx(reference["score"], abs=1e-5)
        for keypoint, wanted in zip(pose["keypoints"], reference["keypoints"], strict=True):
            assert keypoint["name"] == wanted["name"]
            assert (keypoint["x"], keypoint["y"]) == pytest.approx((wanted["x"], wanted["y"]), abs=1e-2)


# ---------------------------------------------------------------- results


def test_result_describes_the_poses(pipe):
    image = images()[0]
    result = pipe(image, threshold=0.0)
    assert len(result) == 7
    assert [pose["score"] for pose in result] == sorted((pose["score"] for pose in result), reverse=True)
    for pose in result:
        assert list(pose) == ["score", "label", "box", "keypoints"]
        assert isinstance(pose["score"], float) and pose["label"] in ("N/A", "person")
        assert [keypoint["name"] for keypoint in pose["keypoints"]] == ["top", "left", "right"]
        assert all(isinstance(value, int) for value in pose["box"].values())
        assert all(0 <= keypoint["score"] <= 1 for keypoint in pose["keypoints"])
        xs, ys = ([keypoint[axis] for keypoint in pose["keypoints"]] for axis in "xy")
        assert pose["box"] == {"xmin": int(min(xs)), "ymin": int(min(ys)), "xmax": int(max(xs)), "ymax": int(max(ys))}


def test_same_numbers_as_by_hand(pipe):
    image = images()[2]
    processor = pipe.image_processor
    with torch.no_grad():
        outputs = pipe.model(**processor(image, return_tensors="pt").to(pipe.device))
    poses = processor.post_process_keypoint_detection(outputs, 0.0, target_sizes=[(image.height, image.width)])[0]
    result = pipe(image, threshold=0.0)
    assert [pose["score"] for pose in result] == pytest.approx(poses["scores"].tolist())
    for pose, keypoints, scores in zip(result, poses["keypoints"], poses["keypoint_scores"], strict=True):
        found = torch.tensor([[keypoint["x"], keypoint["y"], keypoint["score"]] for keypoint in pose["keypoints"]])
        torch.testing.assert_close(found, torch.cat([keypoints, scores[:, None]], dim=1).cpu())


def test_threshold_when_calling_and_when_making(known_pipe):
    image = bright_image()
    assert [len(known_pipe(image, threshold=threshold)) for threshold in (0.0, 0.1, 0.9, 1.0)] == [7, 6, 2, 0]
    assert known_pipe(image) == known_pipe(image, threshold=0.5) and len(known_pipe(image)) == 4
    eager = known_pipeline(threshold=0.0)
    assert len(eager(image)) == 7 and len(eager(image, threshold=0.9)) == 2
    with pytest.raises(ValueError, match="`threshold` must lie between 0 and 1"):
        known_pipe(image, threshold=2)


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_lists_and_batches(pipe, batch_size):
    expected = [pipe(image, threshold=0.0) for image in images()]
    results = pipe(images(), threshold=0.0, batch_size=batch_size)
    assert len(results) == 3
    for result, reference in zip(results, expected, strict=True):
        assert_same_poses(result, reference)


def test_batches_of_people_and_nobody(known_pipe):
    pictures = [bright_image(), dark_image(), bright_image(), dark_image()]
    results = known_pipe(pictures, threshold=0.5, batch_size=3)
    assert list(map(len, results)) == [4, 0, 4, 0]
    assert known_pipe(dark_image(), threshold=0.5) == []


def test_generators_and_datasets(pipe):
    class Images(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return images()[index]

    expected = [pipe(image, threshold=0.0) for image in images()]
    for source in ((image for image in images()), Images()):
        results = list(pipe(source, threshold=0.0, batch_size=2))
        assert len(results) == 3
        for result, reference in zip(results, expected, strict=True):
            assert_same_poses(result, reference)


def test_paths(pipe, tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for path, image in zip(paths, images(), strict=True):
        image.save(path)
    for result, image in zip(pipe(paths, threshold=0.0), images(), strict=True):
        assert_same_poses(result, pipe(image, threshold=0.0))
    assert_same_poses(pipe(paths[0], threshold=0.0, timeout=1.0), pipe(images()[0], threshold=0.0))
    with pytest.raises(ValueError, match="missing.png"):
        pipe(str(tmp_path / "missing.png"))


def test_orientation_is_applied(pipe, tmp_path):
    upright, path = images()[0], tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    for source in (str(path), Image.open(path)):
        assert_same_poses(pipe(source, threshold=0.0), pipe(upright, threshold=0.0))


# ---------------------------------------------------------------- models


class OnnxModel(PreTrainedModel):
    """Not a module: has a configuration, takes pixel values, and returns the outputs of an exported model."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device

    def to(self, device):
        return self

    def __call__(self, pixel_values):
        outputs = self.model(pixel_values)
        return DETRPoseForPoseEstimationOutput(logits=outputs.logits, pred_keypoints=outputs.pred_keypoints)


def color_pipeline(**options):
    size = {"height": SIZE, "width": SIZE}
    processor = DETRPoseImageProcessor(size=size, keypoint_schema=ColorModel.config.keypoint_schema)
    return pipeline("keypoint-detection", model=ColorModel(), image_processor=processor, device="cpu", **options)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_tracker_on_an_iterator_of_frames(batch_size):
    """Two people who pass each other keep their numbers, also if frames are predicted in batches."""
    tracker = PoseTracker(ColorModel.config.keypoint_schema, 0.2)
    frames = map(Image.fromarray, walk(14))
    results = list(color_pipeline()(frames, threshold=0.1, tracker=tracker, fps=20, batch_size=batch_size))
    assert len(results) == 14
    numbers = {"red": set(), "green": set()}
    for poses in results[7:]:
        for pose in poses:
            numbers["red" if pose["box"]["ymin"] < 32 else "green"].add(pose["track_id"])
    assert len(numbers["red"]) == len(numbers["green"]) == 1
    assert numbers["red"] | numbers["green"] != {-1} and not numbers["red"] & numbers["green"]
    assert tracker.time == pytest.approx(13 / 20)


def test_tracker_goes_on_in_the_next_call():
    tracker = PoseTracker(ColorModel.config.keypoint_schema, 0.2)
    track = color_pipeline(tracker=tracker, fps=10)
    first, second = (track([Image.fromarray(image) for image in images]) for images in (walk(14)[:7], walk(14)[7:]))
    assert first[-1][0]["track_id"] == second[-1][0]["track_id"] >= 0
    assert tracker.time == pytest.approx(1.3)
    assert "track_id" not in color_pipeline()(Image.fromarray(walk(1)[0]))[0]


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf")])
def test_frame_rates_that_are_none(fps):
    with pytest.raises(ValueError, match="`fps` must be a positive number"):
        color_pipeline(tracker=PoseTracker("coco"), fps=fps)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_model_that_is_no_module_and_has_no_deviations(pipe, batch_size, device):
    onnx = pipeline(
        "keypoint-detection", model=OnnxModel(pipe.model), image_processor=pipe.image_processor, device=device
    )
    for result, image in zip(onnx(images(), threshold=0.0, batch_size=batch_size), images(), strict=True):
        assert_same_poses(result, pipe(image, threshold=0.0))
        assert all(keypoint["score"] == pose["score"] for pose in result for keypoint in pose["keypoints"])


def test_half_precision(pipe, device):
    half = pipeline(
        "keypoint-detection",
        model=tiny_model().to(torch.bfloat16),
        image_processor=pipe.image_processor,
        device=device,
    )
    result = half(images()[0], threshold=0.0)
    assert len(result) == 7 and all(np.isfinite(keypoint["x"]) for pose in result for keypoint in pose["keypoints"])


def test_model_without_keypoints(pipe):
    model = OnnxModel(pipe.model)
    model.config = type("OtherConfig", (), {})()
    with pytest.raises(ValueError, match="needs a model .* `keypoint_schema`, .* got OnnxModel with OtherConfig"):
        KeypointDetectionPipeline(model=model, image_processor=pipe.image_processor, device="cpu")


def test_from_a_folder_and_saved_again(pipe, tmp_path, device):
    image = images()[0]
    expected = pipe(image, threshold=0.0)
    pipe.model.save_pretrained(tmp_path / "first")
    pipe.image_processor.save_pretrained(tmp_path / "first")
    first = pipeline("keypoint-detection", model=str(tmp_path / "first"), device=device)
    assert type(first) is KeypointDetectionPipeline
    assert_same_poses(first(image, threshold=0.0), expected)
    first.save_pretrained(tmp_path / "second")
    second = pipeline("keypoint-detection", model=str(tmp_path / "second"), device=device)
    assert_same_poses(second(image, threshold=0.0), expected)


# ---------------------------------------------------------------- registration


def test_registering_twice_changes_nothing(caplog):
    before = dict(PIPELINE_REGISTRY.supported_tasks)
    logging.enable_propagation()
    register_pipeline()
    logging.disable_propagation()
    assert PIPELINE_REGISTRY.supported_tasks == before
    assert PIPELINE_REGISTRY.check_task("keypoint-detection")[1]["impl"] is KeypointDetectionPipeline
    assert not caplog.records


class ModelOfKinds(KnownModel):
    """Finds a person, a dog and a ball in any image."""

    config = DETRPoseConfig(
        keypoint_schema=three_kinds.SCHEMA, id2label={0: "N/A", 1: "person", 2: "dog", 3: "N/A", 4: "ball"}
    )

    def __call__(self, pixel_values):
        logits = torch.full((len(pixel_values), 3, 5), -9.0)
        for query, label in enumerate((1, 2, 4)):
            logits[:, query, label] = 3.0 - query
        keypoints = torch.rand(len(logits), 3, 23, 2, generator=torch.Generator().manual_seed(0))
        return DETRPoseForPoseEstimationOutput(logits=logits, pred_keypoints=keypoints)


def test_classes_with_different_keypoints():
    processor = DETRPoseImageProcessor(keypoint_schema=three_kinds.SCHEMA, size={"height": 64, "width": 64})
    pipe = pipeline("keypoint-detection", model=ModelOfKinds(), image_processor=processor, device="cpu")
    poses = pipe(bright_image())
    keypoints = ModelOfKinds()(torch.zeros(1, 3, 8, 8)).pred_keypoints[0] * torch.tensor([90, 40])
    assert [pose["label"] for pose in poses] == ["person", "dog", "ball"]
    for query, (pose, label) in enumerate(zip(poses, (1, 2, 4), strict=True)):
        own = three_kinds.SCHEMA.of_class(label)
        assert [keypoint["name"] for keypoint in pose["keypoints"]] == list(own.schema.names)
        for keypoint, index in zip(pose["keypoints"], own.indices, strict=True):
            assert [keypoint["x"], keypoint["y"]] == pytest.approx(keypoints[query, index].tolist(), rel=1e-5)
            assert keypoint["score"] == pytest.approx(pose["score"], abs=1e-6)
