"""Reads pictures of any kind as upright RGB and resizes them as Pillow does, for datasets and the image processor."""

import os

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import load_image


def load_rgb_image(image: str | os.PathLike | Image.Image, timeout: float | None = None) -> Image.Image:
    """Opens an image, applies its EXIF orientation and converts it to RGB.

    `transformers.image_utils.load_image`, except that 16-bit images are scaled to 8 bit rather than clipped (those
    behind URLs and in base64 strings are clipped), and that any path-like object will do.

    Args:
        image: Path, URL, base64 string or image.
        timeout: Seconds to wait for a URL.
    """
    if isinstance(image, (str, os.PathLike)) and os.path.isfile(image):
        image = Image.open(image)
    if isinstance(image, Image.Image):
        return convert_to_rgb(ImageOps.exif_transpose(image))
    return load_image(os.fspath(image) if isinstance(image, os.PathLike) else image, timeout=timeout)


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image as RGB: transparency dropped, 16 bit scaled to 8 bit (where Pillow would clip)."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def resize_with_pillow(images: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Resizes uint8 images with Pillow's antialiased bilinear filter, channel by channel.

    Args:
        images: (..., height, width), uint8 on the CPU.
        size_hw: new height and width in pixels.

    Returns:
        uint8 (..., new height, new width).
    """
    planes = [Image.fromarray(plane.numpy()) for plane in images.flatten(0, -3)]
    resized = [tvF.pil_to_tensor(plane.resize(size_hw[::-1], Image.Resampling.BILINEAR)) for plane in planes]
    return torch.cat(resized).reshape(*images.shape[:-2], *size_hw)
