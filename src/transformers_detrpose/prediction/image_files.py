"""Predicts poses in image files."""

import logging
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..evaluation.coco_results import coco_records, results_writer
from ..files import whole_file
from ..images import load_rgb_image, open_image
from ..loading import first_line
from .batches import batched
from .models import Predictor
from .paths import written_path

DECIMALS = 4  # of coordinates and keypoint scores in files

logger = logging.getLogger(__name__)


def predict_images(
    predictor: Predictor, images: dict[str, Path], ids: dict[str, int | str], output: Path, batch_size: int
) -> int:
    """Predicts, draws and records all images; an interruption keeps the records of those completed.

    Args:
        predictor: The model.
        images: Paths of the images by their names.
        ids: The `image_id` of each name.
        output: Folder for the drawn images and `predictions.json`.
        batch_size: Maximum number of images per batch; fewer if they are large.

    Returns:
        The number of images that could not be read.
    """
    num_read, schema = 0, predictor.model.config.keypoint_schema
    with (
        results_writer(output / "predictions.json", keep_interrupted=True) as write,
        tqdm(total=len(images), unit="image") as progress,
    ):
        pictures = _read_images(images, progress)
        for batch in batched(pictures, batch_size, lambda item: item[1].width * item[1].height):
            results = predictor([picture for _, picture in batch])
            for (name, picture), result in zip(batch, results, strict=True):
                with whole_file(written_path(output, name)) as path:
                    predictor.draw(picture, result).save(path, quality=95)
                write(coco_records(result, DECIMALS, schema, image_id=ids[name], file_name=name))
            num_read += len(batch)
            progress.update(len(batch))
    return len(images) - num_read


def _read_images(paths: dict[str, Path], progress: tqdm) -> Iterator[tuple[str, Image.Image]]:
    """Yields images with their names; logs and skips those that cannot be read."""
    for name, path in paths.items():
        try:
            with open_image(path) as image:
                picture = load_rgb_image(image)
                # The additional images in an MPO, which many phones write, are previews and depth maps of the first.
                num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        except Exception as error:  # Pillow's decoders raise almost anything for a corrupt file
            logger.warning("cannot read image %s: %s", path, first_line(error))
            progress.update()
            continue
        if num_frames > 1:
            logger.warning("%s: the first of %d frames or pages is taken", path, num_frames)
        yield name, picture
