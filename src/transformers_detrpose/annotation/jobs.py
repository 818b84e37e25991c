"""An annotation job: what it does, and what its folder says about the one that began it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..files import check_new_folder, restore_folder, whole_file
from ..loading import model_files
from ..memory import keep_freed_memory
from ..prediction.models import Predictor
from ..tiles import Tiles
from .inputs import Pictures, open_pictures
from .shards import Counts, Shard, make_shards, write_shard

SETTINGS_FILE, SHARDS_FOLDER = "annotate.json", "data"


@dataclass(frozen=True)
class Job:
    """All that an annotation needs, as text and numbers that can travel to another machine.

    Args:
        input, split, image_column, id_column: See `open_pictures`.
        output: Absolute path of the output folder, the same on all machines.
        model: Folder or Hub id.
        dtype: Name of the type of the weights.
        threshold, duplicate_similarity, max_people, tiles: See `Predictor`.
        shard_size: Images per output file.
        batch_size: Maximum number of images, or tiles, per batch.
        num_threads: Threads that decode images.
        max_pixels: Most pixels of an image to decode, see `open_image`.
    """

    input: str
    output: Path
    model: str
    split: str = "train"
    image_column: str = "image"
    id_column: str | None = None
    dtype: str = "float32"
    threshold: float = 0.3
    duplicate_similarity: float | None = None
    max_people: int | None = None
    tiles: Tiles | None = None
    shard_size: int = 1000
    batch_size: int = 8
    num_threads: int = 2
    max_pixels: int | None = Image.MAX_IMAGE_PIXELS

    @property
    def folder(self) -> Path:
        """`Path`: the folder of the Parquet files."""
        return self.output / SHARDS_FOLDER

    def open(self) -> Pictures:
        """Returns the images."""
        return open_pictures(self.input, self.split, self.image_column, self.id_column)

    def shards(self, pictures: Pictures) -> list[Shard]:
        """Returns all ranges of images."""
        return make_shards(len(pictures), self.shard_size)

    def load_model(self, device: str) -> Predictor:
        """Returns the model on a device."""
        Image.MAX_IMAGE_PIXELS = self.max_pixels
        keep_freed_memory()
        return Predictor(
            self.model,
            device,
            getattr(torch, self.dtype),
            self.threshold,
            keypoint_threshold=0.0,
            duplicate_similarity=self.duplicate_similarity,
            max_people=self.max_people,
            tiles=self.tiles,
            batch_size=self.batch_size,
        )

    def write(
        self, predictor: Predictor, pictures: Pictures, shard: Shard, progress: Callable[[int], Any] = lambda n: None
    ) -> Counts:
        """Writes the file of a range of images."""
        return write_shard(predictor, pictures, shard, self.folder, self.batch_size, self.num_threads, progress)

    def settings(self, pictures: Pictures) -> dict[str, Any]:
        """Returns everything on which the rows depend."""
        return {
            "input": self.input,
            "split": self.split,
            "image_column": self.image_column,
            "id_column": self.id_column,
            "images": len(pictures),
            "fingerprint of the images' names": pictures.fingerprint(),
            "model": self.model,
            "fingerprint of the model": fingerprint(self.model),
            "dtype": self.dtype,
            "threshold": self.threshold,
            "remove_duplicates": self.duplicate_similarity,
            "max_people": self.max_people,
            "tiles": self.tiles and self.tiles.size,
            "overlap": self.tiles and self.tiles.overlap,
            "max_pixels": self.max_pixels,
            "shard_size": self.shard_size,
        }


def begin_or_resume(output: Path, settings: dict[str, Any], described: dict[str, Any]):
    """Writes the settings of a new output folder, or checks those of an existing one.

    Args:
        output: The folder.
        settings: From `Job.settings`.
        described: What else is written there, for whoever reads the rows.

    Raises:
        FileExistsError: if the folder holds something else.
        ValueError: if it was begun with other settings; the message names one of them, with both values.
    """
    path = output / SETTINGS_FILE
    if not path.is_file():
        restore_folder(path)  # what a process leaves that is killed while it writes the settings
        check_new_folder(output)
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps({**settings, **described}, indent=2) + "\n", encoding="utf-8")
        return
    before = read_settings(output)
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{output} was begun with {name} {before.get(name)}, but now it is {value}: choose another output"
            )


def read_settings(output: Path) -> dict[str, Any]:
    """Returns the settings of an output folder.

    Raises:
        ValueError: if they are not JSON.
    """
    path = output / SETTINGS_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: remove the folder or choose another output") from error


def fingerprint(model: str) -> str | None:
    """Returns a text that changes with the files of a model folder; `None` for other models."""
    files = sorted(model_files(model))
    if not files:
        return None
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()[:16]
