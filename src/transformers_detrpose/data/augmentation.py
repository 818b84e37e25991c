"""Augmentation of samples, and its schedule over the epochs.

Geometric transforms are those of `torchvision.transforms.v2`, except for the mosaic and for swapping left and right
keypoints.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvF

from .pose_datasets import Sample


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of samples. The defaults are those of the paper; a probability of 0 disables a transform.

    Args:
        mosaic: probability of a mosaic of the image and three random others.
        mosaic_side: shorter side of the four images, in pixels.
        zoom_out: probability of a black border in samples that are not mosaics.
        zoom_out_range: range of r; the border is (r - 1) times the size of the image on every side.
        flip: probability of a horizontal flip.
        jitter: probability of color jitter.
        jitter_strength: largest change of brightness, contrast and saturation (factors from 1 - s to 1 + s) and of the
            hue (up to s of the color circle, at most 0.5).
    """

    mosaic: float = 0.5
    mosaic_side: int = 320
    zoom_out: float = 0.5
    zoom_out_range: tuple[float, float] = (1.0, 2.5)
    flip: float = 0.5
    jitter: float = 0.5
    jitter_strength: float = 0.4

    def __post_init__(self):
        for field in ("mosaic", "zoom_out", "flip", "jitter"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"`{field}` must be a probability from 0 to 1, but got {getattr(self, field)}.")
        if not 1 <= self.zoom_out_range[0] <= self.zoom_out_range[1]:
            raise ValueError(f"`zoom_out_range` must be two rising numbers from 1, but got {self.zoom_out_range}.")
        if not 0 <= self.jitter_strength <= 0.5:
            raise ValueError(f"`jitter_strength` must be from 0 to 0.5, but got {self.jitter_strength}.")
        if self.mosaic_side < 1:
            raise ValueError(f"`mosaic_side` must be at least 1 pixel, but got {self.mosaic_side}.")


class Phase(NamedTuple):
    """The augmentation from an epoch (counted from 0) until the next phase begins."""

    first_epoch: int
    augmentation: Augmentation
    multi_scale: bool


FULL = Augmentation()
WITHOUT_MOSAIC = Augmentation(mosaic=0)
ONLY_FLIP_AND_JITTER = Augmentation(mosaic=0, zoom_out=0)
NO_AUGMENTATION = Augmentation(mosaic=0, zoom_out=0, flip=0, jitter=0)

UNCHANGED = (Phase(0, NO_AUGMENTATION, False),)


