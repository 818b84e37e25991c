"""Confidences of keypoints, from the predicted standard deviations and the score of the pose."""

import pytest
import torch

from transformers_detrpose import expected_keypoint_similarity
from transformers_detrpose.keypoint_confidence import scale_deviations

SIGMAS = torch.tensor([0.03, 0.05, 0.1])
BOX = torch.tensor([10.0, 20.0, 110.0, 220.0])


def test_expected_similarity_is_the_mean_over_the_gaussian():
    boxes = torch.tensor([[10.0, 20.0, 110.0, 220.0], [0.0, 0.0, 5.0, 0.0]])  # the second one is flat
    deviations = torch.tensor([[[0.0, 0.0], [6.0, 2.0], [1.0, 30.0]], [[0.1, 0.2], [0.3, 0.1], [2.0, 0.0]]])
    sigmas = SIGMAS
    expected = expected_keypoint_similarity(deviations, boxes, sigmas, minimum_side=1.0)

    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(200_000, *deviations.shape, generator=generator) * deviations
    area = 0.53 * torch.tensor([100 * 200, 5 * 1])
    similarity = torch.exp(-errors.square().sum(-1) / (2 * area[:, None] * (2 * sigmas) ** 2))
    assert (similarity.mean(0) - expected).abs().max() < 3e-3
    assert expected[0, 0] == 1 and 0.1 < expected.min() < 0.9


def similarities(deviations, scores, boxes=BOX):
    """Returns the expected similarities under scaled standard deviations."""
    scaled = scale_deviations(deviations, scores, boxes, SIGMAS, minimum_side=1.0)
    return expected_keypoint_similarity(scaled, boxes, SIGMAS, minimum_side=1.0)


@pytest.mark.parametrize("score", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.5], ids=["equal", "usual", "over two orders of magnitude"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3], ids=["far too narrow", "as predicted", "far too wide"])
def test_mean_similarity_is_the_score(size, spread, score):
    generator = torch.Generator().manual_seed(0)
    deviations = size * torch.exp(spread * torch.randn(1000, 3, 2, generator=generator))
    mean = similarities(deviations, torch.full((1000,), score), BOX.expand(1000, 4)).mean(-1)
    torch.testing.assert_close(mean, torch.full((1000,), score), atol=1e-3, rtol=0)


def test_equally_sure_keypoints_have_the_score_of_the_pose():
    """Standard deviations in proportion to the fall-off of each keypoint: nothing tells them apart."""
    deviations = (SIGMAS[:, None] * torch.tensor([3.0, 3.0])).expand(2, 3, 2)
    scores = torch.tensor([0.3, 0.8])
    torch.testing.assert_close(similarities(deviations, scores, BOX.expand(2, 4)), scores[:, None].expand(2, 3))


def test_one_keypoint_has_a_closed_form():
    """1 / (1 + t s² / k²) = score: the standard deviation becomes k sqrt(1 / score - 1)."""
    scaled = scale_deviations(torch.tensor([[7.0, 7.0]]), torch.tensor(0.2), BOX, SIGMAS[:1], minimum_side=1.0)
    k = (0.53 * 100 * 200) ** 0.5 * 2 * 0.03
    torch.testing.assert_close(scaled, torch.full((1, 2), k * 2.0))


def test_keeps_the_order():
    """The widths still say which keypoint is surer, x or y, by the same ratios."""
    deviations = torch.tensor([[1.0, 2.0], [4.0, 1.0], [9.0, 9.0]])
    scaled = scale_deviations(deviations, torch.tensor(0.4), BOX, SIGMAS, minimum_side=1.0)
    torch.testing.assert_close(scaled / scaled[0, 0], deviations)


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("deviations", [torch.zeros(3, 2), torch.full((3, 2), 1e4)], ids=["none", "huge"])
def test_extremes_are_finite(deviations, score):
    found = similarities(deviations, torch.tensor(score))
    assert found.isfinite().all()
    torch.testing.assert_close(found.mean(), torch.tensor(score), atol=1e-3, rtol=0)
