"""The annotation command, end to end on a tiny random model: rows, interruptions, and the COCO dataset."""

import json
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from kills import Kill, Killed
from PIL import Image

from saved_model import NUM_QUERIES, save_tiny_model
from transformers_detrpose.annotation import shards as shards_module
from transformers_detrpose.annotation.preannotation import read_rows, write_coco
from transformers_detrpose.commands import annotate
from transformers_detrpose.data import read_annotations
from transformers_detrpose.prediction.models import Predictor

NUM_IMAGES, SHARD_SIZE = 11, 4
BROKEN = "05.png"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        size = (30 + number, 50, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number:02d}.png")
    (folder / BROKEN).write_text("no image")
    return folder


@pytest.fixture
def command(model_dir, images, tmp_path, device):
    def run(*options, output=tmp_path / "out"):
        options = ["--shard-size", str(SHARD_SIZE), "--threshold", "0", "--device", str(device), *options]
        return annotate.main(["--model", str(model_dir), "--input", str(images), "--output", str(output), *options])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def check_rows(out):
    rows = list(read_rows(out))
    assert [row["id"] for row in rows] == [f"{number:02d}.png" for number in range(NUM_IMAGES)]
    assert [row["id"] for row in rows if row["error"] is not None] == [BROKEN]
    return rows


class TestRows:
    @pytest.mark.parametrize("batch_size", ["1", "3"])
    def test_they_are_what_the_model_says(self, command, model_dir, images, out, device, capsys, batch_size):
        assert command("--batch-size", batch_size) == 0
        printed = capsys.readouterr().out
        assert f"{NUM_IMAGES} of {NUM_IMAGES} images" in printed and "1 images that could not be read" in printed
        predictor = Predictor(str(model_dir), str(device), torch.float32, 0, 0)
        for row in check_rows(out):
            if row["id"] == BROKEN:
                assert row["error"] == "not an image"
                assert row["scores"] is row["keypoints"] is row["width"] is None
                continue
            picture = Image.open(images / row["id"])
            (expected,) = predictor([picture])
            assert (row["width"], row["height"]) == picture.size
            assert row["labels"] == expected["labels"].tolist()
            for name in ("scores", "keypoints", "keypoint_scores", "keypoint_std", "boxes"):
                assert np.array(row[name]) == pytest.approx(expected[name].numpy(), abs=1e-3, rel=1e-4), name

    def test_nobody_is_an_empty_list(self, command, out):
        assert command("--threshold", "1") == 0
        assert [row["scores"] for row in check_rows(out) if row["error"] is None] == [[]] * (NUM_IMAGES - 1)

    def test_datasets_reads_them(self, command, out, tmp_path):
        datasets = pytest.importorskip("datasets")
        assert command() == 0
        rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == NUM_IMAGES and len(rows[0]["keypoints"][0]) == 17


class TestRestart:
    def test_only_what_is_missing_is_done(self, command, out, capsys):
        assert command() == 0
        files = sorted((out / "data").iterdir())
        assert [file.name for file in files] == [
            "0000000000-0000000004.parquet",
            "0000000004-0000000008.parquet",
            "0000000008-0000000011.parquet",
        ]
        before = [file.stat().st_mtime_ns for file in files]
        files[1].unlink()
        assert command() == 0
        assert f"{SHARD_SIZE} of {NUM_IMAGES} images" in capsys.readouterr().out
        after = [file.stat().st_mtime_ns for file in files]
        assert (after[0], after[2]) == (before[0], before[2])
        check_rows(out)

    def test_killed_at_any_instant(self, command, out):
        """Whatever file operation is the last one, the next run completes the folder."""
        for operation in (0, 1, 2, 3, 4, 6, 8, 10, 12, 14):
            with Kill(operation), suppress(Killed):
                command()
            for file in (out / "data").glob("*.parquet"):
                assert pq.read_table(file).num_rows in (SHARD_SIZE, NUM_IMAGES % SHARD_SIZE)
        assert command() == 0
        check_rows(out)

    def test_an_interruption_keeps_complete_files(self, command, out, monkeypatch):
        real, calls = shards_module.whole_file, []

        def interrupted(path):
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(path)

        monkeypatch.setattr(shards_module, "whole_file", interrupted)
        assert command() == 130
        assert len(list((out / "data").iterdir())) == 1
        assert command() == 0
        assert len(calls) == 4
        check_rows(out)

    @pytest.mark.parametrize(
        ("options", "name", "before", "now"),
        [
            (["--threshold", "0.5"], "threshold", "0", "0.5"),
            (["--shard-size", "5"], "shard_size", "4", "5"),
            (["--tiles", "20"], "tiles", "None", "20"),
        ],
    )
    def test_other_settings_are_refused(self, command, out, capsys, options, name, before, now):
        assert command() == 0
        capsys.readouterr()
        assert command(*options) == 1
        message = capsys.readouterr().err
        assert f"was begun with {name} {before}" in message and f"now it is {now}: choose another output" in message

    def test_another_model_or_input_is_refused(self, command, model_dir, images, tmp_path, capsys):
        assert command() == 0
        other_model = save_tiny_model(tmp_path / "other")
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
        for options in (["--model", str(other_model)], ["--input", str(tmp_path / "photos")]):
            capsys.readouterr()
            assert command(*options) == 1
            message = capsys.readouterr().err
            before = model_dir if options[0] == "--model" else images
            assert str(before) in message and options[1] in message


