"""A look at the values of the first batch, for a mistake that shapes and types do not show."""

import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)

# Images in [0, 1] normalized with the mean and standard deviation of any dataset stay well below.
_LARGEST_VALUE = 20.0


def warn_of_unscaled_images(model: nn.Module):
    """Makes a model log a warning if the images of its first batch range from 0 to 255.

    Later batches are not looked at, because reading values makes the host wait for a GPU. Neither is a batch without
    values, when a model is compiled, exported, traced or on the meta device.

    Args:
        model: the model, whose first argument is `pixel_values` (B, 3, height, width).
    """
    model.first_batch_hook = model.register_forward_pre_hook(_look_once, with_kwargs=True)


def _look_once(model: nn.Module, args: tuple, kwargs: dict):
    pixel_values = args[0] if args else kwargs.get("pixel_values")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if type(pixel_values) is not torch.Tensor or pixel_values.is_meta or not pixel_values.numel():
        return
    model.first_batch_hook.remove()
    largest = pixel_values.detach().abs().max().item()
    if largest > _LARGEST_VALUE:
        logger.warning(
            f"`pixel_values` reach {largest:g}, but the model expects images scaled to [0, 1]: the poses will be "
            "wrong. The image processor scales images unless `do_rescale` is False."
        )
