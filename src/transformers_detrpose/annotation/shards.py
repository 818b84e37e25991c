"""Predicts the poses in one range of images, and writes them as one Parquet file."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..files import whole_file
from ..images import load_rgb_image, open_image
from ..loading import first_line
from ..pose_arrays import Poses
from ..prediction.batches import batched
from ..prediction.models import Predictor, PreparedBatch
from ..prediction.stages import Stages
from .inputs import Picture, Pictures

# Columns that hold the poses of an image, as `post_process_keypoint_detection` returns them.
POSE_COLUMNS = ("scores", "labels", "keypoints", "keypoint_scores", "keypoint_std", "boxes")
PREPARED_BATCHES = 2  # how many wait for the network


class Shard(NamedTuple):
    """A range of images, from `start` to `stop` without the latter."""

    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """`str`: the name of its file, which sorts like the images."""
        return f"{self.start:010d}-{self.stop:010d}.parquet"


class Counts(NamedTuple):
    """What was found in some images."""

    images: int = 0
    poses: int = 0
    broken: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Returns the sums."""
        return Counts(*map(sum, zip(self, other, strict=True)))


class Loaded(NamedTuple):
    """An image, or why it cannot be read."""

    id: str
    image: Image.Image | None
    error: str | None


def make_shards(num_images: int, size: int) -> list[Shard]:
    """Divides images into ranges of `size`, of which the last may be smaller."""
    return [Shard(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def missing_shards(shards: Iterable[Shard], folder: Path) -> list[Shard]:
    """Returns those without a file, which is there only if it is complete."""
    return [shard for shard in shards if not (folder / shard.file_name).is_file()]


def write_shard(
    predictor: Predictor,
    pictures: Pictures,
    shard: Shard,
    folder: Path,
    batch_size: int,
    num_threads: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> Counts:
    """Predicts the poses in a range of images and writes its file, whole or not at all.

    Args:
        predictor: The model.
        pictures: All images.
        shard: The range.
        folder: Where to write the file.
        batch_size: Maximum number of images per batch; fewer if they are large.
        num_threads: Threads that decode images.
        progress: Called with the number of images of each batch.
    """
    import pyarrow.parquet as pq

    rows, counts = [], Counts()
    with prepared_batches(predictor, pictures.read(*shard), batch_size, num_threads) as batches:
        for images, prepared in batches:
            poses = iter(predictor.predict(prepared) if prepared else ())
            rows += [_row(image, next(poses) if image.error is None else None) for image in images]
            progress(len(images))
    for row in rows:
        counts = counts.plus(Counts(1, len(row["scores"] or ()), int(row["error"] is not None)))
    with whole_file(folder / shard.file_name) as unfinished:
        pq.write_table(to_table(rows), unfinished)
    return counts


@contextmanager
def prepared_batches(
    predictor: Predictor, pictures: Iterator[Picture], batch_size: int, num_threads: int
) -> Iterator[Iterator[tuple[list[Loaded], PreparedBatch | None]]]:
    """Yields an iterator over images in batches, and what the model sees of those that could be read.

    Decoding and preparing run ahead in threads.

    Args:
        predictor: The model.
        pictures: The images.
        batch_size: Maximum number of images per batch; fewer if they are large.
        num_threads: Threads that decode images.
    """
    with ThreadPoolExecutor(num_threads) as pool, Stages() as stages:
        loaded = _load_ahead(pool, pictures, 2 * num_threads)
        yield stages.run(_prepare(predictor, loaded, batch_size), PREPARED_BATCHES)


def to_table(rows: list[dict[str, Any]]) -> Any:
    """Returns rows as a `pyarrow.Table`, with types that do not depend on what is in them."""
    import pyarrow as pa

    numbers = pa.list_(pa.float32())
    schema = pa.schema(
        {
            "id": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "scores": numbers,
            "labels": pa.list_(pa.int64()),
            "keypoints": pa.list_(pa.list_(numbers)),
            "keypoint_scores": pa.list_(numbers),
            "keypoint_std": pa.list_(pa.list_(numbers)),
            "boxes": pa.list_(numbers),
            "error": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema)


def _row(loaded: Loaded, poses: Poses | None) -> dict[str, Any]:
    """Returns the row of an image; poses are missing (`None`) if it is broken, and empty if nobody is in it."""
    poses = poses or {}
    columns = {name: poses[name].tolist() if name in poses else None for name in POSE_COLUMNS}
    width, height = (None, None) if loaded.image is None else loaded.image.size
    return {"id": loaded.id, "width": width, "height": height, **columns, "error": loaded.error}


def _load(picture: Picture) -> Loaded:
    """Decodes an image."""
    try:
        if picture.source is None:
            raise ValueError("the dataset has no image here")
        source = BytesIO(picture.source) if isinstance(picture.source, bytes) else picture.source
        with open_image(source) as image:
            return Loaded(picture.id, load_rgb_image(image), None)
    except Exception as error:  # Pillow's decoders raise almost anything for a corrupt file
        # A buffer's address says nothing.
        text = "not an image" if "cannot identify image file" in str(error) else first_line(error)
        return Loaded(picture.id, None, text)


def _load_ahead(pool: ThreadPoolExecutor, pictures: Iterator[Picture], ahead: int) -> Iterator[Loaded]:
    """Yields images in order, with some of them being decoded in the meantime."""
    waiting: deque[Future] = deque(pool.submit(_load, picture) for picture in islice(pictures, ahead))
    while waiting:
        loaded = waiting.popleft().result()
        waiting.extend(pool.submit(_load, picture) for picture in islice(pictures, 1))
        yield loaded


def _prepare(
    predictor: Predictor, loaded: Iterator[Loaded], batch_size: int
) -> Iterator[tuple[list[Loaded], PreparedBatch | None]]:
    """Yields images in batches, with what the model sees of those that could be read."""
    for images in batched(loaded, batch_size, lambda item: item.image.width * item.image.height if item.image else 0):
        readable = [item.image for item in images if item.image is not None]
        yield images, predictor.prepare(readable) if readable else None
