"""`--tiles` of the commands, with the demonstration model and a large picture of figures that are too small for it."""

import json

import pytest

from transformers_detrpose.commands import evaluate, generate_people, predict
from transformers_detrpose.loading import DEMONSTRATION_MODEL

MODEL = ["--model", str(DEMONSTRATION_MODEL)]
TILES = ["--tiles", "192", "--overlap", "0.7"]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "people"
    options = "--train 0 --val 2 --size 480 --width 640 --scattered 110 130 --max-people 4 --workers 1"
    assert generate_people.main(["--output", str(folder), *options.split()]) == 0
    return folder


def average_precision(people, path, *options):
    data = ["--images", str(people / "val"), "--annotations", str(people / "val.json")]
    options = ["--scores", str(path), "--batch-size", "16", "--num-workers", "0", *options]
    assert evaluate.main([*MODEL, *data, *options]) == 0
    return json.loads(path.read_text())["AP"]


def test_evaluation_finds_small_people(people, tmp_path):
    assert average_precision(people, tmp_path / "whole.json") < 0.1
    assert average_precision(people, tmp_path / "tiles.json", *TILES) > 0.4


def test_prediction_finds_small_people(people, tmp_path, device):
    (expected,) = {len(json.loads((people / "val.json").read_text())["annotations"])}
    counts = []
    for options in ([], TILES):
        output = tmp_path / f"out{len(options)}"
        arguments = [*MODEL, "--input", str(people / "val"), "--output", str(output), "--device", str(device)]
        assert predict.main([*arguments, *options]) == 0
        counts.append(len(json.loads((output / "predictions.json").read_text())))
    assert counts[0] < expected / 2 <= counts[1] <= 2 * expected


def test_out_of_range(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--tiles", "192", "--overlap", "1"])
    assert "from 0 to 0.9" in capsys.readouterr().err
