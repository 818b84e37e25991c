"""Training losses of DETRPose: keypoint similarity, Hungarian matching, union matching, and the losses themselves.

Every decoder layer is supervised, and so are the initial predictions. These S output sets are stacked, so that each
cost and each loss is computed once for all of them. Losses are computed in float32 whatever the precision of the model.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from .denoising import DenoisingQueries, positive_matches
from .pose_targets import IGNORED, PoseTargets, keypoint_sigmas, pad_targets, visibility_targets

# Keeps similarities above 0, and avoids division by 0 for people without a labeled keypoint.
_KS_EPSILON = 1e-6


class OutputSets(NamedTuple):
    """Predictions of several output sets, stacked and in float32.

    Args:
        logits (`torch.FloatTensor` of shape `(S, B, Q, C)`): class scores before the sigmoid.
        keypoints (`torch.FloatTensor` of shape `(S, B, Q, K, 2)`): x, y as fractions of the image.
    """

    logits: Tensor
    keypoints: Tensor


def pose_estimation_loss(
    output_sets: Mapping[str, Mapping[str, Tensor]],
    labels: list[Mapping[str, Tensor]],
    config,
    denoising_queries: DenoisingQueries | None = None,
    denoising_output_sets: Mapping[str, Mapping[str, Tensor]] | None = None,
    divisors: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the weighted training losses of a batch (paper, section on losses).

    Classification uses the matching of each set; the two keypoint losses use the union matching of all sets. Both
    normalizers, the number of people for classification and of union matches for keypoints, are averaged over processes
    and at least 1, so that every person has the same weight in the averaged gradients, however people are distributed
    over processes. Denoising losses are normalized by the same number of people times the groups of this process.

    Args:
        output_sets: by the name of each set, "logits" (B, Q, C) and "pred_keypoints" (B, Q, K, 2), x, y as fractions of
            the image. "" is the last decoder layer, "0", "1", ... are the earlier ones; there are also "initial" and
            "encoder". With a visibility head, the last layer also has "pred_visibility" (B, Q, K, 3).
        labels: one dictionary per image with `class_labels` (n,), `keypoints` (n, K, 3), x, y as fractions of the image
            and visibility, and `area` (n,) as fractions of the image area. They are not checked here, see
            `validate_labels`.
        config (`DETRPoseConfig`): provides the weights of costs and losses, and the sigmas.
        denoising_queries: the queries of `make_denoising_queries`, or `None`.
        denoising_output_sets: their outputs, (B, P, ...), of "initial" and of every decoder layer "0", ..., "L-1".
        divisors (`torch.FloatTensor` of shape `(2,)`): the two divisors, where gradients are accumulated over several
            batches: `average_over_processes` of the sum of their `count_matches`. Of this batch if not given.

    Returns:
        The sum of all weighted losses, and each of them by name: "loss_class", "loss_keypoints" and "loss_similarity",
        followed by "_{name}" of the set (nothing for the last layer) or "_denoising_{name}"; with a visibility head,
        "loss_visibility".

    Raises:
        ValueError: if a matching cost is not finite, or the denoising arguments do not match each other or the labels.
    """
    _check_denoising_arguments(labels, denoising_queries, denoising_output_sets)
    targets = pad_targets(labels)
    outputs = stack_output_sets(output_sets)
    matches = match_people(outputs, targets, config)
    union = union_matches(matches, num_people=targets.is_person.shape[1])
    if divisors is None:
        divisors = average_over_processes(_count(targets, union))
    num_people, num_union_matches = divisors

    losses = _losses_by_set(outputs, targets.at(matches), targets.at(union), num_people, num_union_matches, config)
    loss_dict = _named_losses(losses, [f"_{name}" if name else "" for name in output_sets])
    if "pred_visibility" in output_sets[""]:
        loss = visibility_loss(output_sets[""]["pred_visibility"], targets.at(union), config) / num_union_matches
        loss_dict["loss_visibility"] = config.weight_loss_visibility * loss
    if denoising_queries is not None:
        outputs = stack_output_sets(denoising_output_sets)
        num_groups = denoising_queries.num_groups
        matched = targets.at(positive_matches(targets, num_groups))
        num_positives = num_people * num_groups
        losses = _losses_by_set(outputs, matched, matched, num_positives, num_positives, config)
        loss_dict |= _named_losses(losses, [f"_denoising_{name}" for name in denoising_output_sets])
    return torch.stack(list(loss_dict.values())).sum(), loss_dict


