"""Parameter groups, learning rates, averaged weights, and batch norms over several processes."""

import logging
import math

import torch
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)


def build_optimizer(model: torch.nn.Module, lr: float, backbone_lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Returns AdamW with two parameter groups: the backbone's first, then that of everything else.

    Args:
        model: the model to train; frozen parameters are left out.
        lr: learning rate of everything but the backbone.
        backbone_lr: learning rate of the backbone.
        weight_decay: of all parameters.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in named if ".backbone." in name], "lr": backbone_lr},
        {"params": [parameter for name, parameter in named if ".backbone." not in name], "lr": lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=weight_decay)


def build_scheduler(
    optimizer: torch.optim.Optimizer, warmup_steps: int = 0, drop_step: int | None = None
) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns constant learning rates after a linear warm-up, a tenth of them from `drop_step` on.

    Args:
        optimizer: whose learning rates are scheduled.
        warmup_steps: steps until the learning rates are reached.
        drop_step: first step at a tenth of the learning rates.
    """

    def factor(step: int) -> float:
        is_dropped = drop_step is not None and step >= drop_step
        return min(1.0, (step + 1) / max(1, warmup_steps)) * (0.1 if is_dropped else 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def build_average(model: torch.nn.Module, decay: float = 0.9999) -> AveragedModel:
    """Returns the moving average of a model's weights and buffers.

    After step s it decays by decay * (1 - exp(-s / 2000)), so that it follows the model closely at first.

    Args:
        model: the model, on the device where it is trained.
        decay: per step, once the training is long; from 0 to 1.
    """

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor):
        if not averaged[0].is_floating_point():  # counters of batch norms
            torch._foreach_copy_(averaged, current)
            return
        # PyTorch hands over its counter on the device of the weights, which would have to be waited for; the counter
        # itself is on the CPU.
        step = int(average.n_averaged) + 1
        torch._foreach_lerp_(averaged, current, 1 - decay * (1 - math.exp(-step / 2000)))

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)  # `update` reads it
    return average


def convert_sync_batch_norms(model: torch.nn.Module, num_processes: int, device: torch.device) -> torch.nn.Module:
    """Makes the batch norms that are trained see the batches of all processes, which PyTorch can on GPUs.

    Args:
        model: the model; its frozen norms stay as they are.
        num_processes: how many processes train.
        device: what they train on.
    """
    if num_processes == 1:
        return model
    if device.type == "cpu":
        logger.warning("batch norms are not synchronised between processes on the CPU: each sees its own images.")
        return model
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
