"""A training step: what it waits for, accumulated gradients, skipped steps, and reports that arrive late."""

import importlib
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import simulated_device
import torch
from simulated_device import DEVICE, DeviceTensor, SimulatedDevice
from torch import nn

import tiny
from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands import train
from transformers_detrpose.training import (
    LoadingError,
    Progress,
    SignalWatch,
    StepReports,
    WeightAverage,
    batches_by_step,
    build_optimizer,
    build_scheduler,
    prepare_inputs,
    step_if_finite,
    steps,
)


def training_of(model, max_grad_norm=0.1):
    """Everything that a step needs, without accelerate in between."""
    average = WeightAverage(model)
    optimizer = build_optimizer(model, 1e-3, 1e-3, 0.0)
    accelerator = SimpleNamespace(
        scaler=None,
        num_processes=1,
        process_index=0,
        unwrap_model=lambda model: model,
        no_sync=lambda model: nullcontext(),
        backward=lambda loss: loss.backward(),
        clip_grad_norm_=nn.utils.clip_grad_norm_,
    )
    progress, watch = Progress(), SignalWatch()
    return SimpleNamespace(
        args=SimpleNamespace(gradient_accumulation_steps=1, seed=0, max_grad_norm=max_grad_norm),
        accelerator=accelerator,
        model=model,
        average=average,
        optimizer=SimpleNamespace(optimizer=optimizer, step=lambda: optimizer.step(), zero_grad=optimizer.zero_grad),
        scheduler=build_scheduler(optimizer),
        progress=progress,
        watch=watch,
        reports=StepReports(accelerator, progress, watch),
        image_processor=DETRPoseImageProcessor(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3),
    )


