"""Parameter groups, learning rates and averaged weights."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tiny import TINY_BACKBONE, tiny_config
from transformers_detrpose import DETRPoseForPoseEstimation
from transformers_detrpose.training import (
    WeightAverage,
    build_optimizer,
    build_scheduler,
    convert_sync_batch_norms,
)


class Tiny(nn.Module):
    """A backbone and a head, as the parameter groups tell them apart by name."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"backbone": nn.Conv2d(3, 2, 1), "head": nn.Linear(2, 1)})
        self.norm = nn.BatchNorm2d(2)


def test_the_backbone_has_its_own_rate():
    model = Tiny()
    model.model["head"].bias.requires_grad_(False)
    backbone, others = build_optimizer(model, lr=1e-3, backbone_lr=1e-5, weight_decay=0.25).param_groups
    assert (backbone["lr"], others["lr"], backbone["weight_decay"], others["weight_decay"]) == (1e-5, 1e-3, 0.25, 0.25)
    assert set(backbone["params"]) == set(model.model["backbone"].parameters())
    assert set(others["params"]) == {model.model["head"].weight, *model.norm.parameters()}


def test_norms_and_biases_may_be_left_out_of_weight_decay():
    """In groups of their own: the first group still has the backbone's rate, the last that of the rest."""
    model = Tiny()
    groups = build_optimizer(model, 1e-3, 1e-5, 0.25, decay_norms_and_biases=False).param_groups
    assert [group["lr"] for group in groups] == [1e-5, 1e-5, 1e-3, 1e-3]
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0, 0.25, 0.0]
    backbone, head = model.model["backbone"], model.model["head"]
    assert [set(group["params"]) for group in groups] == [
        {backbone.weight}, {backbone.bias}, {head.weight}, {head.bias, *model.norm.parameters()}
    ]  # fmt: skip


def test_the_names_of_the_model_tell_norms_and_biases_from_the_rest():
    config = tiny_config(backbone_config=TINY_BACKBONE, freeze_backbone_batch_norms=False)
    model = DETRPoseForPoseEstimation(config)
    optimizer = build_optimizer(model, 1e-3, 1e-5, 0.25, decay_norms_and_biases=False)
    exempt = {id(parameter) for group in optimizer.param_groups[1::2] for parameter in group["params"]}
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    expected = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, norms) or name.endswith("bias")
    }
    assert exempt == expected and len(exempt) > 20


def test_projectors_in_a_backbone_learn_at_the_full_rate():
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"blocks": nn.Linear(2, 2), "projectors": nn.Linear(2, 2)})})
    model = nn.ModuleDict({"model": model})
    backbone, others = build_optimizer(model, lr=1e-3, backbone_lr=1e-5, weight_decay=0.0).param_groups
    assert set(backbone["params"]) == set(model["model"]["backbone"]["blocks"].parameters())
    assert set(others["params"]) == set(model["model"]["backbone"]["projectors"].parameters())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"warmup_steps": 4, "drop_step": 10}, [0.25, 0.5, 0.75, *[1.0] * 7, 0.1, 0.1]),
        ({}, [1.0] * 12),
    ],
)
def test_learning_rates(options, expected):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, **options)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


def test_averaged_weights_follow_the_formula():
    """The first update copies; after s of them the decay is 0.9999 (1 - exp(-s / 2000))."""
    model = Tiny()
    average = WeightAverage(model, 0.9999)
    expected = None
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in (*model.parameters(), model.norm.running_mean):
                tensor.copy_(torch.randn_like(tensor))
            model.norm.num_batches_tracked += 1
        average.update_parameters(model)
        decay = 0.9999 * (1 - math.exp(-step / 2000)) if expected else 0.0
        current = {name: tensor.double() for name, tensor in model.state_dict().items()}
        expected = {name: decay * (expected or current)[name] + (1 - decay) * current[name] for name in current}
    found = average.module.state_dict()
    assert found["norm.num_batches_tracked"] == 5
    for name in set(found) - {"norm.num_batches_tracked"}:
        torch.testing.assert_close(found[name].double(), expected[name], atol=1e-6, rtol=1e-6)


class CountedOperations(TorchDispatchMode):
    """Counts what reaches the tensors of one type."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


def test_averaging_is_one_operation_and_reads_no_weight_back():
    model = Tiny()
    average = WeightAverage(model)
    average.update_parameters(model)
    assert average.n_averaged.device.type == "cpu"  # also where the weights are on a GPU
    with CountedOperations() as counted:
        average.update_parameters(model)
    assert counted.names.count("aten._foreach_lerp_") == 1 and "aten.lerp" not in counted.names
    # Only the counter, which is on the CPU, is read: by PyTorch twice, and here once.
    assert counted.names.count("aten._local_scalar_dense") + counted.names.count("aten.is_nonzero") <= 3


def test_norms_of_several_processes(caplog):
    model = Tiny()
    assert convert_sync_batch_norms(model, 1, torch.device("cuda")) is model
    assert convert_sync_batch_norms(model, 2, torch.device("cpu")) is model and type(model.norm) is nn.BatchNorm2d
    assert len(caplog.records) == 1 and "not synchronised" in caplog.text
    assert type(convert_sync_batch_norms(model, 2, torch.device("cuda")).norm) is nn.SyncBatchNorm
