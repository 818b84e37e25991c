"""The report: its files, and data without poses, people, labels or left and right."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_keypoint_metrics import SCHEMA, random_case

from transformers_detrpose import KeypointSchema, unite_schemas
from transformers_detrpose.evaluation import CocoKeypoints, CrowdPoseKeypoints
from transformers_detrpose.evaluation.report import write_report
from transformers_detrpose.pose_arrays import own_mean

NUM_IMAGES = 6
SIZE_WH = (60, 40)
PLOTS = {"poses.png", "keypoints.png", "coverage.png", "precision_recall.png", "errors.png"}


class Page(HTMLParser):
    """The text of a page and the files of its images; checks that tags are closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def case(tmp_path):
    """Annotations and predictions with several categories, with confidences, and a folder of images."""
    content, predictions = random_case(3, num_images=NUM_IMAGES, categories=(1, 2, 7))
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"<{number}> & more.png"
        Image.new("RGB", SIZE_WH, (200, 40 * number, 0)).save(tmp_path / "images" / image["file_name"])
    for found in predictions:
        found["keypoint_scores"] = rng.random((len(found["scores"]), 3))
        found["keypoint_std"] = rng.uniform(1, 9, (len(found["scores"]), 3, 2))
    return content, predictions


def write(folder, content, predictions, metric_class=CocoKeypoints, schema=SCHEMA):
    """Returns the analysis, the page and the numbers."""
    metric = metric_class(content, schema)
    metric.update(range(1, NUM_IMAGES + 1), predictions)
    report = folder / "report"
    analysis = write_report(report, metric, metric.gather(), folder / "images", "a <model> on data", progress=False)
    return analysis, Page(report / "index.html"), json.loads((report / "scores.json").read_text())


@pytest.mark.parametrize("metric_class", [CocoKeypoints, CrowdPoseKeypoints])
def test_files(case, tmp_path, metric_class):
    analysis, page, numbers = write(tmp_path, *case, metric_class)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"index.html", "scores.json", *page.images}
    assert {*page.images} == PLOTS | {f"worst_{number:02d}.jpg" for number in range(1, NUM_IMAGES + 1)}
    with Image.open(tmp_path / "report" / "worst_01.jpg") as picture:
        assert picture.size == (2 * 480 + 8, 320)
    assert "a <model> on data" in page.text and "& more.png" in page.text
    metric = metric_class(case[0], SCHEMA)
    metric.update(range(1, NUM_IMAGES + 1), case[1])
    scores = metric.compute()
    assert 0.05 < scores["AP"] < 0.95
    assert numbers["scores"] == pytest.approx(scores)
    assert f"{100 * scores['AP']:.1f}" in page.text
    assert np.mean(list(numbers["AP_by_OKS"].values())) == pytest.approx(scores["AP"], abs=1e-6)
    assert sum(numbers["keypoints"]["left"]["count"].values()) == analysis.kinds[0].sum() > 0


def test_nothing_found(case, tmp_path):
    content, predictions = case
    nothing = {"scores": [], "labels": [], "keypoints": []}
    analysis, page, numbers = write(tmp_path, content, [nothing] * len(predictions))
    assert numbers["scores"]["AP"] == 0
    assert numbers["pose_calibration_error"] is None
    counted = sum(group.num_people for group in analysis.groups["size"])
    assert {cost["name"]: cost["count"] for cost in numbers["errors"]}["person without a pose"] == counted > 0
    assert "worst_01.jpg" in page.images


def test_nobody_there(case, tmp_path):
    content, predictions = case
    analysis, page, numbers = write(tmp_path, {**content, "annotations": []}, predictions)
    assert numbers["scores"]["AP"] == -1
    assert numbers["errors"][0]["gains"] == {"AP": None, "AP50": None, "AP75": None}
    # Every pose should have a score of 0.
    assert numbers["pose_calibration_error"] == pytest.approx(analysis.matches.scores.mean())
    assert PLOTS <= {*page.images}


def test_without_confidence_in_keypoints(case, tmp_path):
    content, predictions = case
    for found in predictions:
        del found["keypoint_scores"], found["keypoint_std"]
    analysis, page, numbers = write(tmp_path, content, predictions)
    assert analysis.rescored is None and numbers["coverage"] is None
    assert "predicts no distributions" in page.text
    assert PLOTS - {*page.images} == {"keypoints.png", "coverage.png"}


def test_existing_folder(case, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="report exists already"):
        write(tmp_path, *case)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["mine.txt"]


def test_classes_with_different_keypoints(tmp_path, case):
    """Only the keypoints of a class count: the page about two classes is right about each of them."""
    schema = unite_schemas({1: SCHEMA, 2: KeypointSchema(names=("end", "left"))}, {1: "triangle", 2: "stick"})
    (tmp_path / "images").mkdir(exist_ok=True)
    triangle, stick = [[10.0, 10], [50, 10], [30, 35]], [[12.0, 5], [40, 30]]
    categories = [{"id": 1, "name": "triangle"}, {"id": 2, "name": "stick"}]
    images = [
        {"id": number, "file_name": image["file_name"]} for number, image in enumerate(case[0]["images"], start=1)
    ]
    common = {"bbox": [5, 5, 50, 30], "area": 900}
    people = [
        {"id": 1, "image_id": 1, "category_id": 1, "keypoints": [x for p in triangle for x in (*p, 2)], **common},
        {"id": 2, "image_id": 2, "category_id": 2, "keypoints": [x for p in stick for x in (*p, 2)], **common},
    ]
    content = {"images": images, "annotations": people, "categories": categories}
    nothing = {
        "scores": [],
        "labels": [],
        "keypoints": [],
        "keypoint_scores": np.zeros((0, 4)),
        "keypoint_std": np.zeros((0, 4, 2)),
    }
    # The stick's keypoints are the fourth and the first of the union; the others are far from anything.
    far = [900.0, 900.0]
    found = [([*triangle, far], [1, 1, 1, 0], 1), ([stick[1], far, far, stick[0]], [0.5, 0, 0, 0.7], 2)]
    predictions = [
        {
            "scores": [0.9],
            "labels": [label],
            "keypoints": [keypoints],
            "keypoint_scores": [scores],
            "keypoint_std": np.ones((1, 4, 2)),
        }
        for keypoints, scores, label in found
    ] + [nothing] * (NUM_IMAGES - 2)
    analysis, page, numbers = write(tmp_path, content, predictions, schema=schema)
    assert [analysis.scores["AP"], analysis.rescored["AP"]] == pytest.approx([1, 1])
    assert analysis.pose_reliability.mean_outcome == pytest.approx(1)
    assert analysis.kinds.tolist() == [[2, 0, 0, 0, 0], *[[1, 0, 0, 0, 0]] * 3]
    rescored = own_mean(analysis.matches.keypoint_scores, schema.by_label(analysis.matches.labels)[1])
    assert rescored.tolist() == pytest.approx([1, 0.6])
    assert {*page.images} >= PLOTS
