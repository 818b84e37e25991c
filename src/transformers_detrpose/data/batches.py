"""Batches of samples as the model expects them, and data loaders that yield them."""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from ..labels import to_labels
from .augmentation import (
    UNCHANGED,
    EvaluationSamples,
    Phase,
    SampleKey,
    TrainingSamples,
    as_size_hw,
    phase_at,
    seed_for,
)
from .pose_datasets import Sample

# The other sizes as multiples of the base size, 0.75 to 1.25: for 640 they are 480 to 800 in steps of 32.
OTHER_SCALES = tuple(1 + 0.05 * step for step in range(-5, 6) if step)
# The largest stride of the model, which divides every size.
STRIDE = 32

# The image processor of a model, which is called here or, on the device, replaced by the same arithmetic.
ImageProcessor = Callable[..., dict[str, torch.Tensor]]

# Seeds for random numbers other than those of the samples.
_ORDER, _SIZE = 1, 2


def collate_poses(samples: Sequence[Sample], image_processor: ImageProcessor | None = None) -> dict[str, Any]:
    """Collates samples into a batch. With transformers' `Trainer`, set `remove_unused_columns=False`.

    Args:
        samples: samples of `TrainingSamples` or `EvaluationSamples`, or others whose images have the same size.
        image_processor: required if it normalizes images; see `scale`.

    Returns:
        `pixel_values` (B, 3, height, width) float32, divided by 255 if the images are uint8, and `labels`, a list of
        the results of `to_labels`.

    Raises:
        ValueError: if the images have different sizes.
    """
    batch = collate_unscaled(samples)
    return {**batch, "pixel_values": scale(batch["pixel_values"], image_processor)}


def collate_unscaled(samples: Sequence[Sample]) -> dict[str, Any]:
    """Collates like `collate_poses`, but leaves uint8 images for `to_device` to scale."""
    images = [sample["image"].as_subclass(torch.Tensor) for sample in samples]
    images = [image if image.ndim == 4 else image[None] for image in images]  # those in parts have an axis of parts
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise ValueError(f"the images of a batch must have one size, but got {sizes}: resize them first.")
    return {"pixel_values": torch.cat(images).contiguous(), "labels": [to_labels(sample) for sample in samples]}