def make_batch(config, counts, seed=0):
    """A batch as a data loader makes it, with images in bytes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (len(counts), 3, 64, 64), dtype=torch.uint8, generator=generator)
    labels = tiny.make_labels(config, counts, seed)
    labels = [{**image, "image_id": torch.tensor([index])} for index, image in enumerate(labels)]
    return {"pixel_values": pixels, "labels": labels}


def make_model(device="cpu", **fields):
    torch.manual_seed(0)
    model = tiny.noisy(DETRPoseForPoseEstimation(tiny.tiny_config(**fields))).to(device).train()
    for module in model.modules():  # what these make of an image depends on the others of its batch
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def test_the_simulated_device_notices_what_waits_for_it():
    with SimulatedDevice() as device:
        values = torch.rand(3).to(DEVICE, non_blocking=True)
        assert isinstance(values + 1, DeviceTensor) and not device.waits
        for number, wait in enumerate(
            [
                lambda: values.sum().item(),
                lambda: bool((values > 2).any()),
                lambda: values.cpu(),
                lambda: values.nonzero(),
                lambda: values[values > 2],
                lambda: torch.ones(3).to(DEVICE),
                lambda: values.copy_(torch.ones(3)),
            ],
            start=1,
        ):
            wait()
            assert len(device.waits) == number, device.waits


@pytest.mark.parametrize("counts", [[2, 1], [0, 0]], ids=["people", "nobody"])
def test_a_step_waits_for_the_device_once(monkeypatch, counts):
    """For the matching. With blocking copies, `item` or `nonzero` anywhere in it there would be more."""
    model = make_model(num_denoising=6, use_visibility_head=True)
    training = training_of(model)
    # A GPU has fused optimisers, and events to wait for when a copy is read later.
    module = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
    monkeypatch.setattr(steps, "copy_to_host", lambda values: (values.to("cpu", non_blocking=True), None))
    with SimulatedDevice() as device:
        for module in (model, training.average.module):
            simulated_device.move(module)
        moved = build_optimizer(model, 1e-3, 1e-3, 0.0)
        training.optimizer.optimizer.param_groups = moved.param_groups
        before = model.model.decoder.position_head.layers[0].weight.values_on_cpu.clone()
        for number in (1, 2):
            train.train_step(training, [make_batch(model.config, counts)])
            assert device.waits == ["aten._to_copy.default from the device"] * number
        assert training.progress.loss_sums.keys() == set(steps.LOSSES)  # of the first step, shown in the second
    after = model.model.decoder.position_head.layers[0].weight.values_on_cpu
    assert not torch.equal(before, after)


def test_a_step_on_a_gpu_waits_once(device):
    if device.type != "cuda":
        pytest.skip("needs `--device cuda`")
    model = make_model(device, num_denoising=6)
    training = training_of(model)
    batch = make_batch(model.config, [2, 1])
    train.train_step(training, [batch])  # the first one sets up libraries
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as caught:
            train.train_step(training, [batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]
    assert len(waits) == 1, waits


def gradients(model, batches):
    """Returns the gradients of a step."""
    model.zero_grad()
    for inputs in prepare_inputs(model, batches):
        model(**inputs).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_accumulated_gradients_are_those_of_one_batch(device):
    """However people fall to the batches, one of which has none."""
    model = make_model(device, num_denoising=0, use_visibility_head=True)
    whole = make_batch(model.config, [3, 1, 1, 1, 0, 0])
    parts = [{name: values[i : i + 2] for name, values in whole.items()} for i in (0, 2, 4)]
    expected, found = gradients(model, [whole]), gradients(model, parts)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    # Each batch by its own counts, which is what this is about, would be far off.
    separate = sum(gradients(model, [part]) for part in parts) / 3
    assert (separate - expected).norm() > 1e-2 * expected.norm()


def test_batch_norms_see_accumulated_batches_once(device):
    model = make_model(device, num_denoising=0).train()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    prepare_inputs(model, [make_batch(model.config, [1, 1], seed) for seed in (0, 1)])
    assert norm.num_batches_tracked == 0 and norm.running_mean.abs().sum() == 0


def test_pixels_and_labels_reach_the_model_as_the_processor_makes_them(device):
    model = make_model(device, num_denoising=0)
    batch = make_batch(model.config, [1, 0])
    (inputs,) = prepare_inputs(model, [batch])
    assert torch.equal(inputs["pixel_values"].cpu(), batch["pixel_values"].float() * (1 / 255))
    batch["labels"][1]["area"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"labels\[1\]\['area'\]"):
        prepare_inputs(model, [batch])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_grad_norm", [0.1, 0.0])
def test_a_step_with_bad_gradients_changes_nothing(bad, max_grad_norm, device):
    model = make_model(device, num_denoising=0)
    training = training_of(model, max_grad_norm)
    batch = make_batch(model.config, [1, 1])
    train.train_step(training, [batch])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in training.optimizer.optimizer.state.values()]
    hook = next(model.parameters()).register_hook(lambda gradient: gradient * bad)
    train.train_step(training, [batch])
    hook.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    states = training.optimizer.optimizer.state.values()
    assert all(torch.equal(state["exp_avg"], moment) for state, moment in zip(states, moments, strict=True))
    assert all(tensor.isfinite().all() for tensor in training.average.state_dict().values())
    train.train_step(training, [batch])
    assert not torch.equal(model.state_dict()[name := next(iter(before))], before[name])
    assert (training.progress.skipped, training.progress.skipped_in_a_row) == (1, 1)  # the last report is on its way
    training.reports.receive()
    assert (training.progress.skipped, training.progress.skipped_in_a_row) == (1, 0)
    assert (training.progress.step, training.progress.num_losses) == (3, 2)


def losses(value):
    return {name: torch.tensor(value) for name in steps.LOSSES}


def test_reports_arrive_a_step_later():
    progress = Progress()
    reports = StepReports(SimpleNamespace(num_processes=1), progress, SignalWatch())
    assert reports.send(1, [7], losses(2.0), torch.tensor(1.0)) is None
    report = reports.send(2, [8], losses(4.0), torch.tensor(1.0))
    assert (report.step, report.image_ids, report.losses["loss"], report.grad_norm) == (1, [7], 2.0, 1.0)
    assert reports.receive().step == 2 and reports.receive() is None
    assert progress.mean_losses() == dict.fromkeys(steps.LOSSES, 3.0)
    progress.begin_epoch()
    assert progress.mean_losses() == {}


def test_too_many_skipped_steps_in_a_row_stop_the_run(caplog):
    reports = StepReports(SimpleNamespace(num_processes=1), Progress(), SignalWatch())
    for step in range(1, 11):
        reports.send(step, [step], losses(1.0), torch.tensor(float("nan")))
    assert "step 3, images [3]: the gradients are not finite; the step is skipped" in caplog.text
    with pytest.raises(ValueError, match=r"step 10, images \[10\]: .* like those of the 9 steps before"):
        reports.receive()


def test_processes_agree_to_stop():
    """Whatever process got the signal, all of them see it in the same report."""
    share_of_other = torch.tensor([0.0] * (len(steps.LOSSES) + 1) + [0.5])
    shares = SimpleNamespace(num_processes=2, reduce=lambda values, how: values + share_of_other)
    reports = StepReports(shares, Progress(), SignalWatch())
    reports.send(1, [], losses(1.0), torch.tensor(1.0))
    assert not reports.must_stop
    reports.receive()
    assert reports.must_stop


def test_float16_leaves_the_decision_to_the_scaler():
    taken = []
    optimizer = SimpleNamespace(optimizer=SimpleNamespace(), step=lambda: taken.append(1), zero_grad=lambda: None)
    step_if_finite(SimpleNamespace(scaler=object()), optimizer, torch.tensor(float("inf")))
    assert taken and not hasattr(optimizer.optimizer, "found_inf")


def test_batches_of_a_step():
    assert list(batches_by_step(range(5), 2)) == [[0, 1], [2, 3], [4]]

    def broken():
        yield 0
        raise ValueError("cannot read image 7 (7.png)")

    batches = batches_by_step(broken(), 1)
    assert next(batches) == [0]
    with pytest.raises(LoadingError, match="images could not be loaded: cannot read image 7"):
        next(batches)