def paper_phases(
    num_epochs: int, warmup_epochs: int | None = None, mosaic_end: int | None = None, final_start: int | None = None
) -> tuple[Phase, ...]:
    """Returns the augmentation schedule of the paper, in four phases.

    Neither mosaic nor zoom-out at first, then both, then zoom-out without mosaic; neither augmentation nor multi-scale
    in the last epochs. The published recipes set all three boundaries; the defaults follow their proportions.

    Args:
        num_epochs: total number of epochs.
        warmup_epochs: epochs of the first phase; 5, or a tenth of all epochs if that is less.
        mosaic_end: first epoch without mosaic; by default halfway through, but not before the first phase ends.
        final_start: first epoch of the last phase, never reached if it is `num_epochs` or more; 4 epochs before the
            end, or a tenth of all epochs if that is less.

    Raises:
        ValueError: if the phases are not in order.
    """
    warmup_epochs = min(5, num_epochs // 10) if warmup_epochs is None else warmup_epochs
    final_start = num_epochs - min(4, num_epochs // 10) if final_start is None else final_start
    mosaic_end = min(max(num_epochs // 2, warmup_epochs), final_start) if mosaic_end is None else mosaic_end
    if num_epochs < 1 or not 0 <= warmup_epochs <= mosaic_end <= final_start:
        raise ValueError(
            f"the phases of {num_epochs} epochs must begin in order, but full augmentation begins in epoch "
            f"{warmup_epochs}, mosaic ends in epoch {mosaic_end} and the last phase begins in epoch {final_start}."
        )
    return (
        Phase(0, ONLY_FLIP_AND_JITTER, True),
        Phase(warmup_epochs, FULL, True),
        Phase(mosaic_end, WITHOUT_MOSAIC, True),
        Phase(final_start, NO_AUGMENTATION, False),
    )


def phase_at(phases: tuple[Phase, ...], epoch: int) -> Phase:
    """Returns the last phase that begins at or before an epoch."""
    return [phase for phase in phases if phase.first_epoch <= epoch][-1]


class SampleKey(NamedTuple):
    """A sample of a training: index in the dataset, epoch, and target size (height, width)."""

    index: int
    epoch: int
    size_hw: tuple[int, int]


class TrainingSamples(Dataset):
    """A dataset whose samples are augmented and resized.

    `samples[index]` is the sample in the current epoch and the given size; `samples[SampleKey(...)]` in any other. It
    depends only on the seed, the epoch, the index and the size, so that neither the number of workers and processes nor
    an interruption changes a training.

    Args:
        dataset: a `PoseDataset`, or anything that yields the same samples.
        size_hw: height and width in pixels, or one number for both.
        phases: the augmentation schedule; see `paper_phases`.
        seed: random seed, at least 0.
        flip_permutation: `KeypointSchema.flip_permutation`; that of `dataset.schema` if not given.
    """

    def __init__(
        self,
        dataset: Dataset,
        size_hw: tuple[int, int] | int = 640,
        phases: tuple[Phase, ...] = UNCHANGED,
        seed: int = 0,
        flip_permutation: tuple[int, ...] | None = None,
    ):
        if not phases or phases[0].first_epoch != 0 or list(phases) != sorted(phases, key=lambda p: p.first_epoch):
            raise ValueError(f"`phases` must begin with epoch 0 and be in order, but got {phases}.")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, but got {seed}.")
        self.dataset = dataset
        self.size_hw = as_size_hw(size_hw)
        self.phases = tuple(phases)
        self.seed = seed
        self.flip_permutation = dataset.schema.flip_permutation if flip_permutation is None else flip_permutation
        # Shared memory, so that persistent data-loading workers see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """`int`: the current epoch, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int):
        """Sets the current epoch; accelerate's data loaders and transformers' `Trainer` call this."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index, epoch, size_hw = key if isinstance(key, tuple) else (key, self.epoch, self.size_hw)
        augmentation = phase_at(self.phases, epoch).augmentation
        with seeded(self.seed, epoch, index):
            return augment(self.dataset, index, augmentation, size_hw, self.flip_permutation)


class EvaluationSamples(Dataset):
    """A dataset whose images are prepared by the image processor.

    The `image` of a sample is the float32 output of the image processor; people are scaled to its height and width.

    Args:
        dataset: a `PoseDataset`, or anything that yields the same samples.
        image_processor: the image processor of the model.
    """

    def __init__(self, dataset: Dataset, image_processor: Callable[..., dict[str, torch.Tensor]]):
        self.dataset = dataset
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        image = sample["image"].as_subclass(torch.Tensor)
        inputs = self.image_processor(images=image, input_data_format="channels_first", return_tensors="pt")
        pixels = inputs["pixel_values"][0]
        return resize(sample, tuple(pixels.shape[-2:]), lambda image, size_hw: pixels)


def as_size_hw(size: tuple[int, int] | int) -> tuple[int, int]:
    """Returns (height, width) in pixels, from both or from one number for both."""
    size_hw = (size, size) if isinstance(size, int) else tuple(size)
    if len(size_hw) != 2 or min(size_hw) < 1:
        raise ValueError(f"a size must be a positive number or (height, width) in pixels, but got {size!r}.")
    return size_hw


def seed_for(*numbers: int) -> int:
    """Returns a seed that hashes nonnegative numbers, so that nearby numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds PyTorch's CPU generator, which torchvision uses, and restores it afterwards."""
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would also seed the GPUs during training.
        torch.default_generator.manual_seed(seed_for(*numbers))
        yield


def augment(
    dataset: Dataset,
    index: int,
    augmentation: Augmentation,
    size_hw: tuple[int, int],
    flip_permutation: tuple[int, ...],
) -> Sample:
    """Returns a sample, augmented with PyTorch's generator and resized (paper, Data augmentation).

    The recipe lists zoom-out, flip, jitter and resizing in this order. Since the border is centered, it can just as
    well be added after flipping; jitter after resizing processes far fewer pixels.

    Args:
        dataset: the source of the sample and of the others in a mosaic.
        index: index of the sample.
        augmentation: the augmentation to apply.
        size_hw: height and width of the result in pixels.
        flip_permutation: for each keypoint of a mirrored image, the index it had before.
    """
    ratio = 1.0
    if _happens(augmentation.mosaic):
        others = torch.randint(len(dataset), (3,)).tolist()
        sample = mosaic([dataset[i] for i in (index, *others)], augmentation.mosaic_side)
    else:
        sample = dataset[index]
        if _happens(augmentation.zoom_out):
            ratio = torch.empty(()).uniform_(*augmentation.zoom_out_range).item()
    if _happens(augmentation.flip):
        sample = flip(sample, flip_permutation)
    sample = zoom_out(sample, ratio, size_hw)
    if _happens(augmentation.jitter):
        strength = augmentation.jitter_strength
        sample = {**sample, "image": v2.ColorJitter(strength, strength, strength, strength)(sample["image"])}
    return sample


def _happens(probability: float) -> bool:
    return torch.rand(()).item() < probability


def resize(sample: Sample, size_hw: tuple[int, int], resize_image: Callable | None = None) -> Sample:
    """Resizes a sample without keeping its aspect ratio; x and y are scaled accordingly.

    Args:
        sample: the sample.
        size_hw: new height and width in pixels.
        resize_image: takes an image and a size and returns the resized image; torchvision's antialiased bilinear filter
            if not given.
    """
    height, width = sample["image"].shape[-2:]
    resized = {key: tvF.resize(sample[key], list(size_hw)) for key in ("keypoints", "boxes")}
    if resize_image is None:
        resized["image"] = tvF.resize(sample["image"], list(size_hw), antialias=True)
    else:
        resized["image"] = tv_tensors.Image(resize_image(sample["image"].as_subclass(torch.Tensor), size_hw))
    resized["area"] = sample["area"] * (size_hw[0] * size_hw[1] / (height * width))
    return {**sample, **resized}


def zoom_out(sample: Sample, ratio: float, size_hw: tuple[int, int]) -> Sample:
    """Adds a black border of (ratio - 1) times the size of the image on every side, and resizes.

    The image is resized before the border is added, so that no large intermediate image is created.

    Args:
        sample: the sample.
        ratio: 1 for no border.
        size_hw: height and width of the result in pixels.
    """
    inner_hw = [max(1, round(length / (2 * ratio - 1))) for length in size_hw]
    sample = resize(sample, tuple(inner_hw))
    if tuple(inner_hw) == tuple(size_hw):
        return sample
    top, left = ((outer - inner) // 2 for outer, inner in zip(size_hw, inner_hw, strict=True))
    padding = [left, top, size_hw[1] - inner_hw[1] - left, size_hw[0] - inner_hw[0] - top]
    return {**sample, **{key: tvF.pad(sample[key], padding) for key in ("image", "keypoints", "boxes")}}


def flip(sample: Sample, flip_permutation: tuple[int, ...]) -> Sample:
    """Flips a sample horizontally, and swaps left and right keypoints.

    Column x becomes column width - 1 - x. Flip before resizing: x indexes the pixels of the original image, whose
    centers are at x + 0.5.

    Args:
        sample: the sample.
        flip_permutation: for each keypoint of a mirrored image, the index it had before.
    """
    mirrored = {key: tvF.horizontal_flip(sample[key]) for key in ("image", "keypoints", "boxes")}
    order = torch.tensor(flip_permutation)
    keypoints = tv_tensors.wrap(mirrored["keypoints"][:, order], like=mirrored["keypoints"])
    return {**sample, **mirrored, "keypoints": keypoints, "visibility": sample["visibility"][:, order]}


def mosaic(samples: list[Sample], side: int) -> Sample:
    """Combines four samples, each in the top left corner of a cell of a 2x2 grid that is black elsewhere.

    Args:
        samples: four samples; `image_id` and `orig_size` are those of the first.
        side: shorter side in pixels to which each image is resized, keeping its aspect ratio. The cells have the
            largest height and width of the four.
    """
    tiles = [resize(sample, _shorter_side_size(sample["image"], side)) for sample in samples]
    cell_h = max(tile["image"].shape[-2] for tile in tiles)
    cell_w = max(tile["image"].shape[-1] for tile in tiles)
    canvas_hw = (2 * cell_h, 2 * cell_w)
    # The memory layout of Pillow images, which torchvision resizes several times faster than planar images.
    canvas = torch.zeros(*canvas_hw, 3, dtype=torch.uint8).permute(2, 0, 1)
    keypoints, boxes = [], []
    for tile, (top, left) in zip(tiles, ((0, 0), (0, cell_w), (cell_h, 0), (cell_h, cell_w)), strict=True):
        height, width = tile["image"].shape[-2:]
        canvas[:, top : top + height, left : left + width] = tile["image"]
        padding = [left, top, canvas_hw[1] - left - width, canvas_hw[0] - top - height]
        keypoints.append(tvF.pad(tile["keypoints"], padding))
        boxes.append(tvF.pad(tile["boxes"], padding))
    return {
        **samples[0],
        **{key: torch.cat([tile[key] for tile in tiles]) for key in ("visibility", "class_labels", "area")},
        "image": tv_tensors.Image(canvas),
        "keypoints": tv_tensors.KeyPoints(torch.cat(keypoints), canvas_size=canvas_hw),
        "boxes": tv_tensors.BoundingBoxes(torch.cat(boxes), format="XYXY", canvas_size=canvas_hw),
    }


def _shorter_side_size(image: torch.Tensor, side: int) -> tuple[int, int]:
    height, width = image.shape[-2:]
    shorter = min(height, width)
    return (side * height // shorter, side * width // shorter)
