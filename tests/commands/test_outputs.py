"""No command writes over one of its inputs."""

import importlib
import json
import os

import pytest
from PIL import Image

import detrpose_cli
from saved_model import save_tiny_model
from transformers_detrpose.keypoint_schemas import COCO_PERSON


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def inputs(model, tmp_path, monkeypatch):
    """A folder of every kind of input, which becomes the current one; `link` leads to it."""
    for name in ("images", "onnx", "people"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "1.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "benchmark.png")
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "onnx" / "model.onnx").write_text("a graph")
    (tmp_path / "people" / "train.json").write_text("{}")
    images = [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_PERSON.names)}]
    content = {"images": images, "categories": categories, "annotations": []}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVALUATE = "evaluate --model model --images images --annotations annotations.json"
SAMPLES = "show-samples --images images --annotations annotations.json"
TRAIN = "train --model n --train-images images --train-annotations annotations.json --val-images images"
TRAIN += " --val-annotations annotations.json"


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
@pytest.mark.parametrize(
    "line",
    [
        # files
        f"{EVALUATE} --results annotations.json",
        f"{EVALUATE} --scores annotations.json",
        f"{EVALUATE} --results link/annotations.json",  # by another path
        f"{EVALUATE} --results images/1.png",
        f"{EVALUATE} --results model/config.json",
        f"{EVALUATE} --results new.json --scores link/new.json",  # one would replace the other
        "predict --model model --input images/1.png --output link/images",
        "predict --model model --input images --output images",
        "benchmark --model model --images images/benchmark.png --output link/images",
        "benchmark-training --model model --images images --annotations annotations.json --output annotations.json",
        "benchmark-training --model model --output model/model.safetensors",
        "build-tensorrt --onnx onnx/model.onnx --output link/onnx/model.onnx --unverified",
        # folders, which must be new or empty
        "convert --variant n --checkpoint model --output link/model",
        "convert-dfine --variant n --checkpoint model --output model",
        "export onnx --model model link/model",
        "quantize --onnx onnx --images images --output link/onnx",
        "quantize --onnx onnx --images images --output images",
        "generate-people --output people --train 1 --val 0 --workers 1",
        f"{SAMPLES} --output images",
        f"{TRAIN} --output link/images",
    ],
)
def test_outputs_that_are_inputs(inputs, capsys, line):
    name, *arguments = line.split()
    before = {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()}
    module = importlib.import_module(f"transformers_detrpose.commands.{detrpose_cli.COMMANDS[name][0]}")
    assert module.main(arguments) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert any(words in message for words in ("overwrite", "exists already", "the same file", "not empty"))
    assert {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()} == before
