"""Checks of the images that a model is given: shape and type always, values once."""

import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)

# Images in [0, 1] normalized with the mean and standard deviation of any dataset stay well below.
_LARGEST_VALUE = 20.0


def check_pixel_values(pixel_values: torch.Tensor, stride: int):
    """Checks the shape and the type of a batch of images.

    Args:
        pixel_values: the images.
        stride: the largest feature stride, of which height and width must be multiples.

    Raises:
        ValueError: if it is not a floating-point batch of images of a valid size.
    """
    if pixel_values.ndim != 4:
        raise ValueError(
            f"`pixel_values` must be (batch, channels, height, width), but got {tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be floating-point numbers from 0 to 1, but got {pixel_values.dtype}: the image "
            "processor scales images."
        )
    height, width = pixel_values.shape[-2:]
    if height % stride or width % stride:
        raise ValueError(
            f"height and width of `pixel_values` must be multiples of {stride}, the largest feature stride, "
            f"but got {height} x {width}."
        )


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
