"""Bilinear sampling of feature maps, in versions for different runtimes.

All compute the same as [`bilinear_sample`]: zeros outside a map, pixel centers at half-integers, in float32.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def sample_maps(
    value_maps: Sequence[torch.Tensor], points: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Returns weighted sums of samples around each point, with one `grid_sample` per feature map.

    Args:
        value_maps: one per level, each (B * H, D / H, height, width).
        points: (B, N, 2), x and y as fractions of the image.
        offsets: (B, N, H, levels * P, 2), added to x and y in pixels of each level.
        weights: (B, N, H, levels * P).

    Returns:
        (B, N, D).
    """
    num_levels, head_dim = len(value_maps), value_maps[0].shape[1]
    num_tokens, num_heads, num_samples = weights.shape[1], weights.shape[2], weights.shape[3] // num_levels
    # The last axis of every operand contains the x, y of all samples: runtimes are slow at broadcasting a last axis of
    # two.
    points = 2 * points.reshape(-1, num_tokens, 1, 2) - 1
    points = points.expand(-1, -1, num_heads * weights.shape[3], -1).flatten(2)
    # Concatenated tensors, not a tensor of a list, which a tracing exporter would treat as constant.
    sizes = torch.cat([points.new_full((1,), x.shape[axis]) for x in value_maps for axis in (-1, -2)])
    scales = (2 / sizes).view(-1, 1, 2).expand(num_heads, -1, num_samples, -1).flatten()
    samples = (-1, num_tokens, num_heads, num_levels, num_samples)
    grids = (points + offsets.flatten(2) * scales).view(*samples, 2).permute(0, 2, 3, 1, 4, 5)
    grids = grids.reshape(-1, num_levels * num_tokens, num_samples, 2)
    weights = weights.view(samples).permute(0, 2, 3, 1, 4).reshape(-1, 1, num_levels * num_tokens, num_samples)
    mixed, levels = 0, (value_maps, grids.split(num_tokens, dim=1), weights.split(num_tokens, dim=2))
    for value_map, grid, weight in zip(*levels, strict=True):
        mixed = mixed + (F.grid_sample(value_map, grid, align_corners=False) * weight).sum(dim=-1)
    return mixed.reshape(-1, num_heads * head_dim, num_tokens).transpose(1, 2)


def look_up(indices: torch.Tensor, table: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns weighted sums of rows of a table, with PyTorch's operation for that.

    Args:
        indices: (N, samples).
        table: (rows, channels).
        weights: (N, samples).

    Returns:
        (N, channels).
    """
    return F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")


def gather(indices: torch.Tensor, table: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the sums of [`look_up`], (N, 1, channels), by a gather and a matrix product, for any runtime."""
    return torch.matmul(weights.view(-1, 1, weights.shape[1]), F.embedding(indices, table))


class FeatureTable:
    """Feature maps as a table with a row per pixel and head, made once per image and sampled by every decoder layer.

    Each map has a border of zeros, which represents everything outside it.

    Args:
        feature_maps: one per level, each (B, D, height, width).
        num_heads: H; each reads its own D / H channels.
        num_samples: samples per head, level and point, P.
        read: computes weighted sums of rows of the table, [`look_up`] or [`gather`].
    """

    def __init__(self, feature_maps: Sequence[torch.Tensor], num_heads: int, num_samples: int, read: Callable):
        # A point on the far border also reads a pixel beyond it.
        rows = torch.cat([F.pad(x, (1, 2, 1, 2)).flatten(2).transpose(1, 2) for x in feature_maps], dim=1)
        batch_size, num_locations, d_model = rows.shape
        self.num_heads, self.rows = num_heads, rows.reshape(-1, d_model // num_heads).float()
        self.read = read

        # The tensors below are expanded to heads, levels and samples, because CPUs are faster at operations with long
        # innermost axes.
        shape, device = (num_heads, len(feature_maps), num_samples), rows.device
        sizes = [tuple(x.shape[-2:]) for x in feature_maps]

        def per_sample(values: list[int], dtype=torch.float32) -> torch.Tensor:
            # Concatenated tensors, not a tensor of a list, which a tracing exporter would treat as constant.
            values = torch.cat([torch.full((1,), value, dtype=dtype, device=device) for value in values])
            return values.view(-1, 1).expand(shape).flatten(1)

        starts = [0]
        for height, width in sizes:
            starts.append(starts[-1] + (height + 3) * (width + 3))
        heads = torch.arange(num_heads, device=device).view(-1, 1)
        images = torch.arange(batch_size, device=device).view(-1, 1, 1, 1, 1) * (num_locations * num_heads)
        self.down = num_heads * per_sample([width + 3 for _, width in sizes], torch.int64)
        self.steps = torch.stack((torch.full_like(self.down, num_heads), self.down)).float()
        self.size = torch.stack(
            [per_sample([width for _, width in sizes]), per_sample([height for height, _ in sizes])]
        )
        self.start = images + heads + num_heads * per_sample(starts[:-1], torch.int64)

    def mix(self, points: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns weighted sums of samples around each point.

        Args:
            points: (B, N, 2), x and y as fractions of the image.
            offsets: (B, N, 2, H, levels * P), added to x and y in pixels of each level.
            weights: (B, N, H, levels * P).

        Returns:
            (B, N, D), NaN where a point or an offset is NaN.
        """
        # In pixels of the map with its border, from the center of the first pixel.
        positions = points[..., None, None] * self.size + (offsets + 0.5)
        positions = torch.minimum(positions.clamp(min=0), self.size + 1)
        # NaN is kept in the weights, but must not become an arbitrary index.
        corner = torch.where(positions.isnan(), 0, positions.floor())
        x, y = (positions - corner).split(1, dim=2)
        bottom = weights.unsqueeze(2) * y
        top = weights.unsqueeze(2) - bottom
        bottom_right, top_right = bottom * x, top * x
        corner_weights = torch.cat((top - top_right, top_right, bottom - bottom_right, bottom_right), dim=-1)

        top_left = (corner * self.steps).sum(dim=2, keepdim=True).long() + self.start
        bottom_left = top_left + self.down
        indices = (top_left, top_left + self.num_heads, bottom_left, bottom_left + self.num_heads)
        indices = torch.cat(indices, dim=-1)

        num_tokens, bag_size = points.shape[1], indices.shape[-1]
        mixed = self.read(indices.view(-1, bag_size), self.rows, corner_weights.view(-1, bag_size))
        return mixed.reshape(-1, num_tokens, self.num_heads * self.rows.shape[1])


def bilinear_gather(feature_map: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Computes [`bilinear_sample`], with the same arguments and result, only by gathers and arithmetic."""
    table = FeatureTable([feature_map], num_heads=1, num_samples=1, read=gather)
    offsets, weights = points.new_zeros(1, 1, 2, 1, 1), points.new_ones(1, 1, 1, 1)
    num_rows, num_columns = points.shape[1:3]
    sampled = table.mix(points.float().reshape(-1, num_rows * num_columns, 2), offsets.float(), weights.float())
    return sampled.transpose(1, 2).reshape(-1, feature_map.shape[1], num_rows, num_columns)
