"""Writes generated images as a dataset in COCO's format."""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..files import whole_folder
from ..keypoint_schemas import COCO_PERSON
from .pictures import MIN_HEIGHT, generate_picture
from .scattered import generate_scattered

SMALLEST_SIZE = 64  # pixels
FIRST_VAL_INDEX = 10_000_000  # so that the number of training images never changes the validation images


def write_dataset(
    output: Path,
    train: int,
    val: int,
    size: int = 320,
    seed: int = 0,
    workers: int = 1,
    max_people: int = 6,
    min_height: float = MIN_HEIGHT,
    plain: bool = False,
    upright: bool = False,
    width: int | None = None,
    scattered: tuple[float, float] | None = None,
):
    """Writes the images and annotations of a training and a validation set.

    Args:
        output: Folder to create; it appears only once it is complete.
        train, val: Number of images.
        size: Height and width of the images in pixels.
        seed: Random seed, at least 0.
        workers: Number of processes.
        max_people: Maximum number of figures per image.
        min_height: Minimum height of a figure, as a fraction of the image height.
        plain: Whether there is nothing but the figures.
        upright: Whether all figures stand or walk and face the viewer.
        width: Width of the images in pixels, if it is not `size`.
        scattered: Minimum and maximum height in pixels of figures that are scattered over the image instead, see
            `generate_scattered`; then `min_height`, `plain` and `upright` do not matter.

    Raises:
        FileExistsError: if `output` is a file or a nonempty folder.
    """
    look = {"size": (size, width or size), "max_people": max_people}
    if scattered is None:
        generate = partial(generate_picture, **look, min_height=min_height, plain=plain, upright=upright)
    else:
        generate = partial(generate_scattered, **look, heights=scattered)
    with whole_folder(output) as folder:
        for split, indices in (("train", range(train)), ("val", range(FIRST_VAL_INDEX, FIRST_VAL_INDEX + val))):
            (folder / split).mkdir()
            draw_one = partial(_write_picture, folder=folder / split, seed=seed, generate=generate)
            records = list(tqdm(map_in_order(draw_one, indices, workers), split, total=len(indices), unit="image"))
            content = coco_content(records, f"Synthetic people, seed {seed}")
            (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def coco_content(records: list[tuple[dict, list[dict]]], description: str) -> dict[str, Any]:
    """Returns the content of a COCO file, given images with their annotations."""
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        **COCO_PERSON.to_coco(),
    }
    return {
        "info": {"description": description, "version": "1.0"},
        "licenses": [],
        "images": [image for image, _ in records],
        "annotations": [annotation for _, annotations in records for annotation in annotations],
        "categories": [category],
    }


def _write_picture(index: int, folder: Path, seed: int, generate: Callable) -> tuple[dict, list[dict]]:
    """Writes one image, and returns its entry in `images` and its annotations."""
    picture, annotations = generate(seed, index)
    name = f"{index:08d}.jpg"
    quality = int(np.random.default_rng([seed, index, 1]).integers(65, 96))
    picture.save(folder / name, quality=quality)
    return {"id": index, "file_name": name, "width": picture.width, "height": picture.height}, annotations


def map_in_order(function: Callable, items: range, workers: int) -> Iterator:
    """Yields the results of a function in order, computed by one or more processes."""
    if workers == 1:
        yield from map(function, items)
        return
    with multiprocessing.Pool(workers, initializer=_leave_signals_to_parent) as pool:
        yield from pool.imap(function, items, chunksize=8)


def _leave_signals_to_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends its workers,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by this one, whatever it does itself on SIGTERM
