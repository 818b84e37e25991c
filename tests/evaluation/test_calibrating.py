"""Fitting a calibration, on hand-made tables and on errors drawn from known distributions."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from transformers_detrpose.calibration import calibrate_logits
from transformers_detrpose.evaluation import CocoKeypoints
from transformers_detrpose.evaluation.calibrating import (
    Observations,
    PoseTokens,
    calibrated_confidence,
    fit_calibration,
    fit_radii,
    measure,
    observe,
    uncalibrated_confidence,
)
from transformers_detrpose.evaluation.matching import match_poses
from transformers_detrpose.keypoint_schemas import KeypointSchema, unite_schemas

SIGMAS = torch.tensor([0.03, 0.05, 0.1, 0.05], dtype=torch.float64)
BOX = torch.tensor([0.0, 0.0, 100.0, 200.0], dtype=torch.float64)
FALLOFF = (0.53 * 100 * 200 * (2 * SIGMAS) ** 2).sqrt()
TRUE_LOG_FACTORS = torch.tensor([-1.0, -1.5, -0.5, -1.0], dtype=torch.float64)
TRUE_SLOPE = -0.3
TRUE_WEIGHTS = torch.tensor([0.5, 0.0, -0.2], dtype=torch.float64)


def draw_poses(count, seed, outliers=0.0):
    """Matched poses with errors of known size, and as many unmatched ones with lower scores."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = normal(count)
    deviations = FALLOFF[:, None] * (0.3 * normal(count, 4, 2)).exp()
    tokens = normal(count, 4, 3)
    log_factors = TRUE_LOG_FACTORS + TRUE_SLOPE * logits[:, None] + tokens @ TRUE_WEIGHTS
    true = deviations * log_factors.exp().unsqueeze(-1)
    is_outlier = torch.rand(count, 4, 1, generator=generator) < outliers
    errors = true * normal(count, 4, 2) * torch.where(is_outlier, 10.0, 1.0)
    similarities = (-errors.square().sum(-1) / (2 * FALLOFF**2)).exp()
    is_labelled = torch.rand(count, 4, generator=generator) < 0.8
    is_labelled[:, 3] = False
    is_labelled[:, 0] = True
    matched = (similarities * is_labelled).sum(-1) / is_labelled.sum(-1)
    return Observations(
        logits=torch.cat([logits, normal(count) - 2]),
        pose_similarities=torch.cat([matched, torch.zeros(count)]),
        matched_logits=logits,
        deviations=deviations,
        boxes=BOX.expand(count, 4),
        errors=errors,
        similarities=similarities,
        visibility=2 * is_labelled,
        sigmas=SIGMAS.expand(count, 4),
        is_own=torch.ones(count, 4, dtype=bool),
        tokens=tokens,
    )


@pytest.fixture(scope="module")
def fitted():
    return fit_calibration(draw_poses(4000, seed=0))


class TestFit:
    def test_recovers_the_size_of_the_errors(self, fitted):
        torch.testing.assert_close(fitted["log_factors"][:3], TRUE_LOG_FACTORS[:3], atol=0.1, rtol=0)
        assert fitted["log_factor_slope"].item() == pytest.approx(TRUE_SLOPE, abs=0.1)
        torch.testing.assert_close(fitted["log_factor_weights"], TRUE_WEIGHTS, atol=0.1, rtol=0)

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
        fitted = fit_calibration(poses)
        others = draw_poses(4000, seed=2, outliers=outliers)
        result = measure(others, *calibrated_confidence(others, fitted), fit_radii(poses, fitted))
        assert result["keypoint_error"] < 0.05 and result["pose_error"] < 0.05
        assert result["coverage_50"] == pytest.approx(0.5, abs=0.05)
        assert result["coverage_90"] == pytest.approx(0.9, abs=0.05)
        assert result["mean_score"] == pytest.approx(result["mean_similarity"], abs=0.05)

    def test_too_few_poses(self):
        with pytest.raises(ValueError, match="only 20 poses match a person, but a calibration needs 50"):
            fit_calibration(draw_poses(20, seed=0))


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
        visibility=torch.ones(100, 4),
    )
    result = measure(poses, *uncalibrated_confidence(poses), (1.0, 2.0))
    assert result["pose_error"] == pytest.approx(0.25)
    assert result["mean_score"] == pytest.approx(0.5, abs=1e-3)
    assert result["keypoint_error"] == pytest.approx(0.5, abs=1e-3)
    assert result["coverage_50"] == result["coverage_90"] == 1


def test_tokens_in_the_order_of_the_poses():
    """Two images of three queries with one label, of which the second image lacks the pose with a score of 0."""
    logits = torch.tensor([[[0.0], [2], [1]], [[3], [-1000], [4]]])
    tokens = torch.arange(2 * 3 * 3.0).view(2, 3, 3, 1)  # of the pose and two keypoints
    collected = PoseTokens()
    outputs = SimpleNamespace(logits=logits, last_hidden_state=tokens)
    collected.observe({"labels": [{"image_id": torch.tensor(9)}, {"image_id": torch.tensor(2)}]}, outputs)
    found = collected.gather({9: {"scores": [0.9, 0.7, 0.5]}, 2: {"scores": [0.98, 0.95]}})
    expected = [tokens[1, 2], tokens[1, 0], tokens[0, 1], tokens[0, 2], tokens[0, 0]]
    assert torch.equal(found.float(), torch.stack(expected)[:, 1:])


