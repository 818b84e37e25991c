"""Reads images of any mode as upright RGB and resizes them as Pillow does, for datasets and the image processor."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import load_image

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

_EXIF_ORIENTATION = 0x0112


def load_rgb_image(image: str | os.PathLike | Image.Image, timeout: float | None = None) -> Image.Image:
    """Opens an image, applies its EXIF orientation and converts it to RGB.

    Like `transformers.image_utils.load_image`, except that 16-bit images are scaled to 8 bit rather than clipped (those
    from URLs and base64 strings are clipped), any path-like object is accepted, and large images are rejected as in
    `open_image`.

    Args:
        image: Path, URL, base64 string or image.
        timeout: Seconds to wait for a URL.

    Raises:
        ValueError: if the image cannot be read, is too large, or its values cannot be scaled to 8 bit, see
            `convert_to_rgb`.
    """
    if isinstance(image, (str, os.PathLike)) and os.path.isfile(image):
        image = open_image(image)
    if isinstance(image, Image.Image):
        limit = Image.MAX_IMAGE_PIXELS
        # Files may not be decoded yet; other images are already in memory.
        if isinstance(image, ImageFile.ImageFile) and limit is not None and image.width * image.height > limit:
            raise _too_large()
        return convert_to_rgb(ImageOps.exif_transpose(image))
    with _refusing_large_images():
        return load_image(os.fspath(image) if isinstance(image, os.PathLike) else image, timeout=timeout)


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """Opens an image file without decoding it.

    Images with more pixels than `PIL.Image.MAX_IMAGE_PIXELS` are rejected: a file of a few kilobytes can decode to
    gigabytes. Pillow itself only warns above this limit and raises above twice as many; raising its limit raises this
    one.

    Args:
        file: path or file object.

    Raises:
        ValueError: if the image is too large.
        OSError: if it cannot be opened.
    """
    with _refusing_large_images():
        return Image.open(file)


def upright_size_hw(image: Image.Image) -> tuple[int, int]:
    """Returns the height and width of an image in pixels after applying its EXIF orientation."""
    # Pillow decodes a whole PNG in search of an orientation that is not in its header.
    has_orientation = image.format != "PNG" or "exif" in image.info
    is_on_its_side = has_orientation and image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    return image.size if is_on_its_side else (image.height, image.width)


@contextmanager
def _refusing_large_images() -> Iterator[None]:
    """Converts Pillow's warning and error about large images to one `ValueError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large() from error


def _too_large() -> ValueError:
    return ValueError(
        f"the image has more than {Image.MAX_IMAGE_PIXELS} pixels, the limit: raise it by --max-pixels of the command, "
        "in Python by PIL.Image.MAX_IMAGE_PIXELS."
    )


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB: drops transparency, and scales gray values above 8 bit (where Pillow would clip).

    Integers are interpreted as 16 bit, floating-point values as 0 to 1 if none is above 1, else as 0 to 255.

    Raises:
        ValueError: if gray values lie outside these ranges.
    """
    if image.mode.startswith("I"):
        image = _grey_image(np.asarray(image), 65535)
    elif image.mode == "F":
        values = np.asarray(image)
        image = _grey_image(values, 1 if values.max(initial=0) <= 1 else 255)
    return image.convert("RGB")


def _grey_image(values: np.ndarray, white: int) -> Image.Image:
    """Converts gray values (height, width) from 0 to `white` to an 8-bit image, or raises `ValueError`."""
    if not ((values >= 0) & (values <= white)).all():  # false for NaN, too
        kind = "floating-point values from 0 to 1 or to 255" if white < 65535 else "16-bit values, 0 to 65535"
        raise ValueError(
            f"an image of Pillow's mode 'I' or 'F' must have {kind}, but got {values.min():g} to {values.max():g}."
        )
    scaled = values >> 8 if white == 65535 else (values * (255 / white)).round()
    return Image.fromarray(scaled.astype(np.uint8))


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
