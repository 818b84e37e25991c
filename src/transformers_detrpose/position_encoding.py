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


def grid_position_encoding(height: int, width: int, num_channels: int, temperature: float, device) -> torch.Tensor:
    """Returns the sine position encoding of rows and columns, counted from 0 and not divided by the size.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        num_channels: length of an encoding, divisible by 4.
        temperature: ratio of the longest to the shortest wavelength.
        device: device of the result.

    Returns:
        (height * width, num_channels) in float32, row by row: sines of the row, its cosines, sines of the column, and
        its cosines.
    """
    quarter = num_channels // 4
    frequencies = temperature ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    rows, columns = (
        torch.arange(size, device=device, dtype=torch.float32)[:, None] * frequencies for size in (height, width)
    )
    rows, columns = (torch.cat((angles.sin(), angles.cos()), dim=-1) for angles in (rows, columns))
    grid = (height, width, 2 * quarter)
    return torch.cat((rows[:, None].expand(grid), columns.expand(grid)), dim=-1).flatten(0, 1)
