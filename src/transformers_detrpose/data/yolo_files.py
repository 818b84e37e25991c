"""Reads YOLO pose datasets, as described in Ultralytics' documentation: a `data.yaml` and a text file per image."""

import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..images import IMAGE_SUFFIXES, open_image, upright_size_hw
from ..instances import DataError, Problems
from ..keypoint_schemas import KeypointSchema
from .schema_files import load_yaml
from .tool_exports import logger

YOLO_SUFFIXES = {".yaml", ".yml"}
SPLITS = ("train", "val", "test")
# Coordinates as fractions of the image. People may reach out of it; numbers further out are surely pixels.
LOWEST, HIGHEST = -1.0, 2.0


@dataclass(frozen=True)
class YoloDataset:
    """The content of a `data.yaml`.

    Args:
        source: path of the file.
        folder: the folder that other paths are relative to.
        splits: paths of folders of images, or of text files that list images, by the name of the split.
        class_names: names of the classes 0, 1, ...
        num_keypoints: K.
        num_values: numbers per keypoint: 2 (x, y), or 3 (and visibility).
        categories: the classes, as `categories` of a COCO file.
    """

    source: Path
    folder: Path
    splits: dict[str, list[str]]
    class_names: dict[int, str]
    num_keypoints: int
    num_values: int
    categories: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class YoloSplit:
    """The images and labels of a split, in COCO's terms.

    Args:
        source: the file and the split, for messages.
        folder: the folder that the images' `file_name` is relative to.
        content: `images`, `categories` and, unless no image has a label file, `annotations`, as in a COCO file.
        names: the file and the line of each annotation.
    """

    source: str
    folder: str
    content: dict[str, Any]
    names: list[str]


def read_yolo(path: str | os.PathLike, split: str) -> YoloSplit:
    """Reads a split of a YOLO pose dataset.

    The labels of `images/train/1.jpg` are in `labels/train/1.txt`: for each person a line of class, box (center x,
    center y, width, height) and keypoints (x, y and, if `kpt_shape` has a 3, visibility), as fractions of the upright
    image. Without visibility, keypoints at (0, 0) or with two negative coordinates are not labeled, others visible.
    Images without a label file have no people; if none has one, the split has no annotations, like a test set. Ids of
    images are the numbers that their files are called by, if all are and they differ, else 1, 2, ... in the order of
    the files.

    Args:
        path: the `data.yaml`.
        split: "train", "val" or "test".

    Raises:
        OSError: if the file cannot be opened.
        DataError: a `ValueError`, if anything is invalid; there is a line for each of the first ten problems.
    """
    dataset = read_yolo_file(path)
    files = _image_files(dataset, split)
    source = f"{dataset.source} ({split})"
    problems = Problems(source)
    sizes_hw = read_sizes(files, problems)
    problems.raise_any()

    image_ids = _image_ids(files)
    images = [
        {"id": image_id, "file_name": _relative(file, dataset.folder), "height": height, "width": width}
        for image_id, file, (height, width) in zip(image_ids, files, sizes_hw, strict=True)
    ]
    annotations, names, without = [], [], 0
    for image, file in zip(images, files, strict=True):
        label_file = label_path(file)
        if not label_file.is_file():
            without += 1
            continue
        for name, annotation in _read_labels(label_file, dataset, image, problems):
            annotations.append({"id": len(annotations) + 1, **annotation})
            names.append(name)
    problems.raise_any()
    if without:
        logger.warning(
            "%s: %d of %d images have no label file, such as %s, and count as images without people.",
            source, without, len(files), next(path for path in map(label_path, files) if not path.is_file()),
        )  # fmt: skip
    content = {"images": images, "categories": dataset.categories}
    if without < len(files):
        content["annotations"] = annotations
    return YoloSplit(source, os.fspath(dataset.folder), content, names)


