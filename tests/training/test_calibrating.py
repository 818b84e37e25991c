"""Fitting a calibration, on hand-made tables and on errors drawn from known distributions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from transformers_detrpose.calibration import calibrate_logits
from transformers_detrpose.data import read_annotations
from transformers_detrpose.training.calibrating import (
    MatchedPoses,
    PoseMatcher,
    area_under_curve,
    assign_in_order,
    calibrated_confidence,
    expected_calibration_error,
    fit_calibration,
    fit_radii,
    lies_in,
    measure,
    uncalibrated_confidence,
)

SIGMAS = torch.tensor([0.03, 0.05, 0.1, 0.05], dtype=torch.float64)
BOX = torch.tensor([0.0, 0.0, 100.0, 200.0], dtype=torch.float64)
FALLOFF = (0.53 * 100 * 200 * (2 * SIGMAS) ** 2).sqrt()
TRUE_LOG_FACTORS = torch.tensor([-1.0, -1.5, -0.5, -1.0], dtype=torch.float64)
TRUE_SLOPE = -0.3


def draw_poses(count, seed, outliers=0.0):
    """Matched poses with errors of known size, and as many unmatched ones with lower scores."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = normal(count)
    deviations = FALLOFF[:, None] * (0.3 * normal(count, 4, 2)).exp()
    true = deviations * (TRUE_LOG_FACTORS + TRUE_SLOPE * logits[:, None]).exp().unsqueeze(-1)
    is_outlier = torch.rand(count, 4, 1, generator=generator) < outliers
    errors = true * normal(count, 4, 2) * torch.where(is_outlier, 10.0, 1.0)
    similarities = (-errors.square().sum(-1) / (2 * FALLOFF**2)).exp()
    is_labelled = torch.rand(count, 4, generator=generator) < 0.8
    is_labelled[:, 3] = False
    is_labelled[:, 0] = True
    matched = (similarities * is_labelled).sum(-1) / is_labelled.sum(-1)
    return MatchedPoses(
        logits=torch.cat([logits, normal(count) - 2]),
        pose_similarities=torch.cat([matched, torch.zeros(count)]),
        matched_logits=logits,
        deviations=deviations,
        boxes=BOX.expand(count, 4),
        errors=errors,
        similarities=similarities,
        is_labelled=is_labelled,
    )


@pytest.fixture(scope="module")
def fitted():
    return fit_calibration(draw_poses(4000, seed=0), SIGMAS)


class TestFit:
    def test_recovers_the_size_of_the_errors(self, fitted):
        torch.testing.assert_close(fitted["log_factors"][:3], TRUE_LOG_FACTORS[:3], atol=0.1, rtol=0)
        assert fitted["log_factor_slope"].item() == pytest.approx(TRUE_SLOPE, abs=0.1)

    def test_a_keypoint_without_labels_gets_the_common_factor(self, fitted):
        assert -1.5 < fitted["log_factors"][3].item() < -0.5

    def test_radii_of_gaussian_errors(self, fitted):
        radii = fit_radii(draw_poses(4000, seed=0), fitted)
        assert radii == pytest.approx([math.sqrt(2 * math.log(2)), math.sqrt(2 * math.log(10))], rel=0.1)

    def test_scores_keep_their_order(self, fitted):
        assert (fitted["score_exponents"] > 0).all()
        logits = torch.linspace(-5, 5, 50, dtype=torch.float64)
        calibrated = calibrate_logits(logits, fitted["score_exponents"], fitted["score_bias"])
        assert (calibrated.diff() > 0).all()

    @pytest.mark.parametrize("outliers", [0.0, 0.1])
    def test_other_poses(self, outliers):
        """Also if errors are not Gaussian: a tenth of them ten times as large."""
        poses = draw_poses(4000, seed=1, outliers=outliers)
        fitted = fit_calibration(poses, SIGMAS)
        others = draw_poses(4000, seed=2, outliers=outliers)
        result = measure(others, *calibrated_confidence(others, fitted), fit_radii(poses, fitted), SIGMAS)
        assert result["keypoint_error"] < 0.05 and result["pose_error"] < 0.05
        assert result["coverage_50"] == pytest.approx(0.5, abs=0.05)
        assert result["coverage_90"] == pytest.approx(0.9, abs=0.05)
        assert result["mean_score"] == pytest.approx(result["mean_similarity"], abs=0.05)

    def test_too_few_poses(self):
        with pytest.raises(ValueError, match="only 20 poses match a person, but a calibration needs 50"):
            fit_calibration(draw_poses(20, seed=0), SIGMAS)


def test_better_scores_choose_first():
    table = torch.tensor([[0.5, 0.6], [0.3, 0.9], [0.2, 0.05], [0.4, 0.4]])
    rows, columns = assign_in_order(table)
    # The first takes column 1, the second what is left of it, column 0; nothing is left for the others.
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_assign(shape):
    rows, columns = assign_in_order(torch.zeros(shape))
    assert len(rows) == len(columns) == 0