def scale(pixel_values: torch.Tensor, image_processor: ImageProcessor | None = None) -> torch.Tensor:
    """Divides uint8 images by 255, with exactly the result of the image processor; other types are already scaled.

    Args:
        pixel_values: (B, 3, height, width).
        image_processor: a `DETRPoseImageProcessor`; if it normalizes images, those that were uint8 are normalized as
            well, which differs from its own result by rounding.
    """
    if pixel_values.dtype != torch.uint8:
        return pixel_values
    pixel_values = pixel_values.float().mul_(1 / 255)
    if image_processor is not None and image_processor.do_normalize:
        # As numbers, because tensors would have to be copied to the device first, and the host would wait for that.
        means, stds = (
            torch.tensor(values).expand(3).tolist()
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        for channel, mean, std in zip(pixel_values.unbind(1), means, stds, strict=True):
            channel.sub_(mean).div_(std)
    return pixel_values


def to_device(
    batch: dict[str, Any],
    device: torch.device | str | None,
    image_processor: ImageProcessor | None = None,
) -> dict[str, Any]:
    """Copies a batch to a device asynchronously, and scales its images there.

    Args:
        batch: `pixel_values` and `labels`, as a data loader yields them, preferably in pinned memory.
        device: the target device; the current device if not given.
        image_processor: see `scale`.

    Returns:
        `pixel_values` float32, and `labels`.
    """
    labels = [{key: value.to(device, non_blocking=True) for key, value in image.items()} for image in batch["labels"]]
    pixel_values = batch["pixel_values"].to(device, non_blocking=True)
    return {"pixel_values": scale(pixel_values, image_processor), "labels": labels}


def multi_scale_sizes(size: tuple[int, int] | int = 640, base_repeats: int = 4) -> list[tuple[int, int]]:
    """Returns the sizes from which multi-scale training draws one per batch.

    Args:
        size: base height and width in pixels, or one number for both.
        base_repeats: how often the base size is listed; 0 leaves out all others.

    Returns:
        (height, width) in pixels, multiples of 32: those of the paper for 640, otherwise the closest in proportion.

    Raises:
        ValueError: if the base size is not a multiple of 32.
    """
    size_hw = as_size_hw(size)
    if any(length % STRIDE for length in size_hw):
        raise ValueError(f"the size must be a multiple of {STRIDE} pixels, but got {size!r}.")
    if base_repeats == 0:
        return [size_hw]
    others = [
        tuple(max(1, int(scale * length / STRIDE + 0.5)) * STRIDE for length in size_hw) for scale in OTHER_SCALES
    ]
    return sorted(others + [size_hw] * base_repeats)


class PoseBatchSampler(Sampler[list[SampleKey]]):
    """Yields shuffled batches of the current epoch, each of one size; determined by seed and epoch alone.

    Args:
        samples: the samples, whose seed, phases and current epoch are used.
        batch_size: images per batch.
        sizes_hw: sizes to draw from in epochs with multi-scale; the size of the samples if not given.
        num_processes: number of processes to which accelerate distributes the batches; all batches of a step have the
            same size, so that no process waits for another.
        drop_last: drop the last batch if it is smaller than the others.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        batch_size: int,
        sizes_hw: Sequence[tuple[int, int]] | None = None,
        num_processes: int = 1,
        drop_last: bool = True,
    ):
        if not 1 <= batch_size or (drop_last and batch_size > len(samples)):
            raise ValueError(
                f"`batch_size` must be from 1 to the number of images, {len(samples)}, but got {batch_size}."
            )
        self.samples = samples
        self.batch_size = batch_size
        self.sizes_hw = list(sizes_hw or [samples.size_hw])
        self.num_processes = num_processes
        self.drop_last = drop_last

    def __len__(self) -> int:
        count = len(self.samples)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.samples.epoch
        generator = torch.Generator().manual_seed(seed_for(self.samples.seed, epoch, 0, _ORDER))
        order = torch.randperm(len(self.samples), generator=generator)
        for batch, indices in zip(range(len(self)), order.split(self.batch_size), strict=False):
            size_hw = self.size_hw(epoch, step=batch // self.num_processes)
            yield [SampleKey(index, epoch, size_hw) for index in indices.tolist()]

    def size_hw(self, epoch: int, step: int) -> tuple[int, int]:
        """Returns the image height and width in pixels at a step of an epoch."""
        if not phase_at(self.samples.phases, epoch).multi_scale:
            return self.samples.size_hw
        return self.sizes_hw[seed_for(self.samples.seed, epoch, step, _SIZE) % len(self.sizes_hw)]


def train_dataloader(
    dataset: Dataset,
    batch_size: int,
    size: tuple[int, int] | int = 640,
    phases: tuple[Phase, ...] = UNCHANGED,
    base_repeats: int = 0,
    seed: int = 0,
    num_workers: int = 0,
    num_processes: int = 1,
    pin_memory: bool = False,
    scaled: bool = True,
) -> DataLoader:
    """Returns a data loader for training: shuffled, augmented, with batches of several sizes.

    Set the epoch before each one: `loader.set_epoch(epoch)` once accelerate has prepared it, else
    `loader.dataset.set_epoch(epoch)`. Every batch depends only on the seed, the epoch and its position in it, so that
    `accelerate.skip_first_batches` continues an interrupted epoch exactly. For a `Trainer`, return
    `self.accelerator.prepare(train_dataloader(...))` from `get_train_dataloader`.

    Args:
        dataset: a `PoseDataset`; check it with `check_dataset` first.
        batch_size: images per batch of one process.
        size: base height and width in pixels, or one number for both.
        phases: the augmentation schedule; see `paper_phases`.
        base_repeats: see `multi_scale_sizes`; the recipes in `transformers_detrpose.training` have the paper's values.
        seed: random seed.
        num_workers: processes that prepare samples.
        num_processes: number of training processes.
        pin_memory: see `torch.utils.data.DataLoader`.
        scaled: whether images are divided by 255. Unscaled they are uint8, a quarter of the bytes, for `to_device`.
    """
    samples = TrainingSamples(dataset, size, phases, seed)
    sizes_hw = multi_scale_sizes(size, base_repeats)
    return DataLoader(
        samples,
        batch_sampler=PoseBatchSampler(samples, batch_size, sizes_hw, num_processes),
        collate_fn=collate_poses if scaled else collate_unscaled,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=partial(_init_worker, Image.MAX_IMAGE_PIXELS),
        pin_memory=pin_memory,
    )


def evaluation_dataloader(
    dataset: Dataset,
    batch_size: int,
    image_processor: ImageProcessor,
    num_workers: int = 0,
    pin_memory: bool = False,
    scaled: bool = True,
    crop: Callable[[torch.Tensor], list[torch.Tensor]] | None = None,
) -> DataLoader:
    """Returns a data loader for all images in order, preprocessed exactly as by the image processor.

    Args:
        dataset: a `PoseDataset`.
        batch_size: images per batch.
        image_processor: the image processor of the model.
        num_workers: processes that prepare samples.
        pin_memory: see `torch.utils.data.DataLoader`.
        scaled: whether images are scaled and normalized. Otherwise they are uint8, for `evaluate_model`; only image
            processors that divide by 255, not by anything else, can leave it.
        crop: see `EvaluationSamples`; the parts of all images of a batch are joined.
    """
    unscaled = partial(image_processor, do_rescale=False, do_normalize=False)
    return DataLoader(
        EvaluationSamples(dataset, image_processor if scaled else unscaled, crop),
        batch_size=batch_size,
        collate_fn=collate_poses if scaled else collate_unscaled,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=partial(_init_worker, Image.MAX_IMAGE_PIXELS),
        pin_memory=pin_memory,
    )


def _init_worker(max_pixels: int | None, worker_id: int):
    """Initializes a data-loading worker.

    Args:
        max_pixels: the limit of `images.open_image`, which workers do not inherit on every system.
        worker_id: index of the worker.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    # Ctrl-C reaches workers as well, but their parent decides what becomes of them. PyTorch handles SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
