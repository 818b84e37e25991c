"""The report: its files, and data without poses, people, labels or left and right."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_keypoint_metrics import SCHEMA, random_case

from transformers_detrpose.evaluation import CocoKeypoints, CrowdPoseKeypoints
from transformers_detrpose.evaluation.report import write_report

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
