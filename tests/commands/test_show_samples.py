"""The command that draws samples."""

import json

import pytest
from PIL import Image

from transformers_detrpose.commands import show_samples
from transformers_detrpose.data import train_dataloader
from transformers_detrpose.training import Recipe


@pytest.fixture
def command():
    return show_samples.main


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "images").mkdir()
    images = [{"id": index, "file_name": f"{index}.png", "width": 80, "height": 60} for index in range(5)]
    for image in images:
        Image.new("RGB", (80, 60)).save(tmp_path / "images" / image["file_name"])
    person = {"id": 1, "image_id": 0, "category_id": 1, "keypoints": [20, 20, 2, 60, 20, 1, 0, 0, 0]}
    person |= {"bbox": [10, 10, 60, 20], "area": 600}
    category = {"id": 1, "name": "person", "keypoints": ["left_eye", "right_eye", "nose"], "skeleton": [[1, 2]]}
    content = {"images": images, "annotations": [person], "categories": [category]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return ["--images", str(tmp_path / "images"), "--annotations", str(tmp_path / "annotations.json")]


def test_samples_are_drawn(command, paths, tmp_path, capsys):
    options = ["--output", str(tmp_path / "out"), "--num", "3", "--epoch", "11", "--num-epochs", "12", "--size", "96"]
    assert command(paths + options) == 0
    pictures = sorted((tmp_path / "out").glob("0*.jpg"))
    assert [picture.name[:4] for picture in pictures] == ["0000", "0001", "0002"]
    assert all(Image.open(picture).size == (96, 96) for picture in pictures)
    assert Image.open(tmp_path / "out" / "overview.jpg").size == (640, 640)
    assert "3 samples written to" in capsys.readouterr().out


def test_samples_are_those_of_a_training_with_the_same_options(command, paths, tmp_path, monkeypatch):
    phases = []

    def remember(*args, **kwargs):
        phases.extend(kwargs["phases"])
        return train_dataloader(*args, **kwargs)

    monkeypatch.setattr(show_samples, "train_dataloader", remember)
    options = ["--output", str(tmp_path / "out"), "--num", "4", "--epoch", "2", "--num-epochs", "12", "--size", "96"]
    assert command([*paths, *options, "--mixup", "0.25", "--copy-paste", "0.5"]) == 0
    assert tuple(phases) == Recipe(12, 1e-4, mixup=0.25, copy_paste=0.5).phases()


def test_sides_and_hidden_points_are_told_apart(command, paths, tmp_path):
    options = ["--output", str(tmp_path / "out"), "--num", "5", "--epoch", "11", "--num-epochs", "12", "--size", "320"]
    assert command(paths + options) == 0
    (picture,) = (tmp_path / "out").glob("*_0.jpg")
    left, right = (Image.open(picture).getpixel((x, 107)) for x in (80, 240))
    assert left[0] > 200 and left[1] < 100  # red, filled
    assert right[1] < 200 or right[0] > 100  # not visible: the center is not green


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epoch", "52"], "--epoch must be from 0 to 51"),
        (["--images", "nowhere"], "nowhere does not exist"),
        (["--mixup", "1", "--copy-paste", "0.5"], "their sum must be at most 1, but got 1.0 and 0.5"),
    ],
)
def test_mistakes_are_told_in_one_line(command, paths, tmp_path, capsys, options, message):
    assert command([*paths, "--output", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_every_problem_of_the_annotations_is_shown(command, paths, tmp_path, capsys):
    file = tmp_path / "annotations.json"
    content = json.loads(file.read_text())
    content["annotations"] = [{**content["annotations"][0], "id": number, "area": "large"} for number in range(12)]
    file.write_text(json.dumps(content))
    assert command([*paths, "--output", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"detrpose show-samples: error: {file}: annotation 0 of image 0: `area` must be")
    assert len(lines) == 11 and lines[-1] == "... and 2 more problems."
    assert not (tmp_path / "out").exists()


def test_every_problem_of_the_images_is_shown(command, paths, tmp_path, capsys):
    (tmp_path / "images" / "3.png").unlink()
    assert command([*paths, "--output", str(tmp_path / "out")]) == 1
    assert "image files that do not exist: 1 (image 3 (3.png))" in capsys.readouterr().err


def test_nothing_is_overwritten(command, paths, tmp_path, capsys):
    assert command([*paths, "--output", str(tmp_path / "images")]) == 1
    assert "images exists already" in capsys.readouterr().err
    assert len(list((tmp_path / "images").iterdir())) == 5
