"""Matching, the kinds of errors and their costs: cases computed by hand.

With an area of 5000 and a sigma of 0.05, the similarity of a keypoint is exp(-d² / 100).
"""

import numpy as np
import pytest
from test_keypoint_metrics import FAR, HALF, TRIANGLE, dataset, person, poses

from transformers_detrpose import KeypointSchema
from transformers_detrpose.evaluation import CocoKeypoints
from transformers_detrpose.evaluation.analysis import analyze
from transformers_detrpose.evaluation.keypoint_errors import (
    GOOD,
    INVERSION,
    JITTER,
    MISS,
    NOT_JUDGED,
    SWAP,
    classify_keypoints,
)
from transformers_detrpose.evaluation.matching import match_poses, matched_similarity, pose_similarity

SCHEMA = KeypointSchema(names=("left", "right", "top"), flip_pairs=((0, 1),), sigmas=(0.05, 0.05, 0.1))
LEFT, RIGHT, TOP = TRIANGLE
OTHER = TRIANGLE + [100.0, 0.0]


def moved(*keypoints):
    return np.array(keypoints, dtype=float)


def evaluated(content, *predictions):
    """Returns the metric and its predictions for the images 1, 2, ..."""
    metric = CocoKeypoints(content, SCHEMA)
    metric.update(range(1, len(predictions) + 1), predictions)
    return metric, metric.gather()


def classify(pose, *people):
    """Returns the kinds of the keypoints of one pose of the first person."""
    metric, predictions = evaluated(dataset(*people), poses(pose))
    return classify_keypoints(match_poses(metric, predictions), SCHEMA)[0].tolist()


@pytest.mark.parametrize(
    ("pose", "kinds"),
    [
        (TRIANGLE, [GOOD, GOOD, GOOD]),
        (moved(LEFT + [4.0, 0], RIGHT, TOP), [GOOD, GOOD, GOOD]),  # exp(-0.16) = 0.852
        (moved(LEFT + [4.1, 0], RIGHT, TOP), [JITTER, GOOD, GOOD]),  # exp(-0.1681) = 0.845
        (moved(LEFT + [0, 8.3], RIGHT, TOP), [JITTER, GOOD, GOOD]),  # exp(-0.6889) = 0.502
        (moved(LEFT + [0, 8.4], RIGHT, TOP), [MISS, GOOD, GOOD]),  # exp(-0.7056) = 0.494
        (moved(LEFT, RIGHT, TOP + [0, 16.6]), [GOOD, GOOD, JITTER]),  # exp(-16.6² / 400) = 0.502
        (moved(RIGHT, LEFT, TOP), [INVERSION, INVERSION, GOOD]),
        (moved(RIGHT + [0, 8.3], RIGHT, TOP), [INVERSION, GOOD, GOOD]),
        (moved(RIGHT + [0, 8.4], RIGHT, TOP), [MISS, GOOD, GOOD]),
        (moved(OTHER[0], RIGHT, TOP), [SWAP, GOOD, GOOD]),
        (moved(OTHER[1], RIGHT, TOP), [SWAP, GOOD, GOOD]),  # the other keypoint of the other person
        (moved(OTHER[2], RIGHT, TOP), [MISS, GOOD, GOOD]),  # another part of the other person
        (moved(LEFT, RIGHT, LEFT), [GOOD, GOOD, MISS]),  # another part of the same person
    ],
)
def test_kinds(pose, kinds):
    assert classify(pose, person(TRIANGLE), person(OTHER)) == kinds


def test_unlabeled_keypoints_and_people_alone():
    hidden = person(TRIANGLE, visibility=[2, 0, 1])
    assert classify(moved(OTHER[0], RIGHT, TOP), hidden) == [MISS, NOT_JUDGED, GOOD]
    # The right keypoint, which could be meant, is not labeled.
    assert classify(moved(RIGHT, RIGHT, TOP), hidden, person(OTHER)) == [MISS, NOT_JUDGED, GOOD]
    # Near a keypoint of somebody else that is not labeled, of a crowd, and of somebody in another image.
    others = [person(OTHER, visibility=[0, 2, 2]), person(OTHER, iscrowd=1), person(OTHER, image_id=2)]
    metric, predictions = evaluated(
        dataset(person(TRIANGLE), *others, num_images=2), poses(moved(OTHER[0], RIGHT, TOP)), poses()
    )
    assert classify_keypoints(match_poses(metric, predictions), SCHEMA).tolist() == [[MISS, GOOD, GOOD]]


def test_matching():
    # The first pose takes the person though the second fits better; the third shows nobody; the fourth shows somebody
    # whom the metric ignores.
    first, ignored = moved(LEFT + [10.0, 0], RIGHT, TOP), TRIANGLE + [0, 400.0]
    content = dataset(person(TRIANGLE), person(ignored, num_keypoints=0))
    metric, predictions = evaluated(content, poses(first, TRIANGLE, FAR + TRIANGLE, ignored))
    matches = match_poses(metric, predictions)
    oks = (np.exp(-1) + 2) / 3
    assert matches.person.tolist() == [0, -1, -1, 1]
    assert matches.is_matched.tolist() == [True, False, False, False]
    assert matches.is_background.tolist() == [False, False, True, False]
    assert matches.best_similarity == pytest.approx([oks, 1, 0, 1], abs=1e-6)
    assert matches.ideal_scores == pytest.approx([0, 1, 0, 1], abs=1e-6)
    assert pose_similarity(matches, SCHEMA.sigmas) == pytest.approx([oks, 0, 0, 0], abs=1e-6)
    similarity, known = matched_similarity(matches, SCHEMA.sigmas)
    assert similarity[0] == pytest.approx([np.exp(-1), 1, 1], abs=1e-6)
    assert known.tolist() == [[True] * 3] + [[False] * 3] * 3


