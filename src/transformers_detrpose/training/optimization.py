"""Parameter groups, learning rates, averaged weights, and batch norms synchronized across processes."""

import logging
import math

import torch
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)


# Names, or parts of names, of the parameters of norms and of biases.
NORMS_AND_BIASES = ("norm", "bn", "bias")


def build_optimizer(
    model: torch.nn.Module, lr: float, backbone_lr: float, weight_decay: float, decay_norms_and_biases: bool = True
) -> torch.optim.AdamW:
    """Returns AdamW with two parameter groups, the backbone, then everything else; or each in two, by weight decay.

    Projectors in a backbone are new, unlike the rest of it, and learn at the rate of everything else. The fused
    implementation can skip a step without synchronizing with the host; see `step_if_finite`.

    Args:
        model: the model to train; frozen parameters are left out.
        lr: learning rate of everything but the backbone.
        backbone_lr: learning rate of the backbone.
        weight_decay: weight decay.
        decay_norms_and_biases: whether all parameters are decayed. Otherwise those whose name contains "norm", "bn" or
            "bias" are not, and come in groups of their own, each after the others of its learning rate.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_other = ".backbone." not in name or ".projector" in name
            is_exempt = not decay_norms_and_biases and any(part in name for part in NORMS_AND_BIASES)
            groups.setdefault((is_other, is_exempt), []).append(parameter)
    exempt = [False] if decay_norms_and_biases else [False, True]
    options = [
        {
            "params": groups.get((is_other, is_exempt), []),
            "lr": lr if is_other else backbone_lr,
            "weight_decay": 0.0 if is_exempt else weight_decay,
        }
        for is_other in (False, True)
        for is_exempt in exempt
    ]
    return torch.optim.AdamW(options, fused=True)


def build_scheduler(
    optimizer: torch.optim.Optimizer, warmup_steps: int = 0, drop_step: int | None = None
) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns a schedule with a linear warm-up, then constant learning rates, and a tenth of them from `drop_step` on.

    Args:
        optimizer: the optimizer to schedule.
        warmup_steps: length of the warm-up in steps.
        drop_step: first step with a tenth of the learning rates.
    """

    def factor(step: int) -> float:
        is_dropped = drop_step is not None and step >= drop_step
        return min(1.0, (step + 1) / max(1, warmup_steps)) * (0.1 if is_dropped else 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class WeightAverage(AveragedModel):
    """The exponential moving average of a model's weights and buffers, `module`.

    The decay at step s is decay * (1 - exp(-s / 2000)), so that the average follows the model closely at first.

    Args:
        model: the model, on its training device.
        decay: limit of the decay per step, from 0 to 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.9999):
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module):
        """Updates the average with the weights and buffers after a step."""
        # PyTorch's own method copies its counter to the device, which makes the host wait.
        step = int(self.n_averaged) + 1
        weight = 1 - self.decay * (1 - math.exp(-step / 2000)) if step > 1 else 1.0
        numbers, counters = [], []  # pairs; batch norms count batches
        for part in (torch.nn.Module.parameters, torch.nn.Module.buffers):
            for pair in zip(part(self.module), part(model), strict=True):
                (numbers if pair[0].is_floating_point() else counters).append(pair)
        torch._foreach_lerp_(*zip(*numbers, strict=True), weight)
        if counters:
            torch._foreach_copy_(*zip(*counters, strict=True))
        self.n_averaged += 1


def convert_sync_batch_norms(model: torch.nn.Module, num_processes: int, device: torch.device) -> torch.nn.Module:
    """Synchronizes trainable batch norms across processes, which PyTorch supports on GPUs only.

    Args:
        model: the model; frozen batch norms are left unchanged.
        num_processes: number of training processes.
        device: their device.
    """
    if num_processes == 1:
        return model
    if device.type == "cpu":
        logger.warning("batch norms are not synchronised between processes on the CPU: each sees its own images.")
        return model
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
