"""Precision and recall of parts of the ground truth: pycocotools called directly, and overlaps by hand."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_keypoint_metrics import SCHEMA, TRIANGLE, dataset, person, random_case, results_of

from transformers_detrpose.evaluation import CocoKeypoints
from transformers_detrpose.evaluation.matching import match_poses
from transformers_detrpose.evaluation.precision_recall import (
    by_crowding,
    by_size,
    by_visible_keypoints,
    largest_overlaps,
    precision_recall,
)

COCO_AREAS = [(0.0, 1e10), (32.0**2, 96.0**2), (96.0**2, 1e10)]


@pytest.fixture(scope="module")
def case():
    """Annotations, predictions, the metric, and the metric's copy of the predictions."""
    content, predictions = random_case(3, num_images=25, categories=(1, 2, 7), seed=3)
    metric = CocoKeypoints(content, SCHEMA)
    metric.update(range(1, len(predictions) + 1), predictions)
    return content, predictions, metric, metric.gather()


def run_pycocotools(content, predictions, folder, areas=COCO_AREAS):
    (folder / "truth.json").write_text(json.dumps(content))
    ground_truth = COCO(str(folder / "truth.json"))
    evaluator = COCOeval(
        ground_truth, ground_truth.loadRes(results_of(predictions, folder / "found.json")), "keypoints"
    )
    evaluator.params.kpt_oks_sigmas = np.array(SCHEMA.sigmas)
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [list(area) for area in areas], [str(a) for a in areas]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0]


def mean(values):
    return values[values > -1].mean() if (values > -1).any() else -1


def test_everybody(case, tmp_path):
    content, predictions, metric, poses = case
    precision, recall = run_pycocotools(content, predictions, tmp_path)
    assert 0.1 < mean(precision) < 0.9
    found = precision_recall(metric, poses, areas=COCO_AREAS)
    assert found.precision == pytest.approx(precision, abs=1e-6)
    assert found.recall == pytest.approx(recall, abs=1e-6)
    scores = metric.score(poses)
    for name, threshold, area in (("AP", None, 0), ("AP50", 0.5, 0), ("AP75", 0.75, 0), ("APM", None, 1)):
        assert found.average_precision(threshold, area) == pytest.approx(scores[name], abs=1e-6)
    assert found.average_recall(2) == pytest.approx(scores["ARL"], abs=1e-6)
    assert found.curves()[5].mean() == pytest.approx(scores["AP75"], abs=1e-6)


def test_sizes(case, tmp_path):
    content, predictions, metric, poses = case
    people = match_poses(metric, poses).people
    groups = by_size(metric, poses, people)
    areas = [(0, 32**2), (32**2, 64**2), (64**2, 96**2), (96**2, 128**2), (128**2, 256**2), (256**2, 1e10)]
    precision, recall = run_pycocotools(content, predictions, tmp_path, areas)
    assert [group.average_precision for group in groups] == pytest.approx(
        [mean(precision[..., area]) for area in range(len(areas))], abs=1e-6
    )
    assert [group.average_recall for group in groups] == pytest.approx(
        [mean(recall[..., area]) for area in range(len(areas))], abs=1e-6
    )
    assert sum(group.num_people for group in groups) == people.is_counted.sum() > 20


def test_visible_keypoints(case, tmp_path):
    content, predictions, metric, poses = case
    groups = by_visible_keypoints(metric, poses, match_poses(metric, poses).people)
    assert [group.name for group in groups] == ["0", "1", "2", "3"]
    for number, group in enumerate(groups):
        # pycocotools ignores people with 0 keypoints.
        people = [
            person if (np.array(person["keypoints"][2::3]) == 2).sum() == number else {**person, "num_keypoints": 0}
            for person in content["annotations"]
        ]
        precision, recall = run_pycocotools({**content, "annotations": people}, predictions, tmp_path)
        assert group.average_precision == pytest.approx(mean(precision[..., 0]), abs=1e-6)
        assert group.average_recall == pytest.approx(mean(recall[..., 0]), abs=1e-6)


def test_overlaps():
    # Boxes of 40 x 50: half of it shifted by 20, a third overlaps; the crowd and the other image do not count.
    shifted = TRIANGLE + [20, 0]
    content = dataset(
        person(TRIANGLE),
        person(shifted),
        person(TRIANGLE + 1000),
        person(TRIANGLE, iscrowd=1),
        person(TRIANGLE, image_id=2),
        num_images=2,
    )
    metric = CocoKeypoints(content, SCHEMA)
    metric.update([1, 2], [{"scores": [], "labels": [], "keypoints": []}] * 2)
    people = match_poses(metric, metric.gather()).people
    assert largest_overlaps(people) == pytest.approx([1 / 3, 1 / 3, 0, 0, 0])
    assert [group.num_people for group in by_crowding(metric, metric.gather(), people)] == [2, 0, 2, 0]
