"""Augmentation of samples, and its schedule over the epochs.

Geometric transforms are those of `torchvision.transforms.v2`, except for swapping left and right keypoints and for what
combines several images: mosaic, MixUp and CopyPaste.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvF

from .pose_datasets import Sample

# CopyPaste: images that people are taken from, people taken from each, and people pasted, each at most.
NUM_DONORS = MAX_CANDIDATES = MAX_PASTED = 3


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of samples. The defaults are those of DETRPose; a probability of 0 disables a transform.

    Args:
        mosaic: probability of a mosaic of the image and three random others.
        mosaic_side: shorter side of the four images, in pixels.
        mixup: probability of blending the image, mosaic or not, with another one; see `mix_up`. ECPose has 0.25.
        copy_paste: probability of blending people of other images into it instead; see `paste`. ECPose has 0.5.
        blend_range: range of the share of the image itself in MixUp, and of the pasted person in CopyPaste.
        zoom_out: probability of a black border in samples that are not mosaics.
        zoom_out_range: range of r; the border is (r - 1) times the size of the image on every side.
        flip: probability of a horizontal flip.
        jitter: probability of color jitter.
        jitter_strength: largest change of brightness, contrast and saturation (factors from 1 - s to 1 + s) and of the
            hue (up to s of the color circle, at most 0.5).
    """

    mosaic: float = 0.5
    mosaic_side: int = 320
    mixup: float = 0.0
    copy_paste: float = 0.0
    blend_range: tuple[float, float] = (0.45, 0.55)
    zoom_out: float = 0.5
    zoom_out_range: tuple[float, float] = (1.0, 2.5)
    flip: float = 0.5
    jitter: float = 0.5
    jitter_strength: float = 0.4

    def __post_init__(self):
        for field in ("mosaic", "mixup", "copy_paste", "zoom_out", "flip", "jitter"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"`{field}` must be a probability from 0 to 1, but got {getattr(self, field)}.")
        if self.mixup + self.copy_paste > 1:
            raise ValueError(
                f"`mixup` and `copy_paste` exclude each other, so that their sum must be at most 1, but got "
                f"{self.mixup} and {self.copy_paste}."
            )
        if not 0 <= self.blend_range[0] <= self.blend_range[1] <= 1:
            raise ValueError(f"`blend_range` must be two rising numbers from 0 to 1, but got {self.blend_range}.")
        if not 1 <= self.zoom_out_range[0] <= self.zoom_out_range[1]:
            raise ValueError(f"`zoom_out_range` must be two rising numbers from 1, but got {self.zoom_out_range}.")
        if not 0 <= self.jitter_strength <= 0.5:
            raise ValueError(f"`jitter_strength` must be from 0 to 0.5, but got {self.jitter_strength}.")
        if self.mosaic_side < 1:
            raise ValueError(f"`mosaic_side` must be at least 1 pixel, but got {self.mosaic_side}.")

    def only_flip_and_jitter(self) -> "Augmentation":
        """Returns the augmentation without the transforms that combine images or add a border."""
        return replace(self, mosaic=0, mixup=0, copy_paste=0, zoom_out=0)


class Phase(NamedTuple):
    """The augmentation from an epoch (counted from 0) until the next phase begins."""

    first_epoch: int
    augmentation: Augmentation
    multi_scale: bool


FULL = Augmentation()
NO_AUGMENTATION = Augmentation(mosaic=0, zoom_out=0, flip=0, jitter=0)

UNCHANGED = (Phase(0, NO_AUGMENTATION, False),)


