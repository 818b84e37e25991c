"""How many images per second are read, and annotated."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from .inputs import Picture
from .jobs import Job
from .shards import Shard, prepared_batches


class Repeated:
    """The first images of an input, again and again.

    Args:
        pictures: At least one image.
        num_images: How many there shall be.
    """

    def __init__(self, pictures: list[Picture], num_images: int):
        self.pictures, self.num_images = pictures, num_images

    def __len__(self) -> int:
        return self.num_images

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        for index in range(start, stop):
            yield self.pictures[index % len(self.pictures)]


def measure(job: Job, device: str, num_images: int) -> dict[str, float]:
    """Returns images per second: "reading" alone (decoding and preparing), and "annotating", which includes it.

    Args:
        job: What to do; nothing is written to its output.
        device: Name of the torch device.
        num_images: Number of images; those of the input are repeated if there are fewer. One batch before them is not
            timed.
    """
    predictor = job.load_model(device)
    pictures = job.open()
    images = Repeated(list(pictures.read(0, min(len(pictures), num_images))), num_images)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * num_images, unit="image", leave=False) as progress:
        job = replace(job, output=Path(folder))
        job.write(predictor, images, Shard(0, min(job.batch_size, num_images)))
        start = time.perf_counter()
        with prepared_batches(predictor, images.read(0, num_images), job.batch_size, job.num_threads) as batches:
            for read, _ in batches:
                progress.update(len(read))
        middle = time.perf_counter()
        job.write(predictor, images, Shard(0, num_images), progress.update)
        end = time.perf_counter()
    return {"reading": num_images / (middle - start), "annotating": num_images / (end - middle)}