def analyze_poses(content, *predictions):
    return analyze(*evaluated(content, *predictions), progress=False)


def gains(analysis, name):
    (found,) = [cost.gains for cost in analysis.costs if cost.name == name]
    return [found["AP"], found["AP50"], found["AP75"]]


class TestCosts:
    def test_jitter(self):
        # OKS (exp(-0.25) + 2) / 3 = 0.926 is below one of ten thresholds.
        analysis = analyze_poses(dataset(person(TRIANGLE)), poses(moved(LEFT + [5.0, 0], RIGHT, TOP)))
        assert gains(analysis, "jitter") == pytest.approx([0.1, 0, 0])
        assert gains(analysis, "miss") == [0, 0, 0]
        assert analysis.kinds.tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
        assert analysis.keypoint_costs == pytest.approx(np.array([[0.1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))

    def test_inversion(self):
        # OKS 1 / 3, and 2 / 3 with either keypoint corrected, which is above four thresholds.
        analysis = analyze_poses(dataset(person(TRIANGLE)), poses(moved(RIGHT, LEFT, TOP)))
        assert gains(analysis, "inversion") == pytest.approx([1, 1, 1])
        assert analysis.keypoint_costs == pytest.approx(np.array([[0, 0.4, 0, 0], [0, 0.4, 0, 0], [0, 0, 0, 0]]))

    def test_swap(self):
        # OKS 2 / 3: above 0.65, only the other person is found, before any mistake.
        pose = moved(OTHER[0], RIGHT, TOP)
        analysis = analyze_poses(dataset(person(TRIANGLE), person(OTHER)), poses(OTHER, pose))
        assert gains(analysis, "swap") == pytest.approx([0.6 * (1 - HALF), 0, 1 - HALF])

    def test_pose_of_nobody(self):
        analysis = analyze_poses(dataset(person(TRIANGLE)), poses(FAR + TRIANGLE, TRIANGLE))
        assert gains(analysis, "pose of nobody") == pytest.approx([0.5, 0.5, 0.5])
        assert (analysis.scores["AP"], analysis.ideal["AP"]) == pytest.approx((0.5, 1))

    def test_person_without_a_pose(self):
        analysis = analyze_poses(dataset(person(TRIANGLE), person(FAR + TRIANGLE)), poses(TRIANGLE))
        assert gains(analysis, "person without a pose") == pytest.approx([1 - HALF] * 3)


class TestConfidence:
    # A pose with one keypoint 3 pixels off, and one of nobody.
    @pytest.fixture
    def analysis(self):
        found = poses(moved(LEFT + [3.0, 0], RIGHT, TOP), FAR + TRIANGLE, scores=[0.8, 0.3])
        found["keypoint_scores"] = np.array([[0.5, 1, 1], [0.9, 1, 1]])
        found["keypoint_std"] = np.array([[[2.0, 5.0], [1.0, 1.0], [1.0, 1.0]]] * 2)
        return analyze_poses(dataset(person(TRIANGLE)), found)

    def test_reliability(self, analysis):
        similarity = np.exp(-0.09)
        assert analysis.keypoint_reliability.calibration_error == pytest.approx((similarity - 0.5) / 3)
        assert analysis.pose_reliability.calibration_error == pytest.approx(((similarity + 2) / 3 - 0.8 + 0.3) / 2)

    def test_coverage(self, analysis):
        # 1.5 standard deviations are outside the ellipse of half of the mass, and inside that of 90 %.
        assert analysis.coverage.of_keypoints == {"left": [0, 1], "right": [1, 1], "top": [1, 1]}
        fractions = dict(zip(analysis.coverage.levels, analysis.coverage.fractions, strict=True))
        assert [fractions[level] for level in (0.5, 0.9)] == pytest.approx([2 / 3, 1])

    def test_rescoring(self, analysis):
        # The pose of nobody has the better keypoint scores.
        assert (analysis.scores["AP"], analysis.rescored["AP"]) == pytest.approx((1, 0.5))

    def test_badness(self, analysis):
        assert analysis.image_costs == pytest.approx({1: 1 - 0.8 * (np.exp(-0.09) + 2) / 3 + 0.3})


def test_worst_images_come_first():
    content = dataset(person(TRIANGLE), person(TRIANGLE, image_id=3), num_images=3)
    analysis = analyze_poses(content, poses(TRIANGLE, scores=[0.9]), poses(TRIANGLE, scores=[0.4]), poses())
    assert list(analysis.image_costs) == [3, 2, 1]
    assert list(analysis.image_costs.values()) == pytest.approx([1, 0.4, 0.1], abs=1e-6)