def paper_phases(
    num_epochs: int,
    warmup_epochs: int | None = None,
    mosaic_end: int | None = None,
    final_start: int | None = None,
    augmentation: Augmentation = FULL,
    final: Augmentation = NO_AUGMENTATION,
) -> tuple[Phase, ...]:
    """Returns the augmentation schedule of the paper, in four phases.

    Only flip and jitter at first, then everything, then everything but mosaics; neither augmentation nor multi-scale in
    the last epochs. The published recipes set all three boundaries; the defaults follow their proportions.

    Args:
        num_epochs: total number of epochs.
        warmup_epochs: epochs of the first phase; 5, or a tenth of all epochs if that is less.
        mosaic_end: first epoch without mosaic; by default halfway through, but not before the first phase ends.
        final_start: first epoch of the last phase, never reached if it is `num_epochs` or more; 4 epochs before the
            end, or a tenth of all epochs if that is less.
        augmentation: the augmentation of the second phase; the first and the third have parts of it.
        final: the augmentation of the last phase.

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
        Phase(0, augmentation.only_flip_and_jitter(), True),
        Phase(warmup_epochs, augmentation, True),
        Phase(mosaic_end, replace(augmentation, mosaic=0), True),
        Phase(final_start, final, False),
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
    With `crop`, it has an axis more: the image processor's outputs for all parts of the image.

    Args:
        dataset: a `PoseDataset`, or anything that yields the same samples.
        image_processor: the image processor of the model.
        crop: returns the parts of an image (3, height, width) that the model shall see; the whole if not given.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_processor: Callable[..., dict[str, torch.Tensor]],
        crop: Callable[[torch.Tensor], list[torch.Tensor]] | None = None,
    ):
        self.dataset = dataset
        self.image_processor = image_processor
        self.crop = crop

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        image = sample["image"].as_subclass(torch.Tensor)
        images = [image] if self.crop is None else self.crop(image)
        inputs = self.image_processor(images=images, input_data_format="channels_first", return_tensors="pt")
        pixels = inputs["pixel_values"][0] if self.crop is None else inputs["pixel_values"]
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

    The recipe lists mosaic, MixUp or CopyPaste, zoom-out, flip, jitter and resizing in this order. Since the border is
    centered, it can just as well be added after flipping; jitter after resizing processes far fewer pixels.

    Args:
        dataset: the source of the sample and of the others that are combined with it.
        index: index of the sample.
        augmentation: the augmentation to apply.
        size_hw: height and width of the result in pixels.
        flip_permutation: for each keypoint of a mirrored image, the index it had before.
    """
    sample, is_mosaic = _image_or_mosaic(dataset, index, augmentation)
    if augmentation.mixup or augmentation.copy_paste:
        sample = _mixed_or_pasted(sample, dataset, augmentation)
    has_border = not is_mosaic and _happens(augmentation.zoom_out)
    ratio = _uniform(augmentation.zoom_out_range) if has_border else 1.0
    if _happens(augmentation.flip):
        sample = flip(sample, flip_permutation)
    sample = zoom_out(sample, ratio, size_hw)
    if _happens(augmentation.jitter):
        strength = augmentation.jitter_strength
        sample = {**sample, "image": v2.ColorJitter(strength, strength, strength, strength)(sample["image"])}
    return sample


def _happens(probability: float) -> bool:
    return torch.rand(()).item() < probability


def _uniform(limits: tuple[float, float]) -> float:
    return torch.empty(()).uniform_(*limits).item()


def _image_or_mosaic(dataset: Dataset, index: int, augmentation: Augmentation) -> tuple[Sample, bool]:
    """Returns a sample, alone or in a mosaic with three random others, and whether it is a mosaic."""
    if not _happens(augmentation.mosaic):
        return dataset[index], False
    others = torch.randint(len(dataset), (3,)).tolist()
    return mosaic([dataset[i] for i in (index, *others)], augmentation.mosaic_side), True


def _mixed_or_pasted(sample: Sample, dataset: Dataset, augmentation: Augmentation) -> Sample:
    """Applies MixUp, CopyPaste or neither.

    ECPose keeps the last 50 images in each data-loading worker and takes the others from there. Here they are drawn
    from the whole dataset, like those of a mosaic, so that a sample does not depend on what its worker loaded before.
    """
    draw = torch.rand(()).item()
    if draw < augmentation.mixup:
        other, _ = _image_or_mosaic(dataset, int(torch.randint(len(dataset), ())), augmentation)
        return mix_up(sample, other, _uniform(augmentation.blend_range))
    if draw < augmentation.mixup + augmentation.copy_paste:
        for patch in _random_patches(dataset, augmentation):
            free_hw = [a - b for a, b in zip(_size_hw(sample), _size_hw(patch), strict=True)]
            if min(free_hw) >= 0:  # larger ones do not fit
                top, left = (int(torch.randint(free + 1, ())) for free in free_hw)
                sample = paste(sample, patch, (top, left), _uniform(augmentation.blend_range))
    return sample


def _random_patches(dataset: Dataset, augmentation: Augmentation) -> list[Sample]:
    """Returns up to three people of three random images, cut out.

    Where an image would be a mosaic, the people have the size that they have in a mosaic.
    """
    candidates = []
    for index in torch.randint(len(dataset), (NUM_DONORS,)).tolist():
        donor = dataset[index]
        if _happens(augmentation.mosaic):
            donor = resize(donor, _shorter_side_size(donor["image"], augmentation.mosaic_side))
        candidates += [(donor, person) for person in torch.randperm(len(donor["area"]))[:MAX_CANDIDATES].tolist()]
    chosen = torch.randperm(len(candidates))[:MAX_PASTED].tolist()
    return [patch for patch in (cut_out(*candidates[i]) for i in chosen) if min(_size_hw(patch)) > 0]


