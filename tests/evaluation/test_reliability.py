"""Reliability and coverage: cases computed by hand, and Gaussian errors."""

import numpy as np
import pytest

from transformers_detrpose.evaluation.reliability import area_under_curve, ellipse_coverage, reliability


def test_reliability_by_hand():
    # Two bins: |0.2 + 0.4 - 0 - 1| and |0.5 + 0.7 + 1 - 1 - 0 - 0|, of five scores.
    found = reliability(np.array([0.2, 0.4, 0.5, 0.7, 1.0]), np.array([0.0, 1.0, 1.0, 0.0, 0.0]), num_bins=2)
    assert found.counts.tolist() == [2, 3]
    assert found.scores == pytest.approx([0.3, 2.2 / 3])
    assert found.outcomes == pytest.approx([0.5, 1 / 3])
    assert found.calibration_error == pytest.approx((0.4 + 1.2) / 5)
    assert (found.mean_score, found.mean_outcome) == pytest.approx((2.8 / 5, 2 / 5))


def test_expected_calibration_error_by_hand():
    # Two bins of two: the first claims 0.1 and has 0.3, the second claims 0.9 and has 0.8.
    found = reliability(np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.2, 0.4, 1.0, 0.6]))
    assert found.calibration_error == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)


def test_area_under_curve_by_hand():
    # Of six pairs, four are in order and one is a tie.
    scores = np.array([0.9, 0.4, 0.6, 0.3, 0.4])
    assert area_under_curve(scores, np.array([True, True, False, False, False])) == pytest.approx(4.5 / 6)


def test_area_under_curve_needs_both_kinds():
    assert np.isnan(area_under_curve(np.array([0.1, 0.2]), np.array([True, True])))


def test_reliability_of_perfect_scores():
    scores = np.linspace(0, 1, 101)
    assert reliability(scores, scores).calibration_error == pytest.approx(0)


def test_reliability_of_nothing():
    found = reliability(np.zeros(0), np.zeros(0))
    assert found.counts.tolist() == [0] * 15
    assert np.isnan([*found.scores, *found.outcomes, found.calibration_error, found.mean_score]).all()


def test_coverage_by_hand():
    # The ellipse of half of the mass has a radius of 1.177 standard deviations, that of 90 % one of 2.146.
    errors = np.array([[1.17, 0], [0, 2 * 1.18], [2.14, 0], [0, 2 * 2.15], [-0.8, -1.6]])
    assert ellipse_coverage(errors, np.array([1.0, 2.0])) == pytest.approx([2 / 5, 4 / 5])


def test_coverage_of_gaussian_errors():
    deviations = np.random.default_rng(0).uniform(0.1, 5, (100_000, 2))
    errors = deviations * np.random.default_rng(1).standard_normal(deviations.shape)
    assert ellipse_coverage(errors, deviations, (0.5, 0.9, 0.99)) == pytest.approx([0.5, 0.9, 0.99], abs=0.01)


def test_coverage_without_width_or_keypoints():
    assert ellipse_coverage(np.array([[0.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2))) == [0.5, 0.5]
    assert np.isnan(ellipse_coverage(np.zeros((0, 2)), np.zeros((0, 2)))).all()
