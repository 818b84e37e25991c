"""The evaluation command, end to end on a tiny random model and images made here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_modeling_detrpose import tiny_config
from torch._utils import ExceptionWrapper

from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands import evaluate
from transformers_detrpose.evaluation import CocoKeypoints, CrowdPoseKeypoints
from transformers_detrpose.loading import first_line

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate.py"
NUM_IMAGES = 5
SIZES_WH = [(60, 40), (50, 50), (40, 60), (64, 30), (33, 47)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("model")
    model = DETRPoseForPoseEstimation(tiny_config(num_queries=30)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as initialized, it returns the same pose many times in every image
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    processor = DETRPoseImageProcessor(size={"height": 64, "width": 64}, keypoint_schema=model.config.keypoint_schema)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictions(model_dir, images):
    """The model's poses in each image, one at a time and not fused."""
    model = DETRPoseForPoseEstimation.from_pretrained(model_dir).eval()
    processor = DETRPoseImageProcessor.from_pretrained(model_dir)
    found = []
    for path in sorted(images.iterdir()):
        image = Image.open(path)
        with torch.no_grad():
            outputs = model(**processor(images=image, return_tensors="pt"))
        sizes = [(image.height, image.width)]
        found += processor.post_process_keypoint_detection(outputs, threshold=0, target_sizes=sizes)
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES_WH):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def content(predictions):
    """Annotations that match one of the model's poses in each image, its 1st, 3rd, 5th, ... best."""
    people = []
    for number, found in enumerate(predictions):
        best = found["keypoints"][found["labels"] == 1][2 * number]
        triples = torch.cat([best, torch.full((3, 1), 2.0)], dim=1)
        people.append(
            {
                "id": number + 1,
                "image_id": 10 + number,
                "category_id": 1,
                "keypoints": triples.flatten().tolist(),
                "bbox": [0, 0, 10, 10],
                "area": 30.0,
                "iscrowd": 0,
                "num_keypoints": 3,
            }
        )
    return {
        "images": [
            {
                "id": 10 + number,
                "file_name": f"{number}.png",
                "width": width,
                "height": height,
                "crowdIndex": number / 5,
            }
            for number, (width, height) in enumerate(SIZES_WH)
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": ["a", "b", "c"]}],
        "annotations": people,
    }


@pytest.fixture
def command(model_dir, images, content, tmp_path):
    """Returns the command line for some annotations and options, which replace the usual ones."""

    def arguments(content=content, **options):
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        usual = {"model": model_dir, "images": images, "annotations": path, "batch_size": 2, "num_workers": 0}
        return [
            str(text) for name, value in {**usual, **options}.items() for text in (f"--{name.replace('_', '-')}", value)
        ]

    return arguments


def read_table(text):
    names, scores = text.splitlines()[-2:]
    return dict(zip(names.split(), scores.split(), strict=True))


def percent(scores):
    return {name: f"{100 * score:.1f}" if score >= 0 else "-" for name, score in scores.items()}


def read_results(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("metric", "metric_class"), [("coco", CocoKeypoints), ("crowdpose", CrowdPoseKeypoints)])
def test_table(command, model_dir, content, predictions, capsys, tmp_path, metric, metric_class):
    expected = metric_class(content, DETRPoseForPoseEstimation.from_pretrained(model_dir).config.keypoint_schema)
    expected.update([10, 11, 12, 13, 14], predictions)
    scores = expected.compute()
    assert 0.05 < scores["AP"] < 0.99
    assert evaluate.main(command(metric=metric, scores=tmp_path / "scores.json")) == 0
    output = capsys.readouterr().out
    assert "5 images" in output
    assert read_table(output) == percent(scores)
    assert json.loads((tmp_path / "scores.json").read_text()) == pytest.approx(scores, abs=1e-6)


def test_results(command, predictions, tmp_path):
    assert evaluate.main(command(results=tmp_path / "results.json")) == 0
    records = read_results(tmp_path / "results.json")
    for image_id, found in zip(range(10, 15), predictions, strict=True):
        people = found["labels"] == 1
        mine = [record for record in records if record["image_id"] == image_id]
        assert len(mine) == min(int(people.sum()), 20)
        assert [record["score"] for record in mine] == pytest.approx(found["scores"][people][:20].tolist(), abs=1e-4)
        keypoints = np.array([record["keypoints"] for record in mine]).reshape(-1, 3, 3)
        assert keypoints[..., :2] == pytest.approx(found["keypoints"][people][:20].numpy(), abs=0.02)
        assert keypoints[..., 2] == pytest.approx(found["keypoint_scores"][people][:20].numpy(), abs=0.02)
        assert {record["category_id"] for record in mine} == {1}


def test_set_without_annotations(command, content, tmp_path, capsys):
    # COCO's files of test sets list all 80 categories, without their keypoints.
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    test_set = {"images": content["images"], "categories": categories}
    assert evaluate.main(command(test_set, results=tmp_path / "results.json")) == 0
    assert {record["image_id"] for record in read_results(tmp_path / "results.json")} == {10, 11, 12, 13, 14}
    assert "AP" not in capsys.readouterr().out


def test_options(command, accelerate_device, tmp_path, capsys):
    options = {"max_images": 2, "dtype": "bfloat16", "results": tmp_path / "results.json"}
    assert evaluate.main(command(**options)) == 0
    assert {record["image_id"] for record in read_results(tmp_path / "results.json")} == {10, 11}
    assert "2 images" in capsys.readouterr().out


def test_report(command, tmp_path, capsys):
    report = tmp_path / "report"
    assert evaluate.main(command(report=report, scores=tmp_path / "scores.json")) == 0
    assert f"report written to {report / 'index.html'}" in capsys.readouterr().out
    numbers = json.loads((report / "scores.json").read_text())
    assert numbers["scores"] == json.loads((tmp_path / "scores.json").read_text())
    assert numbers["keypoint_calibration_error"] > 0
    assert numbers["coverage"].keys() == {"0.50", "0.90"}
    assert {"index.html", "worst_01.jpg", "coverage.png"} <= {path.name for path in report.iterdir()}


def test_two_processes(command, tmp_path, capsys):
    # An odd number of images in batches of one, so that one image comes twice. The script is run as users do, beside
    # which nothing may import the library `evaluate`. (On the CPU, `accelerate launch` starts a single process.)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(batch_size=1)
    two = subprocess.run(
        [*launcher, SCRIPT, *arguments, "--results", tmp_path / "two.json"], capture_output=True, text=True
    )
    assert two.returncode == 0, two.stderr
    assert evaluate.main([*arguments, "--results", str(tmp_path / "one.json")]) == 0
    one = capsys.readouterr()
    assert read_table(two.stdout) == read_table(one.out)
    assert two.stdout.count("AP50") == 1
    assert "3/3" in two.stderr and "5/5" in one.err  # batches of the first process
    records = [read_results(tmp_path / name) for name in ("two.json", "one.json")]
    for record, expected in zip(*records, strict=True):
        assert record["image_id"] == expected["image_id"]
        assert record["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert record["keypoints"] == pytest.approx(expected["keypoints"], abs=0.02)


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--help"])
    assert stopped.value.code == 0
    assert "(default: float32)" in capsys.readouterr().out


class TestErrors:
    @pytest.fixture
    def error(self, command, capsys):
        """Runs the command, which must fail, and returns its error line."""

        def run(*args, **options):
            assert evaluate.main(command(*args, **options)) == 1
            captured = capsys.readouterr()
            lines = [line for line in captured.err.splitlines() if "error" in line]
            assert len(lines) == 1
            assert "Traceback" not in captured.err
            return lines[0]

        return run

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": "missing"}, "there is no model missing: no such folder"),
            ({"images": "missing"}, "--images missing: no such folder"),
            ({"annotations": "missing.json"}, "missing.json"),
            ({"results": "missing/results.json"}, "--results missing/results.json must be a file in an existing"),
            ({"results": "."}, "--results . must be a file"),
            ({"scores": "missing/scores.json"}, "--scores missing/scores.json must be a file in an existing"),
            ({"report": Path(__file__).parent}, "exists already"),
            ({"report": __file__}, "exists already"),
            ({"report": Path(__file__) / "report"}, "is a file"),
            ({"report": "new", "scores": "new"}, "--report new must be a folder of its own, without new"),
            ({"content": "{"}, "not a JSON file"),
            ({"content": '{"images": []}'}, "`categories`"),
            ({"content": '{"images": [], "categories": []}'}, "lists no images"),
        ],
    )
    def test_inputs(self, error, options, message):
        assert message in error(**options)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("images", 1, "file_name"), "missing.png", "no file missing.png for image 11"),
            (("images", 1, "width"), 70, "should have the height and width (50, 70), but upright it has (50, 50)"),
            (("annotations", 1, "keypoints"), [0] * 51, "annotation 2 of image 11"),
            (("annotations",), [], "give --results"),
            (("categories", 0, "id"), 7, "categories [7], but the model's labels are {0: 'N/A', 1: 'person'}"),
        ],
    )
    def test_annotations(self, error, content, path, value, message):
        content = json.loads(json.dumps(content))
        *parents, key = path
        entry = content
        for parent in parents:
            entry = entry[parent]
        if key == "annotations":
            del entry[key]
        else:
            entry[key] = value
        for person in content.get("annotations", ()):
            person["category_id"] = content["categories"][0]["id"]
        assert message in error(content)

    def test_report_of_a_set_without_annotations(self, error, content, tmp_path):
        test_set = {key: content[key] for key in ("images", "categories")}
        line = error(test_set, results=tmp_path / "results.json", report=tmp_path / "report")
        assert "has no annotations, which --report needs" in line

    def test_report_around_another_output(self, error, tmp_path):
        (tmp_path / "report").mkdir()
        line = error(report=tmp_path / "report", results=tmp_path / "report" / "results.json")
        assert "must be a folder of its own" in line

    def test_broken_image(self, error, content, tmp_path):
        (tmp_path / "0.png").write_bytes(b"not an image")
        line = error(
            {**content, "images": content["images"][:1], "annotations": content["annotations"][:1]}, images=tmp_path
        )
        assert "cannot read image 10 (0.png): cannot identify" in line

    def test_error_in_a_process_of_the_data_loader(self):
        try:
            raise ValueError("cannot read image a.png: no such file")
        except ValueError:
            wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
        with pytest.raises(ValueError) as raised:
            wrapper.reraise()
        assert first_line(raised.value) == "cannot read image a.png: no such file"
