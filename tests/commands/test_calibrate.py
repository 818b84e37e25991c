"""The calibration command, end to end on a tiny random model whose own poses, a little moved, are the truth."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tiny import noisy, tiny_config, tiny_ecpose_config
from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands import calibrate, train
from transformers_detrpose.configuration_detrpose import GAUSSIAN_RADII
from transformers_detrpose.data import CocoPoseDataset
from transformers_detrpose.loading import load_image_processor, load_model

NUM_IMAGES = 4


@pytest.fixture(scope="module", params=[tiny_config, tiny_ecpose_config], ids=["detrpose", "ecpose"])
def folder(request, tmp_path_factory):
    """A folder with a model in half precision, images, and annotations for them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("calibrate")
    model = noisy(DETRPoseForPoseEstimation(request.param(num_queries=20, id2label={0: "person"})).eval())
    processor = DETRPoseImageProcessor.for_model(model.config, size={"height": 64, "width": 64})
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    people, images = [], []
    for number in range(NUM_IMAGES):
        picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        picture.save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        with torch.no_grad():
            outputs = model(**processor(images=picture, return_tensors="pt"))
        poses = processor.post_process_keypoint_detection(outputs, 0, [(64, 64)])[0]
        for points in poses["keypoints"].numpy():
            points = points + rng.normal(0, 0.5, points.shape)
            triples = np.concatenate([points, np.full((3, 1), 2.0)], axis=1)
            person = {"id": len(people) + 1, "image_id": number, "category_id": 0, "iscrowd": 0, "num_keypoints": 3}
            people.append(person | {"keypoints": triples.ravel().tolist(), "bbox": [0, 0, 60, 60], "area": 2000.0})
    category = {"id": 0, "name": "person", "keypoints": ["a", "b", "c"]}
    content = {"images": images, "categories": [category], "annotations": people}
    (folder / "people.json").write_text(json.dumps(content))
    (folder / "few.json").write_text(json.dumps({**content, "annotations": people[:3]}))
    (folder / "test.json").write_text(json.dumps({"images": images, "categories": [category]}))
    model.half().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "model" / "README.md").write_text("A model.")
    return folder


def arguments(folder, output, **options):
    usual = {"model": folder / "model", "images": folder / "images", "annotations": folder / "people.json"}
    options = {**usual, "output": output, "num_workers": 0, "device": "cpu", **options}
    return [str(text) for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def calibrated(folder):
    assert calibrate.main(arguments(folder, folder / "calibrated")) == 0
    return folder / "calibrated"


def test_the_folder_has_a_calibrated_model(folder, calibrated):
    model = load_model(str(calibrated))
    assert model.config.use_calibration and 0 < model.config.ellipse_radii[0] < model.config.ellipse_radii[1]
    assert model.calibration.log_factors.abs().sum() > 0
    assert not load_image_processor(str(calibrated)).do_scale_deviations
    assert (calibrated / "README.md").read_text() == "A model."
    before, after = (load_file(path / "model.safetensors") for path in (folder / "model", calibrated))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())  # the network is the same
    assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.float16}


def test_a_calibrated_model_is_calibrated_anew(folder, calibrated, tmp_path, capsys):
    val = {"val_images": folder / "images", "val_annotations": folder / "people.json"}
    assert calibrate.main(arguments(folder, tmp_path / "again", model=calibrated, **val)) == 0
    first, second = (load_model(str(path)).calibration.state_dict() for path in (calibrated, tmp_path / "again"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-2, rtol=1e-2)
    text = capsys.readouterr().out
    assert "images of --annotations" in text and "people found in the images of --val-annotations" in text
    assert text.count("calibration error of keypoint scores") == 2


def test_training_starts_without_calibration(folder, calibrated):
    options = argparse.Namespace(model=str(calibrated), set={}, unfreeze_backbone_norms=False)
    model = train.get_model(options, CocoPoseDataset(folder / "images", folder / "people.json"))
    assert not model.config.use_calibration and model.config.ellipse_radii == list(GAUSSIAN_RADII)
    assert not [name for name in model.state_dict() if name.startswith("calibration")]


class TestVisibility:
    @pytest.fixture
    def annotations(self, folder):
        """The people, three times, with every third keypoint occluded and every sixth not labeled."""
        content = json.loads((folder / "people.json").read_text())
        for index, person in enumerate(content["annotations"]):
            person["keypoints"][2::3] = [2, 1, 2 * (index % 2)]
        content["images"] = [{**image, "id": image["id"] + n} for n in (0, 100, 200) for image in content["images"]]
        people = content["annotations"]
        content["annotations"] = [
            {**person, "id": person["id"] + 1000 * n, "image_id": person["image_id"] + n}
            for n in (0, 100, 200)
            for person in people
        ]
        (folder / "visibility.json").write_text(json.dumps(content))
        return folder / "visibility.json"

    @pytest.mark.parametrize("is_absent", [False, True])
    def test_fits_a_head(self, folder, annotations, tmp_path, capsys, is_absent):
        flags = ["--visibility"] + is_absent * ["--predict-absent-keypoints"]
        assert calibrate.main([*arguments(folder, tmp_path / "out", annotations=annotations), *flags]) == 0
        model = load_model(str(tmp_path / "out"))
        assert model.config.use_visibility_head and model.config.predict_absent_keypoints == is_absent
        assert model.config.use_calibration and model.visibility_head.mlp.layers[-1].weight.abs().sum() > 0
        before, after = (load_file(path / "model.safetensors") for path in (folder / "model", tmp_path / "out"))
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.float16}
        text = capsys.readouterr().out
        assert "part with the most frequent one" in text and "area under curve, visible" in text

    def test_is_kept_by_a_calibration_without_it_and_replaced_by_one_with_it(self, folder, annotations, tmp_path):
        first, second, third = (tmp_path / name for name in ("first", "second", "third"))
        flags = ["--visibility", "--predict-absent-keypoints"]
        assert calibrate.main([*arguments(folder, first, annotations=annotations), *flags]) == 0
        assert calibrate.main(arguments(folder, second, model=first, annotations=annotations)) == 0
        assert calibrate.main([*arguments(folder, third, model=first, annotations=annotations), "--visibility"]) == 0
        heads = [load_model(str(path)).visibility_head.state_dict() for path in (first, second)]
        assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
        assert not load_model(str(third)).config.predict_absent_keypoints

    def test_errors(self, folder, tmp_path, capsys):
        assert calibrate.main([*arguments(folder, tmp_path / "out"), "--visibility"]) == 1
        assert "more than one kind" in capsys.readouterr().err  # all keypoints are visible
        assert calibrate.main([*arguments(folder, tmp_path / "out"), "--predict-absent-keypoints"]) == 1
        assert "must be given together with --visibility" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "missing"}, "there is no model missing"),
        ({"images": "missing"}, "--images missing: no such folder"),
        ({"annotations": "missing.json"}, "missing.json"),
        ({"annotations": "test.json"}, "test.json has no annotations"),
        ({"annotations": "few.json"}, "poses match a person, but a calibration needs 50"),
        ({"output": "images"}, "exists already"),
        ({"val_images": "images"}, "--val-images and --val-annotations must be given together"),
        ({"device": "nonsense"}, "cannot use --device nonsense"),
    ],
)
def test_errors(folder, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    assert calibrate.main(arguments(folder, **{"output": tmp_path / "out", **options})) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()