@torch.no_grad()
def count_matches(
    output_sets: Mapping[str, Mapping[str, Tensor]], labels: list[Mapping[str, Tensor]], config
) -> Tensor:
    """Counts what the losses of a batch are divided by; see `pose_estimation_loss` for the arguments.

    Returns:
        `torch.LongTensor` of shape `(2,)`: people with a labelled keypoint, and union matches.
    """
    targets = pad_targets(labels)
    matches = match_people(stack_output_sets(output_sets), targets, config)
    return _count(targets, union_matches(matches, num_people=targets.is_person.shape[1]))


def stack_output_sets(output_sets: Mapping[str, Mapping[str, Tensor]]) -> OutputSets:
    """Stacks the "logits" and "pred_keypoints" of all sets, in order and in float32."""
    logits = torch.stack([outputs["logits"] for outputs in output_sets.values()])
    keypoints = torch.stack([outputs["pred_keypoints"] for outputs in output_sets.values()])
    return OutputSets(logits.float(), keypoints.float())


def keypoint_similarity(
    pred_keypoints: Tensor, keypoints: Tensor, visibility: Tensor, area: Tensor, sigmas: Tensor
) -> Tensor:
    """Computes KS = Σ v · exp(-d² / (2 · area · (2σ)²)) / Σ v, COCO's object keypoint similarity (KS in the paper).

    Leading axes are broadcast: add axes to compare each prediction with each person.

    Args:
        pred_keypoints (`torch.FloatTensor` of shape `(..., K, 2)`): x, y as fractions of the image.
        keypoints (`torch.FloatTensor` of shape `(..., K, 2)`): labeled x, y as fractions of the image.
        visibility (`torch.FloatTensor` of shape `(..., K)`): 1 where labeled, else 0.
        area (`torch.FloatTensor` of shape `(...)`): areas as fractions of the image area, above 0.
        sigmas (`torch.FloatTensor` of shape `(..., K)`): falloff of each keypoint.

    Returns:
        `torch.FloatTensor` of shape `(...)`, from 1e-6 to 1.
    """
    # Summing over an axis of length two is several times slower than adding.
    dx, dy = (pred_keypoints - keypoints).unbind(-1)
    variance = area.unsqueeze(-1) * (2 * sigmas).square()
    exponent = -(dx.square() + dy.square()) / (2 * variance)
    # Below -80, exp yields subnormal numbers, which contribute nothing but make a CPU ten times slower.
    similarity = exponent.clamp(min=-80).exp() * visibility
    return (similarity.sum(-1) / (visibility.sum(-1) + _KS_EPSILON)).clamp(min=_KS_EPSILON)


# Matching


@torch.no_grad()
def match_people(outputs: OutputSets, targets: PoseTargets, config) -> Tensor:
    """Matches the people of each image to queries at minimum total cost, for each output set.

    Args:
        outputs: predictions of S sets.
        targets: the people, of shape (B, M).
        config (`DETRPoseConfig`): provides the fields whose names begin with `matcher`.

    Returns:
        `torch.LongTensor` of shape `(S, B, Q)`: index of the person matched to each query, or -1.

    Raises:
        ValueError: if a cost is not finite.
    """
    costs = matching_costs(outputs, targets, config)
    return assign(costs, targets.is_person).to(costs.device, non_blocking=True)


def matching_costs(outputs: OutputSets, targets: PoseTargets, config) -> Tensor:
    """Computes the cost of matching each query to each person: the weighted sum of focal cost, L1 distance and 1 - KS.

    Returns:
        `torch.FloatTensor` of shape `(S, B, Q, M)`.
    """
    pred_keypoints = outputs.keypoints.unsqueeze(3)
    keypoints, visibility = targets.keypoints.unsqueeze(1), targets.visibility.unsqueeze(1)
    sigmas = keypoint_sigmas(config, targets.class_labels.unsqueeze(1))
    similarity = keypoint_similarity(pred_keypoints, keypoints, visibility, targets.area.unsqueeze(1), sigmas)
    distance = _labelled_l1_distance(pred_keypoints, keypoints, visibility)
    class_cost = focal_cost(outputs.logits, config.matcher_alpha, config.matcher_gamma)
    people_labels = targets.class_labels.unsqueeze(1).expand_as(distance)
    return (
        config.matcher_class_cost * class_cost.gather(-1, people_labels)
        + config.matcher_keypoints_cost * distance
        + config.matcher_similarity_cost * (1 - similarity)
    )


def focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Computes α (1-p)^γ (-ln p) - (1-α) p^γ (-ln (1-p)): the focal loss of a match minus that of no match."""
    score = logits.sigmoid()
    matched = -alpha * (1 - score) ** gamma * (score + 1e-8).log()
    unmatched = -(1 - alpha) * score**gamma * (1 - score + 1e-8).log()
    return matched - unmatched


def assign(costs: Tensor, is_person: Tensor) -> Tensor:
    """Finds the minimum-cost assignments, with a single transfer from the device.

    Args:
        costs (`torch.FloatTensor` of shape `(S, B, Q, M)`): cost of matching each query to each person.
        is_person (`torch.BoolTensor` of shape `(B, M)`): the columns to assign; the others are padding.

    Returns:
        `torch.LongTensor` of shape `(S, B, Q)` on the host: index of a person, or -1.

    Raises:
        ValueError: if a cost is not finite.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and only training needs it

    # The mask is appended to the costs as a row, because each transfer makes the host wait for the device.
    mask = is_person[:, None].expand(len(costs), -1, 1, -1)
    table = torch.cat([costs, mask.to(costs.dtype)], dim=2).cpu().numpy()
    if not np.isfinite(table).all():
        bad_set, image, query, _ = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(
            f"the matching costs are not finite (first in output set {bad_set}, image {image}, query {query}): the "
            "model's outputs hold NaN or infinity. Training has diverged: lower the learning rate or clip gradients."
        )
    matches = np.full(costs.shape[:-1], -1, dtype=np.int64)
    for index in np.ndindex(*matches.shape[:2]):
        people = table[index][-1].nonzero()[0]
        query, column = linear_sum_assignment(table[index][:-1, people])
        matches[index][query] = people[column]
    return torch.from_numpy(matches)


def union_matches(matches: Tensor, num_people: int) -> Tensor:
    """Merges the matches of all sets: each query keeps the person most often matched to it.

    Ties go to the person with the lowest index. Several queries may keep the same person.

    Args:
        matches (`torch.LongTensor` of shape `(S, B, Q)`): index of a person in each set, or -1.
        num_people: M, greater than every index.

    Returns:
        `torch.LongTensor` of shape `(B, Q)`: index of a person, -1 for queries that are unmatched in all sets.
    """
    people = torch.arange(num_people, device=matches.device)
    votes = (matches.unsqueeze(-1) == people).sum(0)
    # argmax returns the first of equal values.
    return torch.where(votes.any(-1), votes.argmax(-1), -1)


def average_over_processes(counts: Tensor) -> Tensor:
    """Averages counts over the processes of distributed training, in one all-reduce; at least 1 each, in float32."""
    counts = counts.float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
        counts = counts / torch.distributed.get_world_size()
    return counts.clamp(min=1)


# Losses: each takes the outputs of S sets, the person matched to each query, the sigmas of these people and the
# configuration, and returns one sum per set, of shape (S,).


def ksvf_loss(outputs: OutputSets, matched: PoseTargets, sigmas: Tensor, config) -> Tensor:
    """Keypoint similarity varifocal loss: cross entropy against the KS of the match (paper, KSVF).

    The matched label of a query has target and weight KS; every other label has target 0 and weight α p^γ. KS and
    weights are not differentiated.
    """
    is_label = _is_matched_label(outputs, matched)
    with torch.no_grad():
        similarity = _matched_similarity(outputs, matched, sigmas).unsqueeze(-1) * is_label
        background = config.focal_loss_alpha * outputs.logits.sigmoid() ** config.focal_loss_gamma
        weight = torch.where(is_label, similarity, background)
    loss = F.binary_cross_entropy_with_logits(outputs.logits, similarity, weight, reduction="none")
    return loss.flatten(1).sum(1)


def focal_loss(outputs: OutputSets, matched: PoseTargets, sigmas: Tensor, config) -> Tensor:
    """Sigmoid focal loss: α (1-p)^γ (-ln p) on the matched label, (1-α) p^γ (-ln (1-p)) on the others."""
    is_label = _is_matched_label(outputs, matched).expand_as(outputs.logits).float()
    alpha, gamma = config.focal_loss_alpha, config.focal_loss_gamma
    return sigmoid_focal_loss(outputs.logits, is_label, alpha, gamma).flatten(1).sum(1)