class TestObserve:
    """One image with a person of three keypoints, one of them not labelled, and a crowd."""

    PERSON = {"id": 1, "image_id": 7, "category_id": 1, "area": 1000.0, "bbox": [10, 10, 20, 50], "iscrowd": 0}
    PERSON |= {"keypoints": [10, 10, 2, 30, 60, 1, 0, 0, 0], "num_keypoints": 2}
    CROWD = {"id": 2, "image_id": 7, "category_id": 1, "area": 1e4, "bbox": [300, 300, 100, 100], "iscrowd": 1}
    CROWD |= {"keypoints": [0] * 9, "num_keypoints": 0}
    CATEGORIES = [{"id": id_, "name": name, "keypoints": ["a", "b", "c"]} for id_, name in ((0, "ape"), (1, "person"))]
    CLOSE = ((12.0, 10), (30, 61), (25, 25))

    def observe(self, people, poses, labels):
        """Observes poses of falling scores from 0.9."""
        content = {"images": [{"id": 7}], "categories": self.CATEGORIES, "annotations": people}
        schema = KeypointSchema(names=("a", "b", "c"), sigmas=(0.1,) * 3)
        metric = CocoKeypoints(content, schema, max_poses=len(poses))
        predictions = {
            "scores": 0.9 - 0.1 * torch.arange(len(poses)),
            "labels": torch.tensor(labels),
            "keypoints": torch.tensor(poses),
            "keypoint_std": torch.ones(len(poses), 3, 2),
        }
        metric.update([7], [predictions])
        return observe(match_poses(metric, metric.gather()), schema, torch.arange(len(poses) * 3.0).view(-1, 3, 1))

    def test_matches(self):
        in_crowd = ((320.0, 320), (350, 390), (330, 330))
        # The best one has another label.
        matched = self.observe([self.PERSON, self.CROWD], [self.CLOSE, self.CLOSE, in_crowd, self.CLOSE], [0, 1, 1, 1])
        assert matched.matched_logits.tolist() == pytest.approx([math.log(0.8 / 0.2)], abs=1e-5)
        # The pose on the crowd is left out; the other label and the duplicate are similar to nobody.
        assert matched.logits.sigmoid().tolist() == pytest.approx([0.9, 0.8, 0.6], abs=1e-6)
        falloff = 2 * 1000 * (2 * 0.1) ** 2
        similarities = [math.exp(-4 / falloff), math.exp(-1 / falloff)]
        assert matched.pose_similarities.tolist() == pytest.approx([0, np.mean(similarities), 0], abs=1e-4)
        assert matched.similarities[0, :2].tolist() == pytest.approx(similarities)
        assert matched.visibility.tolist() == [[2, 1, 0]]
        assert matched.is_labelled.tolist() == [[True, True, False]]
        assert matched.tokens.flatten().tolist() == [3, 4, 5]  # of the second pose
        assert matched.errors[0, :2].tolist() == [[2, 0], [0, 1]]
        assert matched.boxes.tolist() == [[12, 10, 30, 61]]

    def test_better_scores_choose_first(self):
        # The first takes the nearer person, the second, which is nearer to the same one, what is left.
        people = [self.moved(0), self.moved(8, id=2)]
        matched = self.observe(people, [self.shifted(5), self.shifted(7), self.shifted(4)], [1, 1, 1])
        assert matched.errors[:, 0, 0].tolist() == [5 - 8, 7 - 0]
        assert (matched.pose_similarities > 0).tolist() == [True, True, False]

    def test_too_dissimilar_to_match(self):
        distance = math.sqrt(-2 * 1000 * 0.2**2 * math.log(0.1))
        matched = self.observe([self.moved(0)], [self.shifted(distance + 0.1), self.shifted(distance - 0.1)], [1, 1])
        assert matched.matched_logits.sigmoid().tolist() == pytest.approx([0.8])

    def test_more_poses_than_the_metric_scores(self):
        matched = self.observe([self.moved(0)], [self.shifted(200)] * 24 + [self.shifted(1)], [1] * 25)
        assert len(matched.logits) == 25 and len(matched.matched_logits) == 1

    def test_classes_have_keypoints_and_sigmas_of_their_own(self):
        ape = {**self.PERSON, "category_id": 0, "keypoints": [20, 20, 2, 40, 60, 2], "bbox": [10, 10, 40, 60]}
        schemas = {0: KeypointSchema(("c", "a"), sigmas=(0.3, 0.2)), 1: KeypointSchema(("a", "b"), sigmas=(0.1, 0.4))}
        schema = unite_schemas(schemas, {0: "ape", 1: "person"})
        categories = [{"id": label, "name": str(label), **own.to_coco()} for label, own in schemas.items()]
        content = {"images": [{"id": 7}], "categories": categories, "annotations": [ape]}
        metric = CocoKeypoints(content, schema)
        pose = dict.fromkeys(schema.names, (500.0, 500.0)) | {"c": (21.0, 20.0), "a": (40.0, 60.0)}
        predictions = {
            "scores": torch.tensor([0.9]),
            "labels": torch.tensor([0]),
            "keypoints": torch.tensor([list(pose.values())]),
            "keypoint_std": torch.ones(1, 3, 2),
        }
        metric.update([7], [predictions])
        observed = observe(match_poses(metric, metric.gather()), schema, torch.zeros(1, 3, 1))
        own = [schema.names.index(name) for name in ("c", "a")]
        assert observed.is_own.sum() == 2 and observed.is_own[0, own].all()
        assert observed.sigmas[0, own].tolist() == [0.3, 0.2]
        assert observed.boxes.tolist() == [[21, 20, 40, 60]]
        assert observed.similarities[0, own].tolist() == pytest.approx([math.exp(-1 / (2 * 1000 * 0.6**2)), 1])

    def moved(self, x, **fields):
        return self.PERSON | {"keypoints": [10 + x, 10, 2, 30 + x, 60, 1, 0, 0, 0], **fields}

    def shifted(self, x):
        return ((10.0 + x, 10), (30 + x, 60), (25, 25))
