"""Predicting poses in image files."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..evaluation.coco_results import coco_records, results_writer
from ..images import load_rgb_image
from ..loading import first_line
from .models import Predictor
from .paths import image_ids, written_path

DECIMALS = 4  # of coordinates and keypoint scores in files

logger = logging.getLogger(__name__)


def predict_images(predictor: Predictor, images: dict[str, Path], output: Path, batch_size: int) -> int:
    """Predicts, draws and records all images; an interruption leaves the records of those that were done.

    Args:
        predictor: The model.
        images: Paths of the images by their names.
        output: Folder for the pictures and `predictions.json`.
        batch_size: Images per batch.

    Returns:
        How many images could not be read.
    """
    ids = image_ids(images)
    num_failed, interruption = 0, None
    with results_writer(output / "predictions.json") as write, tqdm(total=len(images), unit="image") as progress:
        try:
            for names in batched(images, batch_size):
                pictures = _read_images({name: images[name] for name in names})
                num_failed += len(names) - len(pictures)
                results = predictor(list(pictures.values())) if pictures else []
                for (name, picture), result in zip(pictures.items(), results, strict=True):
                    path = written_path(output, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    predictor.draw(picture, result).save(path, quality=95)
                    write(coco_records(result, DECIMALS, image_id=ids[name], file_name=name))
                progress.update(len(names))
        except KeyboardInterrupt as error:
            interruption = error
    if interruption is not None:
        raise interruption
    return num_failed


def _read_images(paths: dict[str, Path]) -> dict[str, Image.Image]:
    """Reads images, and reports and leaves out those that cannot be read."""
    pictures = {}
    for name, path in paths.items():
        try:
            pictures[name] = load_rgb_image(path)
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            logger.warning("cannot read image %s: %s", path, first_line(error))
    return pictures


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Yields the items in lists of `size`, the last one perhaps shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