class TestCoco:
    def test_other_readers_accept_it(self, command, tmp_path, images):
        coco = pytest.importorskip("pycocotools.coco")
        path = tmp_path / "poses.json"
        assert command("--coco", str(path)) == 0
        content = read_annotations(path)
        assert content.schema.names[0] == "nose" and content.schema.edges
        assert len(content.images) == NUM_IMAGES - 1
        loaded = coco.COCO(str(path))
        for image in loaded.imgs.values():
            assert Image.open(images / image["file_name"]).size == (image["width"], image["height"])
        assert 0 < len(loaded.anns) <= NUM_QUERIES * (NUM_IMAGES - 1)

    def test_by_hand(self, tmp_path):
        """Three keypoints: sure, unsure, and outside of the image; a second pose is outside altogether; the
        third is of a class with other keypoints."""
        points = [[10.0, 20.0], [30.0, 60.0], [-5.0, 7.0]]
        row = {
            "id": "a/b.jpg",
            "width": 100,
            "height": 80,
            "scores": [0.6, 0.9, 0.8],
            "labels": [1, 1, 2],
            "keypoints": [points, [[200.0, 10.0]] * 3, points],
            "keypoint_scores": [[0.9, 0.1, 0.9], [0.9] * 3, [0.9] * 3],
            "error": None,
        }
        broken = {**row, "id": "c.jpg", "error": "not an image"}
        (tmp_path / "out" / "data").mkdir(parents=True)
        pq.write_table(shards_module.to_table([row, broken]), tmp_path / "out" / "data" / "0-2.parquet")
        schema = {"names": ["a", "b", "c"], "edges": [[0, 1]]}
        schema["classes"] = {"2": {"schema": {"names": ["c", "a"]}, "indices": [2, 0]}}
        settings = {"model": "m", "keypoint_schema": schema, "id2label": {"0": "N/A", "1": "person", "2": "ball"}}
        write_coco(tmp_path / "coco.json", tmp_path / "out", settings, 0.2, 0.7)
        content = json.loads((tmp_path / "coco.json").read_text())
        assert content["images"] == [{"id": 1, "file_name": "a/b.jpg", "width": 100, "height": 80}]
        category, ball = content["categories"]
        assert ball["keypoints"] == ["c", "a"] and ball["id"] == 2
        assert category["keypoints"] == ["a", "b", "c"] and category["skeleton"] == [[1, 2]] and category["id"] == 1
        person, other = content["annotations"]
        assert other["keypoints"] == [0, 0, 0, 10, 20, 2] and other["attributes"] == {"review": False}
        assert person["keypoints"] == [10, 20, 2, 30, 60, 1, 0, 0, 0]
        assert person["num_keypoints"] == 2 and person["bbox"] == [10, 20, 20, 40]
        assert person["area"] == pytest.approx(0.53 * 800)
        assert person["attributes"] == {"review": True} and person["score"] == 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "nowhere"], "nowhere: no such file or folder"),
        (["--model", "nowhere"], "there is no model nowhere"),
        (["--output", "{images}/out"], "lies in the input"),
        (["--coco", "{images}/00.png"], "would be written into the input"),
        (["--coco", "/nowhere/x.json"], "must be a file in an existing folder"),
        (["--device", "teapot"], "--device teapot"),
    ],
)
def test_errors_are_one_line(command, images, out, capsys, options, message):
    before = {path: path.read_bytes() for path in images.iterdir()}
    assert command(*(option.format(images=images) for option in options)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and line.startswith("detrpose annotate: error: ")
    assert not out.exists() and {path: path.read_bytes() for path in images.iterdir()} == before


def test_speed_is_measured_without_writing(command, out, capsys):
    assert command("--measure", "13", "--batch-size", "4") == 0
    line = capsys.readouterr().out
    words = line.replace(",", "").split()
    reading, annotating = float(words[words.index("alone") + 1]), float(words[words.index("annotating") + 1])
    assert line.startswith("13 images:") and min(reading, annotating) > 0
    assert not out.exists()
