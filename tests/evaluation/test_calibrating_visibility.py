"""Fitting a visibility head, on tokens that can be told apart."""

from types import SimpleNamespace

import pytest
import torch

from tiny import tiny_config
from transformers_detrpose import DETRPoseForPoseEstimation
from transformers_detrpose.evaluation.calibrating_visibility import (
    fit_visibility,
    known_visibility,
    measure_visibility,
    with_visibility,
)


def make_config(is_absent=False):
    return tiny_config(use_visibility_head=True, predict_absent_keypoints=is_absent)


def draw_tokens(count, kinds, seed):
    """Tokens around a point of their own for each visibility."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(kinds)[torch.randint(len(kinds), (count,), generator=generator)]
    return torch.randn(count, 32, generator=generator) + 3 * torch.eye(32)[values], values


class TestFit:
    @pytest.mark.parametrize(("is_absent", "kinds"), [(False, [1, 2]), (True, [0, 1, 2])])
    def test_separable_tokens(self, is_absent, kinds):
        head = fit_visibility(make_config(is_absent), *draw_tokens(2000, kinds, seed=0))
        found = measure_visibility(head, *draw_tokens(1000, kinds, seed=1))
        assert found.count == 1000 and found.accuracy > 0.9 and found.balanced_accuracy > 0.9 and found.auc > 0.95
        assert found.majority == pytest.approx(1 / len(kinds), abs=0.05)

    def test_probabilities_of_tokens_that_say_nothing(self):
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(4000, 32, generator=generator)
        values = 1 + (torch.rand(4000, generator=generator) < 0.8).long()
        head = fit_visibility(make_config(), tokens, values)
        probability = head.classify(torch.randn(1000, 32, generator=generator)).softmax(-1)[:, 2].mean()
        assert probability.item() == pytest.approx(0.8, abs=0.05)

    def test_is_repeatable(self):
        data = draw_tokens(600, [1, 2], seed=0)
        states = [fit_visibility(make_config(), *data).state_dict() for _ in range(2)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    @pytest.mark.parametrize(("count", "kinds", "found"), [(400, [1, 2], "0 absent"), (600, [2], "600 visible")])
    def test_too_few(self, count, kinds, found):
        with pytest.raises(ValueError, match=f"{found}.* needs 500 of more than one kind"):
            fit_visibility(make_config(), *draw_tokens(count, kinds, seed=0))


def test_measures_by_hand():
    """Of four visible keypoints three are right, of one occluded none."""
    logits = torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 1, 0], [0, 0, 1.5]])
    head = SimpleNamespace(classify=lambda tokens: logits)
    found = measure_visibility(head, torch.zeros(5, 32), torch.tensor([2, 2, 2, 2, 1]))
    assert (found.count, found.accuracy, found.balanced_accuracy, found.majority) == (5, 0.6, 0.375, 0.8)
    assert found.auc == 0.5  # two of the four are more probably visible than the occluded one


@pytest.mark.parametrize(("is_absent", "kept"), [(False, [1, 2]), (True, [0, 1, 2])])
def test_known_visibility(is_absent, kept):
    """Of one pose with four keypoints, the last of which its class lacks."""
    visibility = torch.tensor([[0, 1, 2, 0]])
    is_own = torch.tensor([[True, True, True, False]])
    tokens = torch.arange(4 * 32.0).reshape(1, 4, 32)
    poses = SimpleNamespace(visibility=visibility, is_labelled=visibility > 0, is_own=is_own, tokens=tokens.half())
    found, values = known_visibility(make_config(is_absent), poses)
    assert values.tolist() == kept and torch.equal(found, tokens[0, kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_with_visibility(dtype):
    head = fit_visibility(make_config(is_absent=True), *draw_tokens(600, [0, 1, 2], seed=0))
    model = with_visibility(DETRPoseForPoseEstimation(tiny_config()).to(dtype).eval(), head)
    assert model.config.use_visibility_head and model.config.predict_absent_keypoints
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