def read_yolo_file(path: str | os.PathLike) -> YoloDataset:
    """Reads a `data.yaml`, without its images and labels.

    Args:
        path: the file, with `kpt_shape` (number of keypoints, and 2 or 3 numbers for each), `names` (of the classes, a
            list or a dictionary), paths of `train`, `val` and `test`, and optionally `path` (a folder that these are
            relative to, and which is itself relative to the file), `flip_idx` (index of each keypoint in a flipped
            image) and `kpt_names` (a list, or a dictionary of one for each class).

    Raises:
        OSError: if the file cannot be opened.
        DataError: a `ValueError`, if it is in another format.
    """
    source, content = Path(path), load_yaml(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{source}: not a YOLO dataset, for it is a {type(content).__name__}, not a dictionary.")
    problems = Problems(os.fspath(source))
    num_keypoints, num_values = _keypoint_shape(content, source)
    class_names = _class_names(content, problems)
    splits = _splits(content, problems)
    schemas = _schemas(content, class_names, num_keypoints, problems)
    problems.raise_any()
    categories = [
        {key: value for key, value in schemas[index].to_coco_category(index, name).items() if key != "sigmas"}
        for index, name in class_names.items()
    ]
    folder = _dataset_folder(content, source)
    return YoloDataset(source, folder, splits, class_names, num_keypoints, num_values, categories)


def label_path(image: Path) -> Path:
    """Returns the file of an image's labels: in `labels` instead of the last folder called `images`, if any."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _keypoint_shape(content: Mapping[str, Any], source: Path) -> tuple[int, int]:
    shape = content.get("kpt_shape")
    is_pair = isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(value) is int for value in shape)
    if not is_pair or shape[0] < 1 or shape[1] not in (2, 3):
        raise DataError(
            f"{source}: `kpt_shape` must be the number of keypoints and 2 or 3 numbers for each, such as [17, 3], but "
            f"got {reprlib.repr(shape)}; without it, a dataset has boxes only."
        )
    return shape[0], shape[1]


def _class_names(content: Mapping[str, Any], problems: Problems) -> dict[int, str]:
    names = content.get("names")
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    is_valid = isinstance(names, Mapping) and names and all(type(index) is int and index >= 0 for index in names)
    if not is_valid or not all(isinstance(name, (str, int)) and str(name) for name in names.values()):
        problems.add("the file", "`names`", "a list of the names of classes, or a dictionary by index", names)
        return {}
    return {index: str(names[index]) for index in sorted(names)}


def _splits(content: Mapping[str, Any], problems: Problems) -> dict[str, list[str]]:
    splits = {}
    for split in SPLITS:
        paths = content.get(split)
        if not paths:  # `test:` without a value is usual
            continue
        paths = [paths] if isinstance(paths, str) else paths
        if isinstance(paths, list) and all(isinstance(path, str) for path in paths):
            splits[split] = paths
        else:
            problems.add("the file", f"`{split}`", "a folder, a text file that lists images, or a list of them", paths)
    return splits


def _schemas(
    content: Mapping[str, Any], classes: Mapping[int, str], num_keypoints: int, problems: Problems
) -> dict[int, KeypointSchema]:
    """Returns the keypoints of each class; they have numbers for names unless the file names them."""
    flips, names = content.get("flip_idx"), content.get("kpt_names")
    own = {}
    if flips:
        if not isinstance(flips, (list, tuple)) or sorted(map(repr, flips)) != sorted(map(repr, range(num_keypoints))):
            problems.add("the file", "`flip_idx`", f"each of the {num_keypoints} indices once, from 0", flips)
        elif any(flips[flips[index]] != index for index in flips):
            problems.add("the file", "`flip_idx`", "its own inverse, as flipping twice changes nothing", flips)
        else:
            own["flip_pairs"] = [(index, other) for index, other in enumerate(flips) if index < other]
    elif not names and num_keypoints > 1:
        logger.warning(
            "%s: neither `flip_idx` nor `kpt_names` tell left from right: flipping an image does not swap keypoints, "
            "unless a schema gives `flip_pairs`.", problems.source,
        )  # fmt: skip
    schemas = {}
    for index in classes:
        found = names.get(index, names.get(str(index))) if isinstance(names, Mapping) else names
        found = found or [f"keypoint_{number}" for number in range(1, num_keypoints + 1)]
        if not isinstance(found, (list, tuple)) or len(found) != num_keypoints:
            problems.add("the file", "`kpt_names`", f"{num_keypoints} names, as in `kpt_shape`", found)
            continue
        try:
            schemas[index] = replace(KeypointSchema.from_coco_category({"keypoints": found}), **own)
        except ValueError as error:
            raise DataError(f"{problems.source}: `kpt_names`: {error}") from error
    return schemas


def _dataset_folder(content: Mapping[str, Any], source: Path) -> Path:
    """Returns the folder that `path` names; that of the file, if there is none, as where somebody else had it."""
    path, beside = content.get("path"), source.absolute().parent
    if not path:
        return beside
    if not isinstance(path, str):
        raise DataError(f"{source}: `path` must be a folder, but got {reprlib.repr(path)}.")
    folder = Path(os.path.normpath(beside / path))
    if folder.is_dir():
        return folder
    logger.warning("%s: `path` %s is no folder: its images are looked for beside the file.", source, path)
    return beside


def _image_files(dataset: YoloDataset, split: str) -> list[Path]:
    """Returns the absolute paths of the images of a split, in the order of the file."""
    if split not in dataset.splits:
        given = ", ".join(f"`{name}`" for name in dataset.splits) or "none"
        raise DataError(f"{dataset.source}: has no images for `{split}`; those it has are {given}.")
    files = []
    for text in dataset.splits[split]:
        path = _existing(dataset, text, split)
        if path.is_dir():
            found = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            files += sorted(file for file in found if not file.name.startswith("."))
        elif path.suffix.lower() == ".txt":
            files += _listed(path, dataset.folder)
        else:
            files.append(path)
    if not files:
        raise DataError(f"{dataset.source}: `{split}` has no images in {', '.join(dataset.splits[split])}.")
    return list(dict.fromkeys(files))


def split_folder(dataset: YoloDataset, split: str) -> Path:
    """Returns the folder that the images of a split are in: that of the split, if it is one, or the dataset's."""
    paths = [_existing(dataset, text, split) for text in dataset.splits[split]]
    return paths[0] if len(paths) == 1 and paths[0].is_dir() else dataset.folder


def _existing(dataset: YoloDataset, text: str, split: str) -> Path:
    # Roboflow writes `../train/images` for the folder `train/images` beside the file.
    candidates = [text] + ([text[3:]] if text.startswith("../") else [])
    for candidate in candidates:
        path = Path(os.path.normpath(dataset.folder / candidate))
        if path.exists():
            return path
    raise DataError(f"{dataset.source}: `{split}` names {text}, but there is no {dataset.folder / text}.")


def _listed(file: Path, folder: Path) -> Iterator[Path]:
    """Yields the images that a text file lists, one in each line, relative to itself or to the dataset's folder."""
    for line in _read_text(file).splitlines():
        if line.strip():
            beside = Path(os.path.normpath(file.parent / line.strip()))
            yield beside if beside.exists() else Path(os.path.normpath(folder / line.strip()))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file ({error}).") from error


def read_sizes(files: Sequence[Path], problems: Problems) -> list[tuple[int, int]]:
    """Returns the height and width of upright images, from their headers; (1, 1) for unreadable ones."""

    def size_of(file: Path) -> tuple[int, int] | Exception:
        try:
            with open_image(file) as image:
                return upright_size_hw(image)
        except Exception as error:  # Pillow's decoders raise almost anything for a corrupt file
            return error

    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(size_of, files))
    for file, size in zip(files, sizes, strict=True):
        if isinstance(size, Exception):
            found = "no such file" if isinstance(size, FileNotFoundError) else str(size)
            problems.add(f"image {file}", "the image", "a file that can be read", found)
    return [(1, 1) if isinstance(size, Exception) else size for size in sizes]


