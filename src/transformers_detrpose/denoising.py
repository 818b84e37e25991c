"""Pose denoising: noisy copies of the labeled poses as additional decoder queries, and their attention mask.

Everything here is a pure function of the labels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .pose_targets import PoseTargets, keypoint_sigmas, pad_targets

# Lower bound of a coordinate and of its distance from 1, so that no logit is infinite.
_LOGIT_EPSILON = 1e-3


@dataclass
class DenoisingQueries:
    """Noisy poses that the decoder learns to denoise; P = 2 · m · G of them precede the Q matching queries.

    Args:
        labels (`torch.LongTensor` of shape `(B, P)`): label id of each slot after label noise, -1 in empty slots.
        reference_points (`torch.FloatTensor` of shape `(B, P, K + 1, 2)`):
            x, y as fractions of the image, the instance point first; 0.5 in empty slots.
        attention_mask (`torch.BoolTensor` of shape `(P + Q, P + Q)`): True where a row may not attend to a column.
        num_groups (`int`): G; each group has m positive slots, then m negative ones.
    """

    labels: torch.Tensor
    reference_points: torch.Tensor
    attention_mask: torch.Tensor
    num_groups: int

    @property
    def num_slots(self) -> int:
        """`int`: the number m of positive slots per group, and of negative ones."""
        return self.labels.shape[1] // (2 * self.num_groups)


def make_denoising_queries(
    labels: list[Mapping[str, torch.Tensor]],
    config,
    image_size: tuple[int, int],
    generator: torch.Generator | None = None,
) -> DenoisingQueries | None:
    """Makes the denoising queries of a batch (paper, Pose Denoising).

    With at most m people in an image there are G = max(1, `config.num_denoising` // m) groups. In every group, positive
    slot i and negative slot i are noisy copies of person i.

    Args:
        labels: one dictionary per image, as in `pad_targets`.
        config (`DETRPoseConfig`): provides the denoising and label-noise settings, the sigmas and `num_queries`.
        image_size: (height, width) of the images in pixels.
        generator: random number generator on the labels' device; the global one if not given.

    Returns:
        The queries on the labels' device, or `None` if denoising is disabled or there are no people in the batch.

    Raises:
        ValueError: if `image_size` is not two positive numbers.
    """
    if len(image_size) != 2 or min(image_size) <= 0:
        raise ValueError(f"`image_size` must be a positive (height, width) in pixels, but got {image_size!r}.")
    if config.num_denoising == 0 or not any(len(image["class_labels"]) for image in labels):
        return None
    targets = pad_targets(labels)
    num_slots = targets.area.shape[1]
    num_groups = max(1, config.num_denoising // num_slots)
    device = targets.area.device
    noisy_labels = _noisy_class_labels(targets, num_groups, config, generator)
    points = _noisy_points(targets, num_groups, config, image_size, generator)
    return DenoisingQueries(
        labels=noisy_labels.flatten(1),
        reference_points=points.flatten(1, 3),
        attention_mask=denoising_attention_mask(num_slots, num_groups, config.num_queries, device),
        num_groups=num_groups,
    )


def denoising_attention_mask(
    num_slots: int, num_groups: int, num_queries: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """Returns the mask that hides denoising queries from matching queries, and groups from each other.

    Args:
        num_slots: positive slots per group, m; there are as many negative ones.
        num_groups: denoising groups G.
        num_queries: matching queries Q, to which every query may attend.
        device: device of the mask.

    Returns:
        `torch.BoolTensor` of shape `(P + Q, P + Q)` with P = 2 · m · G, True where a row may not attend to a column.
    """
    group = torch.arange(num_groups, device=device).repeat_interleave(2 * num_slots)
    group = torch.cat([group, group.new_full((num_queries,), num_groups)])
    return (group[:, None] != group[None, :]) & (group[None, :] < num_groups)


def positive_matches(targets: PoseTargets, num_groups: int) -> torch.Tensor:
    """Returns the person that each positive denoising query is a copy of.

    Args:
        targets: the people of the batch, of shape (B, m).
        num_groups: denoising groups G.

    Returns:
        `torch.LongTensor` of shape `(B, 2 · m · G)`: index of the person, -1 for negative queries and empty slots.
    """
    num_slots = targets.is_person.shape[1]
    person = torch.arange(num_slots, device=targets.is_person.device)
    positives = torch.where(targets.is_person, person, -1)
    return torch.cat([positives, torch.full_like(positives, -1)], dim=1).repeat(1, num_groups)


def clamped_logit(fractions: torch.Tensor) -> torch.Tensor:
    """Returns ln(max(x, 1e-3) / max(1 - x, 1e-3)) of x clamped to [0, 1], which is finite at the borders."""
    fractions = fractions.clamp(0, 1)
    return torch.log(fractions.clamp(min=_LOGIT_EPSILON) / (1 - fractions).clamp(min=_LOGIT_EPSILON))


def _noisy_class_labels(targets: PoseTargets, num_groups: int, config, generator) -> torch.Tensor:
    """Returns label ids (B, G, 2, m), some of them replaced by random ones, -1 in empty slots."""
    shape = (len(targets.area), num_groups, 2, targets.area.shape[1])
    draws = {"generator": generator, "device": targets.area.device}
    replaced = torch.rand(shape, **draws) < config.label_noise_ratio
    random_labels = torch.randint(config.num_denoising_labels, shape, **draws)
    noisy = torch.where(replaced, random_labels, targets.class_labels[:, None, None])
    return noisy.masked_fill(~targets.is_person[:, None, None], -1)


def _noisy_points(targets: PoseTargets, num_groups: int, config, image_size, generator) -> torch.Tensor:
    """Returns points (B, G, 2, m, K + 1, 2): the mean of the labeled keypoints, then the noisy keypoints."""
    noise = _keypoint_noise(targets, num_groups, config, image_size, generator)
    moved = targets.keypoints[:, None, None] + noise * targets.visibility[:, None, None, ..., None]
    num_labelled = targets.visibility.sum(-1, keepdim=True).clamp(min=1)
    centre = targets.keypoints.sum(-2) / num_labelled
    centre = centre[:, None, None, :, None].expand(*moved.shape[:4], 1, 2)
    points = clamped_logit(torch.cat([centre, moved], dim=-2)).sigmoid()
    return points.masked_fill(~targets.is_person[:, None, None, :, None, None], 0.5)


def _keypoint_noise(targets: PoseTargets, num_groups: int, config, image_size, generator) -> torch.Tensor:
    """Draws displacements that give each keypoint a similarity drawn uniformly from the configured range.

    KS = exp(-α² / (2 s² κ²)) gives α = s κ √(-2 ln KS), with s² the area and κ = 2σ; the direction is drawn uniformly
    from all angles (paper, Pose Denoising) or those of the configuration. s is in units of the longer side of the
    image: in square images, as in the recipes, the similarity is exactly the one drawn; in others it is somewhat
    higher.

    Returns:
        `torch.FloatTensor` of shape `(B, G, 2, m, K, 2)`, dx and dy as fractions of the image, first positive, then
        negative.
    """
    height, width = image_size
    scale = (targets.area * (height * width)).sqrt() / max(height, width)
    batch_size, num_slots, num_keypoints = targets.visibility.shape
    shape = (batch_size, num_groups, num_slots, num_keypoints)
    draws = {"generator": generator, "device": scale.device}
    ranges = (config.denoising_positive_similarity, config.denoising_negative_similarity)
    similarity = torch.stack([low + (high - low) * torch.rand(shape, **draws) for low, high in ranges], dim=2)
    angle = math.radians(config.denoising_max_angle) * torch.rand(similarity.shape, **draws)
    # Rounding may yield a similarity above 1.
    sigmas = keypoint_sigmas(config, targets.class_labels[:, None, None])
    distance = (-2 * similarity.log()).clamp(min=0).sqrt() * 2 * sigmas
    distance = distance * scale[:, None, None, :, None]
    return distance.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], dim=-1)
