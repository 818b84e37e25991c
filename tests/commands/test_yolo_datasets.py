"""The commands on a YOLO pose dataset, end to end with a tiny model."""

import json
import re

import pytest
import yaml
from PIL import Image

from transformers_detrpose import KeypointSchema
from transformers_detrpose.commands import benchmark_training, calibrate, evaluate, predict, show_samples, train
from transformers_detrpose.loading import load_config
from yolo_folder import LINE, YoloFolder

SCHEMA = {"names": ["beak", "left_wing", "right_wing"], "edges": [[0, 1], [0, 2]], "sigmas": [0.03, 0.08, 0.08]}


@pytest.fixture(scope="module")
def yolo(tmp_path_factory):
    yolo = YoloFolder(tmp_path_factory.mktemp("birds"), test="images/test")
    for split in ("train", "val", "test"):
        for name in "abcd":
            yolo.add(f"{split}/{name}.png", LINE)
        yolo.add(f"{split}/empty.png")
    yolo.file  # noqa: B018 - writes it
    (yolo.path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    return yolo


@pytest.fixture(scope="module")
def trained(yolo, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "output"
    sizes = ["--size", "64", "--epochs", "1", "--batch-size", "2", "--num-workers", "0", "--warmup-steps", "1"]
    fields = ["d_model=32", "decoder_layers=2", "num_queries=5", "encoder_ffn_dim=16", "decoder_ffn_dim=16"]
    data = ["--train-data", str(yolo.file), "--schema", str(yolo.path / "schema.yaml"), "--output", str(output)]
    assert train.main(["--model", "n", "--unfreeze-backbone-norms", *data, *sizes, "--set", *fields]) == 0
    return output


def test_the_trained_model(trained):
    config = load_config(str(trained / "last"))
    assert config.keypoint_schema == KeypointSchema(**SCHEMA, flip_pairs=((1, 2),))
    assert config.id2label == {0: "bird"}
    (line,) = (json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 2 and 0 <= line["AP"] <= 1
    assert "1 epochs on data.yaml" in (trained / "last" / "README.md").read_text()


def test_resume(yolo, trained, tmp_path, capsys):
    """Another schema would be another training."""
    line = ["--model", "n", "--train-data", str(yolo.file), "--output", str(trained), "--resume", "--size", "64"]
    line += ["--unfreeze-backbone-norms", "--batch-size", "2", "--epochs", "2", "--num-workers", "0"]
    fields = ["d_model=32", "decoder_layers=2", "num_queries=5", "encoder_ffn_dim=16", "decoder_ffn_dim=16"]
    assert train.main([*line, "--set", *fields]) == 1
    assert "--schema was schema.yaml and is None now" in capsys.readouterr().err


def test_evaluation(yolo, trained, tmp_path, capsys):
    common = ["--model", str(trained / "last"), "--annotations", str(yolo.file), "--num-workers", "0"]
    results = tmp_path / "results.json"
    options = ["--results", str(results), "--report", str(tmp_path / "report"), "--split", "test"]
    assert evaluate.main([*common, *options]) == 0
    assert "on 5 images of" in capsys.readouterr().out
    assert {record["image_id"] for record in json.loads(results.read_text())} == {1, 2, 3, 4, 5}
    assert (tmp_path / "report" / "index.html").is_file()
    # With a huge sigma, whatever is near is right.
    (tmp_path / "lenient.json").write_text(json.dumps({"sigmas": [100, 100, 100]}))
    options = ["--schema", str(tmp_path / "lenient.json"), "--scores", str(tmp_path / "scores.json")]
    assert evaluate.main([*common, *options]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["AR"] == 1


def test_evaluation_overwrites_nothing(yolo, trained, capsys):
    image = yolo.path / "images" / "val" / "a.png"
    line = ["--model", str(trained / "last"), "--annotations", str(yolo.file), "--num-workers", "0"]
    assert evaluate.main([*line, "--results", str(image)]) == 1
    assert "would overwrite an input" in capsys.readouterr().err
    assert Image.open(image).size == (100, 50)


def test_calibration(trained, tmp_path, capsys):
    yolo = YoloFolder(tmp_path, test="images/val")
    for number in range(60):  # a calibration needs 50 people
        yolo.add(f"val/{number}.png", LINE)
    (tmp_path / "sigmas.json").write_text(json.dumps({"sigmas": [1, 2, 2]}))
    line = ["--model", str(trained / "last"), "--annotations", str(yolo.file), "--num-workers", "0", "--device", "cpu"]
    line += ["--val-annotations", str(yolo.file), "--output", str(tmp_path / "out")]
    assert calibrate.main([*line, "--schema", str(tmp_path / "sigmas.json")]) == 0
    assert "in the images of --val-annotations" in capsys.readouterr().out
    config = load_config(str(tmp_path / "out"))
    assert config.use_calibration and config.keypoint_schema.sigmas == (1, 2, 2)


def test_samples(yolo, tmp_path, capsys):
    line = ["--annotations", str(yolo.file), "--output", str(tmp_path / "out"), "--size", "64", "--num", "2"]
    assert show_samples.main([*line, "--schema", str(yolo.path / "schema.yaml")]) == 0
    assert "2 samples written" in capsys.readouterr().out and (tmp_path / "out" / "overview.jpg").is_file()


def test_prediction_with_the_ids_of_the_dataset(yolo, trained, tmp_path):
    images = yolo.path / "images" / "val"
    line = ["--model", str(trained / "last"), "--input", str(images), "--output", str(tmp_path), "--threshold", "0"]
    assert predict.main([*line, "--annotations", str(yolo.file)]) == 0
    records = json.loads((tmp_path / "predictions.json").read_text())
    assert {record["image_id"] for record in records} == {1, 2, 3, 4, 5}


def test_the_loader_is_measured(yolo, capsys):
    line = ["--model", "n", "--size", "64", "--batch-size", "1", "--annotations", str(yolo.file), "--num-workers", "0"]
    assert benchmark_training.main([*line, "--runs", "1", "--warmup", "0", "--cpu", "--people", "1"]) == 0
    assert "from the data loader" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--train-images", "x"], "--train-data says where all images are, so it cannot be given with --train-images"),
        (["--val-annotations", "x"], "so it cannot be given with --val-annotations"),
    ],
)
def test_data_are_given_once(yolo, options, message, capsys):
    with pytest.raises(SystemExit):
        train.main(["--model", "n", "--output", "out", "--train-data", str(yolo.file), *options])
    assert message in capsys.readouterr().err


def test_data_are_needed(capsys):
    with pytest.raises(SystemExit):
        train.main(["--model", "n", "--output", "out", "--train-annotations", "x"])
    assert "the following arguments are required: --val-annotations, or --train-data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--images is needed, as .*a.json does not say where its images are"),
        (["--annotations", "data.yaml", "--images", "."], "its images are in .*, so no other folder can be given"),
        (["--annotations", "data.yaml", "--split", "lost"], "invalid choice"),
        (["--annotations", "data.yaml", "--schema", "coco"], "--schema coco has 17 keypoints, but the model 3"),
    ],
)
def test_mistakes(yolo, trained, options, message, capsys, monkeypatch):
    monkeypatch.chdir(yolo.path)
    category = {"id": 0, "name": "bird", "keypoints": SCHEMA["names"]}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [category], "annotations": []}
    (yolo.path / "a.json").write_text(json.dumps(content))
    line = ["--model", str(trained / "last"), "--annotations", "a.json", *options]
    try:
        assert evaluate.main(line) == 1
    except SystemExit as exit:  # of argparse
        assert exit.code == 2
    assert re.search(message, capsys.readouterr().err)
