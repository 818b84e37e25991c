"""The images to annotate: a folder of files, Parquet files, or a dataset of the Hugging Face Hub or on disk."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..prediction.paths import IMAGE_SUFFIXES


class Picture(NamedTuple):
    """An image that is not read yet.

    Args:
        id: Its name in the output.
        source: Path, content of the file, or `None` if the dataset has none.
    """

    id: str
    source: Path | bytes | None


class Pictures(Protocol):
    """Images in an order that never changes, any range of which can be read."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        """Yields the images from index `start` to `stop`, without the latter."""

    def fingerprint(self) -> str:
        """Returns a text that changes with the number and the names of the images."""


def open_pictures(
    name: str, split: str = "train", image_column: str = "image", id_column: str | None = None
) -> Pictures:
    """Finds the images of an input.

    Args:
        name: A folder of images (searched recursively), a Parquet file or a folder of them, a folder written by
            `Dataset.save_to_disk`, or a Hub id ("owner/name").
        split: The split of a Hub dataset.
        image_column: The column of images in Parquet files and datasets: structs with `bytes` and `path`, as `datasets`
            writes them, or the content of the files.
        id_column: The column of their names; row numbers if not given.

    Raises:
        ValueError: if there is no such input, it has no images, or a column is missing.
        OSError: if a file cannot be read.
    """
    path = Path(name)
    if (path / "dataset_info.json").is_file() or (not path.exists() and name.count("/") == 1):
        return DatasetPictures(_load_dataset(name, split), image_column, id_column)
    if not path.exists():
        raise ValueError(f"{name}: no such file or folder, nor the id of a dataset (owner/name)")
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if files and all(file.suffix == ".parquet" for file in files):
        return ParquetPictures(files, image_column, id_column)
    return FolderPictures(path)


class FolderPictures:
    """Image files in and below a folder, in the order of their paths; hidden ones are left out.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, folder: Path):
        files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else ()
        names = (file.relative_to(folder) for file in files)
        self.folder = folder
        self.names = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
        if not self.names:
            raise ValueError(f"{folder}: neither a folder with images nor a Parquet file")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        for name in self.names[start:stop]:
            yield Picture(name, self.folder / name)

    def fingerprint(self) -> str:
        return _hash("\n".join(self.names))


class ParquetPictures:
    """The rows of Parquet files; only the row groups of a range are read."""

    def __init__(self, files: list[Path], image_column: str, id_column: str | None):
        import pyarrow.parquet as pq

        self.files = [pq.ParquetFile(file) for file in files]
        for path, file in zip(files, self.files, strict=True):
            for column in filter(None, (image_column, id_column)):
                _check_column(str(path), column, file.schema_arrow.names)
        self.image_column, self.id_column = image_column, id_column
        self.groups = [(file, group) for file in self.files for group in range(file.num_row_groups)]
        sizes = (file.metadata.row_group(group).num_rows for file, group in self.groups)
        self.starts = list(accumulate(sizes, initial=0))
        self.names = [file.name for file in files]

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        columns = list(filter(None, (self.image_column, self.id_column)))
        position = bisect_right(self.starts, start) - 1
        while position < len(self.groups) and self.starts[position] < stop:
            file, group = self.groups[position]
            index = self.starts[position]
            for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=columns):
                part = batch.slice(max(0, start - index), max(0, stop - max(index, start)))
                for number, row in enumerate(part.to_pylist(), start=max(index, start)):
                    yield _picture(row, number, self.image_column, self.id_column)
                index += len(batch)
            position += 1

    def fingerprint(self) -> str:
        return _hash(f"{self.names} {self.starts}")


class DatasetPictures:
    """The rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, image_column: str, id_column: str | None):
        from datasets import Image as ImageFeature  # an optional dependency

        for column in filter(None, (image_column, id_column)):
            _check_column("the dataset", column, dataset.column_names)
        columns = list(filter(None, (image_column, id_column)))
        self.dataset = dataset.with_format(None).select_columns(columns)
        self.dataset = self.dataset.cast_column(image_column, ImageFeature(decode=False))
        self.image_column, self.id_column = image_column, id_column

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        for index in range(start, min(stop, len(self))):
            yield _picture(self.dataset[index], index, self.image_column, self.id_column)

    def fingerprint(self) -> str:
        return _hash(f"{self.dataset.column_names} {len(self.dataset)}")


def _load_dataset(name: str, split: str) -> Any:
    import datasets  # an optional dependency

    if Path(name).is_dir():
        return datasets.load_from_disk(name)
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets and the Hub raise their own exceptions
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"cannot load the split {split} of the dataset {name}: {message[0]}") from error


def _check_column(source: str, column: str, columns: list[str]):
    if column not in columns:
        raise ValueError(f"{source} has no column {column}, only {', '.join(columns)}")


def _picture(row: dict[str, Any], index: int, image_column: str, id_column: str | None) -> Picture:
    """Returns the image of a row, which is named after its index if nothing else names it."""
    image = row[image_column]
    source = image
    if isinstance(image, dict):
        path = image.get("path")
        source = image["bytes"] if image.get("bytes") is not None else path and Path(path)
    return Picture(str(index if id_column is None else row[id_column]), source)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