def _image_ids(files: Sequence[Path]) -> list[int]:
    numbers = [int(file.stem) for file in files if file.stem.isascii() and file.stem.isdigit() and len(file.stem) < 19]
    return numbers if len(set(numbers)) == len(files) else list(range(1, len(files) + 1))


def _relative(file: Path, folder: Path) -> str:
    try:
        return file.relative_to(folder).as_posix()
    except ValueError:
        return os.fspath(file)


def _read_labels(
    file: Path, dataset: YoloDataset, image: Mapping[str, Any], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the annotation, in COCO's form, of each line of a label file."""
    shown = _relative(file, dataset.folder)
    for number, line in enumerate(_read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        name = f"{shown}, line {number}"
        count = problems.count
        values = _parse_line(line, name, dataset, problems)
        if problems.count == count:
            yield name, _to_annotation(values, dataset, image)


def _parse_line(line: str, name: str, dataset: YoloDataset, problems: Problems) -> list[float]:
    """Returns the numbers of a line, and collects its problems."""
    size, step = dataset.num_keypoints * dataset.num_values, dataset.num_values
    try:
        values = [float(text) for text in line.split()]
    except ValueError:
        values = [math.nan]
    if len(values) != 5 + size and all(map(math.isfinite, values)):
        accepted = f"5 numbers and {step} for each of {dataset.num_keypoints} keypoints, {5 + size} in all"
        problems.add(name, "the line", accepted, len(values))
    elif not all(map(math.isfinite, values)):
        problems.add(name, "the line", "finite numbers", line.strip())
    elif values[0] not in dataset.class_names:
        problems.add(name, "the class", f"one of {reprlib.repr(list(dataset.class_names))}", line.split()[0])
    elif min(values[3:5]) < 0:
        problems.add(name, "width and height of the box", "at least 0", values[3:5])
    elif any(value not in (0, 1, 2) for value in (values[7::3] if step == 3 else [])):
        problems.add(
            name, "visibilities", "0, 1 or 2", sorted({value for value in values[7::3] if value not in (0, 1, 2)})
        )
    elif not all(LOWEST <= value <= HIGHEST for value in _coordinates(values, step)):
        found = next(value for value in _coordinates(values, step) if not LOWEST <= value <= HIGHEST)
        problems.add(name, "coordinates", "fractions of the image, from 0 to 1", found, ", which looks like pixels")
    return values


def _coordinates(values: list[float], step: int) -> list[float]:
    """Returns the box, and x and y of the labeled keypoints of a line."""
    points = zip(values[5::step], values[6::step], values[7::step] if step == 3 else values[5::step], strict=True)
    return [*values[1:5], *(value for x, y, seen in points if step == 2 or seen for value in (x, y))]


def _to_annotation(values: list[float], dataset: YoloDataset, image: Mapping[str, Any]) -> dict[str, Any]:
    width, height, step = image["width"], image["height"], dataset.num_values
    center_x, center_y, box_width, box_height = values[1:5]
    xs, ys = values[5::step], values[6::step]
    if step == 3:
        visibility = [int(value) for value in values[7::3]]
    else:
        visibility = [0 if x <= 0 and y <= 0 else 2 for x, y in zip(xs, ys, strict=True)]
    points = [
        number
        for x, y, seen in zip(xs, ys, visibility, strict=True)
        for number in ((x * width, y * height, seen) if seen else (0, 0, 0))
    ]
    left, top = (center_x - box_width / 2) * width, (center_y - box_height / 2) * height
    return {
        "image_id": image["id"],
        "category_id": int(values[0]),
        "keypoints": points,
        "num_keypoints": sum(map(bool, visibility)),
        "bbox": [left, top, box_width * width, box_height * height],
        "iscrowd": 0,
    }