def _size_hw(sample: Sample) -> tuple[int, int]:
    return tuple(sample["image"].shape[-2:])


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
    corners = ((0, 0), (0, cell_w), (cell_h, 0), (cell_h, cell_w))
    for tile, corner in zip(tiles, corners, strict=True):
        _region(canvas, tile, corner).copy_(tile["image"])
    tiles = [_moved(tile, corner, canvas_hw) for tile, corner in zip(tiles, corners, strict=True)]
    return {**samples[0], **_people_of(tiles, canvas_hw), "image": tv_tensors.Image(canvas)}


def mix_up(sample: Sample, other: Sample, share: float) -> Sample:
    """Blends two samples and keeps the people of both (MixUp).

    Args:
        sample: the first sample, whose size, `image_id` and `orig_size` remain.
        other: the second sample, resized to the first without keeping its aspect ratio; x, y and areas are scaled
            accordingly.
        share: share of the first image in every pixel, from 0 to 1; the second has the rest.
    """
    other = resize(other, _size_hw(sample))
    image = tv_tensors.Image(_blend(sample["image"], other["image"], share))
    return {**sample, **_people_of([sample, other], _size_hw(sample)), "image": image}


def cut_out(sample: Sample, person: int) -> Sample:
    """Returns the box of one person as a sample.

    The image has all pixels that the box touches, and none if the box is empty. Keypoints outside the box are not
    labeled. The area is that of the box.

    Args:
        sample: the sample.
        person: index of the person.
    """
    boxes = tvF.clamp_bounding_boxes(sample["boxes"])
    one = {key: sample[key][person : person + 1] for key in ("keypoints", "visibility", "class_labels")}
    box = boxes[person]
    is_inside = ((one["keypoints"] >= box[:2]) & (one["keypoints"] <= box[2:])).all(-1)
    one["keypoints"] = tv_tensors.wrap(one["keypoints"], like=sample["keypoints"])
    one |= {"boxes": tv_tensors.wrap(box[None], like=boxes), "image": sample["image"]}
    (left, top), (right, bottom) = map(math.floor, box[:2].tolist()), map(math.ceil, box[2:].tolist())
    cut = {key: tvF.crop(one[key], top, left, bottom - top, right - left) for key in ("image", "keypoints", "boxes")}
    area = (box[2:] - box[:2]).prod()[None]
    return {**sample, **one, **cut, "visibility": one["visibility"] * is_inside, "area": area}


def paste(sample: Sample, patch: Sample, top_left: tuple[int, int], share: float) -> Sample:
    """Blends a patch into a sample and adds its people (CopyPaste). People underneath keep all their keypoints.

    Args:
        sample: the sample.
        patch: a smaller sample, such as a person from `cut_out`.
        top_left: row and column of the patch's top left pixel.
        share: share of the patch in its pixels, from 0 to 1; the image has the rest.
    """
    image = sample["image"].as_subclass(torch.Tensor).clone()
    region = _region(image, patch, top_left)
    region.copy_(_blend(patch["image"], region, share))
    people = _people_of([sample, _moved(patch, top_left, _size_hw(sample))], _size_hw(sample))
    return {**sample, **people, "image": tv_tensors.Image(image)}


def _blend(image: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Returns `share` of an image and the rest of another, rounded to uint8."""
    image, other = (pixels.as_subclass(torch.Tensor).float() for pixels in (image, other))
    return torch.lerp(other, image, share).round_().to(torch.uint8)


def _region(canvas: torch.Tensor, sample: Sample, top_left: tuple[int, int]) -> torch.Tensor:
    """Returns the view of a canvas that a sample covers."""
    (top, left), (height, width) = top_left, _size_hw(sample)
    return canvas[:, top : top + height, left : left + width]


def _moved(sample: Sample, top_left: tuple[int, int], canvas_hw: tuple[int, int]) -> Sample:
    """Returns a sample whose people are where they are on a canvas."""
    (top, left), (height, width) = top_left, _size_hw(sample)
    padding = [left, top, canvas_hw[1] - left - width, canvas_hw[0] - top - height]
    return {**sample, **{key: tvF.pad(sample[key], padding) for key in ("keypoints", "boxes")}}


def _people_of(samples: list[Sample], canvas_hw: tuple[int, int]) -> Sample:
    """Returns the people of several samples of one size as fields of one sample."""
    keys = ("keypoints", "visibility", "class_labels", "area", "boxes")
    people = {key: torch.cat([sample[key] for sample in samples]) for key in keys}
    people["keypoints"] = tv_tensors.KeyPoints(people["keypoints"], canvas_size=canvas_hw)
    people["boxes"] = tv_tensors.BoundingBoxes(people["boxes"], format="XYXY", canvas_size=canvas_hw)
    return people


def _shorter_side_size(image: torch.Tensor, side: int) -> tuple[int, int]:
    height, width = image.shape[-2:]
    shorter = min(height, width)
    return (side * height // shorter, side * width // shorter)