def keypoints_loss(outputs: OutputSets, matched: PoseTargets, sigmas: Tensor, config) -> Tensor:
    """L1 distance of the labeled coordinates, as a fraction of the image."""
    return _labelled_l1_distance(outputs.keypoints, matched.keypoints, matched.visibility).flatten(1).sum(1)


def similarity_loss(outputs: OutputSets, matched: PoseTargets, sigmas: Tensor, config) -> Tensor:
    """1 - KS of the matches."""
    similarity = _matched_similarity(outputs, matched, sigmas)
    return ((1 - similarity) * matched.is_person).flatten(1).sum(1)


def visibility_loss(pred_visibility: Tensor, matched: PoseTargets, config) -> Tensor:
    """Sum over the matches of the cross entropy of their keypoints' visibility, the mean over K.

    Args:
        pred_visibility (`torch.FloatTensor` of shape `(..., K, 3)`): logits of absent, occluded and visible.
        matched: the person matched to each query, of shape (...).
        config (`DETRPoseConfig`): the configuration, see [`visibility_targets`].

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    logits, values = pred_visibility.float().flatten(0, -2), visibility_targets(matched, config).flatten()
    return F.cross_entropy(logits, values, ignore_index=IGNORED, reduction="sum") / config.num_keypoints


CLASSIFICATION_LOSSES = {"ksvf": ksvf_loss, "focal": focal_loss}
KEYPOINT_LOSSES = {"keypoints": keypoints_loss, "similarity": similarity_loss}


def _count(targets: PoseTargets, union: Tensor) -> Tensor:
    return torch.stack([targets.is_person.sum(), (union >= 0).sum()])


def _losses_by_set(outputs, own_matched, union_matched, num_people, num_matches, config) -> dict[str, Tensor]:
    """Returns the weighted losses "class", "keypoints" and "similarity" of S sets, each of shape (S,)."""
    sigmas = keypoint_sigmas(config, own_matched.class_labels)
    classification_loss = CLASSIFICATION_LOSSES[config.classification_loss]
    losses = {"class": classification_loss(outputs, own_matched, sigmas, config) / num_people}
    sigmas = keypoint_sigmas(config, union_matched.class_labels)
    for name, loss in KEYPOINT_LOSSES.items():
        losses[name] = loss(outputs, union_matched, sigmas, config) / num_matches
    return {name: getattr(config, f"weight_loss_{name}") * loss for name, loss in losses.items()}


def _named_losses(losses: dict[str, Tensor], suffixes: list[str]) -> dict[str, Tensor]:
    return {
        f"loss_{name}{suffix}": value
        for name, values in losses.items()
        for suffix, value in zip(suffixes, values.unbind(), strict=True)
    }


def _labelled_l1_distance(pred_keypoints: Tensor, keypoints: Tensor, visibility: Tensor) -> Tensor:
    dx, dy = (pred_keypoints - keypoints).abs().unbind(-1)
    return ((dx + dy) * visibility).sum(-1)


def _matched_similarity(outputs: OutputSets, matched: PoseTargets, sigmas: Tensor) -> Tensor:
    return keypoint_similarity(outputs.keypoints, matched.keypoints, matched.visibility, matched.area, sigmas)


def _is_matched_label(outputs: OutputSets, matched: PoseTargets) -> Tensor:
    """Returns a mask (..., B, Q, C) of the label of the person matched to each query, all False if there is none."""
    classes = torch.arange(outputs.logits.shape[-1], device=outputs.logits.device)
    return (matched.class_labels.unsqueeze(-1) == classes) & matched.is_person.unsqueeze(-1)


def _check_denoising_arguments(labels, denoising_queries, denoising_output_sets) -> None:
    if (denoising_queries is None) != (denoising_output_sets is None):
        raise ValueError("give both `denoising_queries` and `denoising_output_sets`, or neither.")
    if denoising_queries is None:
        return
    num_people = max(len(image["class_labels"]) for image in labels)
    if denoising_queries.num_slots != num_people:
        raise ValueError(
            f"`denoising_queries` have {denoising_queries.num_slots} slots for people in each group, but the labels "
            f"have up to {num_people} people in an image: both must come from the same labels."
        )
