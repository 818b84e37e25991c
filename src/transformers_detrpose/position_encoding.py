"""Positions of pixels and points, and their encodings."""

import math

import torch


def sine_position_encoding(points: torch.Tensor, num_channels: int, temperature: float) -> torch.Tensor:
    """Returns the sine position encoding of points.

    Args:
        points: (..., 2), x and y as fractions of the image.
        num_channels: length of an encoding, divisible by 4.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        (..., num_channels) in float32: the encoding of y, then that of x, each alternating between sine and cosine.
    """
    half = num_channels // 2
    channels = torch.arange(half // 2, device=points.device, dtype=torch.float32)
    frequencies = 2 * math.pi / temperature ** (2 * channels / half)
    angles = points.float().flip(-1).unsqueeze(-1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def pixel_centers(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Returns the pixel centers of a feature map row by row, (height * width, 2), x and y as fractions of the image."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
