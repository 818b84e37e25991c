"""The command that measures training steps, on a tiny model."""

import json

import numpy as np
import pytest
from PIL import Image

from saved_model import save_tiny_model
from transformers_detrpose.commands import benchmark_training
from transformers_detrpose.loading import load_model
from transformers_detrpose.training.benchmarking import make_batch


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def command(model_dir, accelerate_device):
    """Runs the command with the tiny model, briefly."""

    def run(*options):
        options = ["--cpu", *options] if accelerate_device.type == "cpu" else options
        given = ["--model", model_dir, "--size", 64, "--batch-size", 2, "--runs", 3, "--warmup", 1, *options]
        return benchmark_training.main([str(option) for option in given])

    return run


@pytest.fixture
def dataset(tmp_path):
    """Three images of one person each."""
    images, annotations = [], []
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 40, "width": 60})
        person = {"id": index, "image_id": index, "category_id": 1, "iscrowd": 0, "area": 300, "bbox": [10, 10, 30, 20]}
        annotations.append({**person, "keypoints": [10, 10, 2, 40, 30, 2], "num_keypoints": 2})
    categories = [{"id": 1, "name": "bird", "keypoints": ["beak", "tail"], "skeleton": [[1, 2]]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "birds.json").write_text(json.dumps(content))
    return ["--images", tmp_path, "--annotations", tmp_path / "birds.json", "--num-workers", 0]


PARTS = ["forward", "matching and losses", "backward", "optimiser"]


@pytest.mark.parametrize("options", [[], ["--people", 0], ["--mixed-precision", "bf16"], ["--set", "num_queries=5"]])
def test_parts_of_a_step(command, tmp_path, capsys, options):
    assert command("--output", tmp_path / "out.json", *options) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content["milliseconds"]) == ["step", *PARTS]
    assert all(timing["runs"] == 3 and timing["median"] > 0 for timing in content["milliseconds"].values())
    assert content["peak_memory_mib"] > 1 and content["loader_pictures_per_second"] is None
    assert content["pictures_per_second"] == pytest.approx(2000 / content["milliseconds"]["step"]["median"], rel=1e-3)
    printed = capsys.readouterr().out
    assert all(f"|   {part} " in printed for part in PARTS)
    assert "data loader was not measured" in printed


def test_data_loader(command, dataset, tmp_path, capsys):
    assert command(*dataset, "--output", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["loader_pictures_per_second"] > 0
    assert "from the data loader of 0 processes" in capsys.readouterr().out


def test_people_are_labels_that_the_model_takes(model_dir, device):
    model = load_model(str(model_dir)).to(device)
    batch = make_batch(model.config, 2, 64, people=4, seed=0, device=device)
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert [label["keypoints"].shape for label in batch["labels"]] == [(4, 17, 3)] * 2
    assert model.train()(**batch).loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "missing"], "there is no model missing: no such folder"),
        (["--images", "."], "--images and --annotations must be given together"),
        (["--images", ".", "--annotations", "missing.json"], "missing.json"),
        (["--output", "missing/out.json"], "--output missing/out.json must be a file in an existing folder"),
        (["--size", "65"], "multiples of 32"),
        (["--set", "num_queries=-1"], "num_queries"),
        (["--set", "foo=1"], "no field foo"),
    ],
)
def test_mistakes_are_told_in_one_line(command, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert command(*options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "detrpose benchmark-training: error: " in error and message in error


def test_wrong_arguments(command):
    with pytest.raises(SystemExit) as caught:
        command("--batch-size", 0)
    assert caught.value.code == 2
