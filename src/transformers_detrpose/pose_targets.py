"""Labels as dense arrays: what denoising and losses aim at.

A batch of labels becomes `PoseTargets`, padded to the image with most people, so that neither the noise nor the losses
need a loop over people.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass
class PoseTargets:
    """People as dense float32 arrays: those of each image (`pad_targets`) or those matched to each query (`at`).

    The leading shape is (B, M) for the people of a batch and (..., B, Q) for queries. An entry that stands for nobody
    has no visible keypoint, an area of 1 and the class 0, so that it is harmless in any sum weighted by visibility.

    Args:
        class_labels (`torch.LongTensor` of shape `(...)`): class ids.
        keypoints (`torch.FloatTensor` of shape `(..., K, 2)`): x, y as image fractions, 0 where unlabelled.
        visibility (`torch.FloatTensor` of shape `(..., K)`): 1 where labelled, else 0.
        area (`torch.FloatTensor` of shape `(...)`): areas as fractions of the image area.
        is_person (`torch.BoolTensor` of shape `(...)`): entries that stand for a person with a labelled keypoint.
    """

    class_labels: torch.Tensor
    keypoints: torch.Tensor
    visibility: torch.Tensor
    area: torch.Tensor
    is_person: torch.Tensor

    def at(self, matches: torch.Tensor) -> "PoseTargets":
        """Returns the person matched to each query.

        Args:
            matches (`torch.LongTensor` of shape `(..., B, Q)`): index of a person among the M of the image, or -1.
        """
        index = matches.clamp(min=0)
        image = torch.arange(index.shape[-2], device=index.device).unsqueeze(-1)
        is_person = (matches >= 0) & self.is_person[image, index]
        return PoseTargets(
            class_labels=self.class_labels[image, index],
            keypoints=self.keypoints[image, index],
            visibility=self.visibility[image, index] * is_person.unsqueeze(-1),
            area=self.area[image, index],
            is_person=is_person,
        )


def pad_targets(labels: list[Mapping[str, torch.Tensor]]) -> PoseTargets:
    """Pads the people of a batch to M, the most that one image has (at least 1).

    Args:
        labels: one dictionary per image with `class_labels` (n,), `keypoints` (n, K, 3) = x, y as image fractions and
            visibility (0 unlabelled, 1 or 2 labelled), and `area` (n,) as fractions of the image area.

    Returns:
        `PoseTargets` of shape (B, M). People without a labelled keypoint are no targets: `is_person` is False.
    """
    keypoints = _pad([image["keypoints"] for image in labels]).float()
    labelled = keypoints[..., 2] > 0
    is_person = labelled.any(-1)
    return PoseTargets(
        class_labels=_pad([image["class_labels"] for image in labels]),
        keypoints=keypoints[..., :2].masked_fill(~labelled.unsqueeze(-1), 0.0),
        visibility=labelled.float(),
        area=_pad([image["area"] for image in labels]).float().masked_fill(~is_person, 1.0),
        is_person=is_person,
    )


def keypoint_sigmas(config, device: torch.device | str | None = None) -> torch.Tensor:
    """Returns the fall-offs σ of the configured skeleton as a `torch.FloatTensor` of shape `(K,)`."""
    # A copy that blocks would make a GPU wait for the host in every step.
    return torch.tensor(config.keypoint_schema.sigmas).to(device, non_blocking=True)


def _pad(tensors: list[torch.Tensor]) -> torch.Tensor:
    padded = pad_sequence(list(tensors), batch_first=True)
    # One empty entry where the whole batch is empty lets everything downstream index without exceptions.
    return padded if padded.shape[1] else padded.new_zeros(padded.shape[0], 1, *padded.shape[2:])