def test_too_dissimilar_to_match():
    assert assign_in_order(torch.tensor([[0.09], [0.11]]))[0].tolist() == [1]


def test_lies_in():
    boxes = torch.tensor([[0.0, 0, 10, 10], [8, 8, 18, 18], [50, 50, 60, 60]])
    regions = torch.tensor([[0.0, 0, 20, 9], [50, 50, 55, 54]])
    assert lies_in(boxes, regions).tolist() == [True, False, False]
    assert lies_in(boxes, regions[:0]).tolist() == [False] * 3


def test_expected_calibration_error_by_hand():
    # Two bins of two: the first claims 0.1 and has 0.3, the second claims 0.9 and has 0.8.
    scores = torch.tensor([0.1, 0.1, 0.9, 0.9], dtype=torch.float64)
    similarities = torch.tensor([0.2, 0.4, 1.0, 0.6], dtype=torch.float64)
    assert expected_calibration_error(scores, similarities) == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)


def test_area_under_curve_by_hand():
    # Of six pairs, four are in order and one is a tie.
    scores = torch.tensor([0.9, 0.4, 0.6, 0.3, 0.4])
    assert area_under_curve(scores, torch.tensor([True, True, False, False, False])) == pytest.approx(4.5 / 6)


def test_measures_without_calibration():
    """Every pose is claimed to have a similarity of 0.5, and all errors are 0."""
    poses = draw_poses(100, seed=0)
    poses = replace(
        poses,
        logits=torch.zeros(200),
        pose_similarities=torch.full((200,), 0.75),
        matched_logits=torch.zeros(100),
        errors=torch.zeros(100, 4, 2),
        similarities=torch.ones(100, 4),
        is_labelled=torch.ones(100, 4, dtype=bool),
    )
    result = measure(poses, *uncalibrated_confidence(poses, SIGMAS), (1.0, 2.0), SIGMAS)
    assert result["pose_error"] == pytest.approx(0.25)
    assert result["mean_score"] == pytest.approx(0.5, abs=1e-3)
    assert result["keypoint_error"] == pytest.approx(0.5, abs=1e-3)
    assert result["coverage_50"] == result["coverage_90"] == 1


class TestPoseMatcher:
    """One image with a person of three keypoints, one of them not labelled, and a crowd."""

    PERSON = {"id": 1, "image_id": 7, "category_id": 1, "area": 1000.0, "bbox": [10, 10, 20, 50], "iscrowd": 0}
    PERSON |= {"keypoints": [10, 10, 2, 30, 60, 1, 0, 0, 0], "num_keypoints": 2}
    CROWD = {"id": 2, "image_id": 7, "category_id": 1, "area": 1e4, "bbox": [100, 100, 100, 100], "iscrowd": 1}
    CROWD |= {"keypoints": [0] * 9, "num_keypoints": 0}

    @pytest.fixture
    def matched(self):
        content = {
            "images": [{"id": 7}],
            "categories": [{"id": 1, "name": "person", "keypoints": ["a", "b", "c"]}],
            "annotations": [self.PERSON, self.CROWD],
        }
        matcher = PoseMatcher(read_annotations(content), torch.full((3,), 0.1, dtype=torch.float64))
        close = [[12.0, 10], [30, 61], [25, 25]]
        in_crowd = [[120.0, 120], [150, 190], [130, 130]]
        keypoints = torch.tensor([close, close, in_crowd, close])
        poses = {
            "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
            "labels": torch.tensor([0, 1, 1, 1]),  # the best one has another label
            "keypoints": keypoints,
            "keypoint_std": torch.ones(4, 3, 2),
            "boxes": torch.cat([keypoints.amin(1), keypoints.amax(1)], dim=1),
        }
        matcher.update([7], [poses])
        return matcher.gather()

    def test_matches(self, matched):
        assert matched.matched_logits.tolist() == pytest.approx([math.log(0.8 / 0.2)], abs=1e-5)
        # The pose on the crowd is left out; the other label and the duplicate are similar to nobody.
        assert matched.logits.sigmoid().tolist() == pytest.approx([0.9, 0.8, 0.6], abs=1e-6)
        falloff = 2 * 1000 * (2 * 0.1) ** 2
        similarities = [math.exp(-4 / falloff), math.exp(-1 / falloff)]
        assert matched.pose_similarities.tolist() == pytest.approx([0, np.mean(similarities), 0], abs=1e-4)
        assert matched.similarities[0, :2].tolist() == pytest.approx(similarities)
        assert matched.is_labelled.tolist() == [[True, True, False]]
        assert matched.errors[0, :2].tolist() == [[2, 0], [0, 1]]
