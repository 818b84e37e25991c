"""Converts datasets between COCO's format and that of YOLO poses, and says what the other format does not carry."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from ..files import check_new_folder, whole_folder
from ..instances import DataError, Instances, Problems
from ..keypoint_schemas import KeypointSchema
from ..labels import TOLERANCE_PIXELS
from .annotations import CocoAnnotations, read_annotations
from .yolo_files import label_path, read_sizes, read_yolo_file, split_folder

# Significant digits of the fractions in label files: less than 1e-5 pixels in images of up to 5,000.
_DIGITS = 9
_CARRIED = {
    "": {"images", "annotations", "categories"},
    "images": {"id", "file_name", "height", "width"},
    "annotations": {"id", "image_id", "category_id", "keypoints", "num_keypoints", "bbox", "iscrowd", "area"},
    "categories": {"id", "name", "keypoints", "skeleton", "flip_pairs", "sigmas"},
}
_FIELD_LOSSES = {"": "file", "images": "image", "annotations": "annotation", "categories": "category"}

SCHEMA_FILE = "schema.json"
LOSSES = {
    "crowd": "crowds are left out, as YOLO has none",
    "empty": "annotations without a box and a labeled keypoint are left out, as every line of YOLO has a box",
    "area": "areas are left out, as YOLO has none: readers estimate them from the boxes",
    "outside": "keypoints more than a pixel outside the image become not labeled, as coordinates are from 0 to 1",
    "clipped": "keypoints and boxes that reach out of the image are moved to its border",
    "made_box": "missing or empty boxes become those around the keypoints",
    "count": "values of `num_keypoints` other than the number of labeled keypoints are left out",
    "image_id": "ids of images are left out, as their files have other names: readers count from 1",
    "category_id": "ids of categories become 0, 1, ... in their order",
    "categories": "categories without keypoints are left out, with their annotations",
    "classes": "classes with different keypoints get those of all, as YOLO has one `kpt_shape`; keypoints of others "
    "are not labeled",
    "file": "fields of the file are left out",
    "image": "images have fields that are left out",
    "annotation": "annotations have fields that are left out",
    "category": "categories have fields that are left out",
    "estimated_area": "areas are 0.53 times those of the boxes, as YOLO has none",
    "visibility": "keypoints that are labeled count as visible, as `kpt_shape` has 2 numbers for each",
}


class Losses:
    """Counts what a format does not carry, or what was made up for it.

    Args:
        source: name of the file, for messages.
    """

    def __init__(self, source: str):
        self.source = source
        self.counts: Counter[str] = Counter()
        self.fields: dict[str, set[str]] = {}

    def count_fields(self, kind: str, entries: Iterable[Mapping[str, Any]], carried: set[str]):
        """Counts entries with fields that are not carried."""
        for entry in entries:
            others = set(entry) - carried
            self.counts[kind] += bool(others)
            self.fields.setdefault(kind, set()).update(others)

    def lines(self) -> list[str]:
        """Returns one line for each kind of loss."""
        lines = []
        for kind, count in self.counts.items():
            if count:
                names = ", ".join(sorted(self.fields.get(kind, ())))
                lines.append(f"{self.source}: {count} {LOSSES[kind]}{f': {names}' if names else ''}.")
        return lines


def coco_to_yolo(
    output: str | os.PathLike,
    splits: Mapping[str, tuple[str | os.PathLike, str | os.PathLike]],
    schema: Mapping[str, Any] | None = None,
    link: bool = False,
) -> list[str]:
    """Writes COCO files as a YOLO pose dataset: `data.yaml`, `images`, `labels`, and `schema.json`.

    The latter holds the edges and sigmas that YOLO lacks, for the parameter `schema` of `read_annotations`.

    Args:
        output: folder to create; it appears only once it is complete.
        splits: the annotation file and the folder of its images by the name of the split: "train", "val" or "test".
        schema: fields of a keypoint schema in place of those in the files, see `read_schema`.
        link: whether to make symbolic links to the images instead of copies.

    Returns:
        One line for each thing that YOLO does not carry.

    Raises:
        FileExistsError: if the folder exists and is not empty.
        OSError: if a file cannot be read or written.
        DataError: a `ValueError`, if annotations are invalid, the files have different categories, or images would
            share a label file.
    """
    check_new_folder(output)
    read = {split: read_annotations(file, schema).located(folder) for split, (file, folder) in splits.items()}
    first, *others = read.values()
    for other in others:
        if (other.schema, other.categories) != (first.schema, first.categories):
            raise DataError(f"{other.source}: its categories or keypoints are not those of {first.source}.")
    category_ids, lines = sorted(first.categories), []
    with whole_folder(output) as folder:
        for split, annotations in read.items():
            losses = Losses(annotations.source)
            _count_raw(annotations, losses)
            sizes_wh = _sizes_wh(annotations)
            files = _write_images(folder / "images" / split, annotations, link)
            _write_labels(files, annotations, sizes_wh, category_ids, losses)
            lines += losses.lines()
        content = _yolo_content(first, category_ids, read)
        (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
        own = replace(first.schema, classes=None).to_dict()
        (folder / SCHEMA_FILE).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    return [*lines, f"{Path(output) / SCHEMA_FILE}: edges and sigmas of the keypoints, for --schema: YOLO has none."]


def _yolo_content(annotations: CocoAnnotations, category_ids: list[int], splits: Iterable[str]) -> dict[str, Any]:
    schema = annotations.schema
    return {
        **{split: f"images/{split}" for split in splits},
        "kpt_shape": [schema.num_keypoints, 3],
        "flip_idx": list(schema.flip_permutation),
        "names": {index: annotations.categories[category_id] for index, category_id in enumerate(category_ids)},
        "kpt_names": {index: list(schema.names) for index in range(len(category_ids))},
    }


def _count_raw(annotations: CocoAnnotations, losses: Losses):
    """Counts what is in a COCO file but not in its annotations as they are read, and ids that change."""
    content = json.loads(Path(annotations.source).read_text(encoding="utf-8-sig"))
    for field, kind in _FIELD_LOSSES.items():
        losses.count_fields(kind, content.get(field, ()) if field else [content], _CARRIED[field])
    losses.counts["file"] = len(losses.fields["file"])
    ids = sorted(annotations.categories)
    losses.counts["categories"] = len(content["categories"]) - len(ids)
    losses.counts["category_id"] = len(ids) if ids != list(range(len(ids))) else 0
    losses.counts["classes"] = len(annotations.schema.classes or ())
    stems = [PurePosixPath(image["file_name"]).stem for image in annotations.images]
    if any(
        not stem.isdecimal() or int(stem) != image["id"] for stem, image in zip(stems, annotations.images, strict=True)
    ):
        losses.counts["image_id"] = len(stems)


def _write_images(folder: Path, annotations: CocoAnnotations, link: bool) -> list[Path]:
    """Copies or links the images into a folder; returns the label file of each."""
    targets = _new_paths(annotations, [image["file_name"] for image in annotations.images])
    files = [label_path(folder / target) for target in targets]
    problems, index_of = Problems(annotations.source), {}
    for index, file in enumerate(files):
        other = index_of.setdefault(file, index)
        if other != index:
            accepted = f"another name than {targets[other]} but for the suffix, as both have one label file"
            problems.add(f"image {annotations.images[index]['id']}", "`file_name`", accepted, str(targets[index]))
    problems.raise_any()
    _place_images(annotations, [folder / target for target in targets], link)
    return files


def _new_paths(annotations: CocoAnnotations, names: Sequence[str]) -> list[Path]:
    """Returns relative paths for names, without the root of those that are absolute, and without `..`."""
    paths = [Path(*(part for part in Path(name).parts if part not in (Path(name).anchor, ".."))) for name in names]
    problems, seen = Problems(annotations.source), {}
    for name, path in zip(names, paths, strict=True):
        if seen.setdefault(path, name) != name:
            problems.add(f"image {name}", "the name", f"another one than that of {seen[path]} in a copy", str(path))
    problems.raise_any()
    return paths


def _place_images(annotations: CocoAnnotations, targets: Sequence[Path], link: bool):
    """Copies the images, or makes links to them."""
    source_folder = Path(annotations.image_folder).absolute()
    for image, target in zip(tqdm(annotations.images, "images", unit="image"), targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        source = source_folder / image["file_name"]
        if link:
            os.symlink(source, target)
        else:
            shutil.copyfile(source, target)


def _write_labels(
    files: Sequence[Path],
    annotations: CocoAnnotations,
    sizes_wh: np.ndarray,
    category_ids: list[int],
    losses: Losses,
):
    """Writes the label file of each image, unless the dataset is a test set without annotations."""
    if annotations.instances is None:
        return
    people = _carried(annotations.instances, sizes_wh, losses)
    lines: list[list[str]] = [[] for _ in files]
    for image_index, line in zip(people.image_index, _label_lines(people, sizes_wh, category_ids), strict=True):
        lines[image_index].append(line)
    for file, own in zip(files, lines, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(line + "\n" for line in own), encoding="utf-8")


def _label_lines(people: Instances, sizes_wh: np.ndarray, category_ids: list[int]) -> Iterator[str]:
    """Yields the line of each person."""
    size_wh = sizes_wh[people.image_index]
    points = np.concatenate([people.keypoints[..., :2] / size_wh[:, None], people.keypoints[..., 2:]], axis=-1)
    corner, extent = people.boxes[:, :2] / size_wh, people.boxes[:, 2:] / size_wh
    values = np.concatenate([corner + extent / 2, extent, points.reshape(len(people), 3 * points.shape[1])], axis=1)
    for category_id, row in zip(people.category_ids, values.tolist(), strict=True):
        yield " ".join([str(category_ids.index(category_id)), *(f"{value:.{_DIGITS}g}" for value in row)])


def _sizes_wh(annotations: CocoAnnotations) -> np.ndarray:
    """Returns the width and height of each image (n, 2) from the files, after comparing them with the annotations."""
    problems = Problems(annotations.source)
    files = [Path(annotations.image_folder) / image["file_name"] for image in annotations.images]
    sizes_hw = read_sizes(files, problems)
    problems.raise_any()
    for image, size_hw in zip(annotations.images, sizes_hw, strict=True):
        given = (image.get("height") or size_hw[0], image.get("width") or size_hw[1])
        if given != size_hw:
            problems.add(f"image {image['id']}", "height and width", f"{size_hw}, as of the upright image", given)
    problems.raise_any()
    return np.array(sizes_hw, dtype=float).reshape(-1, 2)[:, ::-1]


def _carried(people: Instances, sizes_wh: np.ndarray, losses: Losses) -> Instances:
    """Returns the people that YOLO carries, within their images; counts the losses."""
    counts = losses.counts
    counts["crowd"] = int(people.is_crowd.sum())
    people = people[~people.is_crowd]
    counts["area"] = int((people.areas > 0).sum())
    counts["count"] = int((people.num_keypoints != (people.keypoints[..., 2] > 0).sum(-1)).sum())
    limits = sizes_wh[people.image_index]

    has_box, boxes = people.has_box, people.completed().boxes
    people = replace(people, keypoints=_keypoints_within(people.keypoints, limits[:, None], counts))
    counts["made_box"] = int((~has_box & people.is_labelled).sum())
    first, last = np.clip(boxes[:, :2], 0, limits), np.clip(boxes[:, :2] + boxes[:, 2:], 0, limits)
    within = np.concatenate([first, last - first], axis=1)
    counts["clipped"] += int((has_box & (np.abs(within - boxes) > 1e-6).any(-1)).sum())
    is_kept = np.isfinite(within).all(-1) & ((within[:, 2:] > 0).all(-1) | people.is_labelled)
    counts["empty"] = int((~is_kept).sum())
    return replace(people, boxes=within)[is_kept]


def _keypoints_within(keypoints: np.ndarray, limits: np.ndarray, counts: Counter) -> np.ndarray:
    """Returns keypoints (n, K, 3) within their images, of width and height `limits` (n, 1, 2)."""
    xy, labeled = keypoints[..., :2], keypoints[..., 2] > 0
    is_outside = labeled & ((xy < -TOLERANCE_PIXELS) | (xy > limits + TOLERANCE_PIXELS)).any(-1)
    is_inside = labeled & ~is_outside
    clipped = np.clip(xy, 0, limits)
    counts["outside"] += int(is_outside.sum())
    counts["clipped"] += int((clipped != xy)[is_inside].any(-1).sum())
    return np.concatenate([clipped, keypoints[..., 2:]], axis=-1) * is_inside[..., None]


def yolo_to_coco(
    output: str | os.PathLike,
    file: str | os.PathLike,
    schema: Mapping[str, Any] | None = None,
    link: bool = False,
) -> list[str]:
    """Writes the splits of a YOLO pose dataset as COCO files, `train.json` and so on, beside folders of their images.

    The entries of `categories` have the fields `flip_pairs` and `sigmas`, which other readers ignore.

    Args:
        output: folder to create; it appears only once it is complete.
        file: the `data.yaml`.
        schema: fields of a keypoint schema in place of those in the file, see `read_schema`.
        link: whether to make symbolic links to the images instead of copies.

    Returns:
        One line for each thing that was made up.

    Raises:
        FileExistsError: if the folder exists and is not empty.
        OSError: if a file cannot be read or written.
        DataError: a `ValueError`, if the dataset is invalid, or copies of images would have the same name.
    """
    check_new_folder(output)
    dataset, lines = read_yolo_file(file), []
    if not dataset.splits:
        raise DataError(f"{dataset.source}: names no images for `train`, `val` or `test`.")
    read = {split: read_annotations(file, schema, split) for split in dataset.splits}
    with whole_folder(output) as folder:
        for split, annotations in read.items():
            paths = [Path(annotations.image_folder) / image["file_name"] for image in annotations.images]
            base = split_folder(dataset, split)
            paths = _new_paths(annotations, [os.fspath(_below(path, base)) for path in paths])
            _place_images(annotations, [folder / split / path for path in paths], link)
            losses = Losses(annotations.source)
            content = _coco_content(annotations, [path.as_posix() for path in paths], losses)
            if annotations.instances is not None and dataset.num_values == 2:
                losses.counts["visibility"] = int((annotations.instances.keypoints[..., 2] > 0).sum())
            (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
            lines += losses.lines()
    return lines


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _coco_content(annotations: CocoAnnotations, file_names: Sequence[str], losses: Losses) -> dict[str, Any]:
    """Returns annotations as the content of a COCO file."""
    schema: KeypointSchema = annotations.schema
    images = [{**image, "file_name": name} for image, name in zip(annotations.images, file_names, strict=True)]
    categories = [schema.to_coco_category(index, name) for index, name in annotations.categories.items()]
    content = {"images": images, "categories": categories}
    if annotations.instances is not None:
        people = annotations.instances
        losses.counts["estimated_area"] = len(people)
        content["annotations"] = list(_coco_entries(people.completed(), annotations.images))
    return content


def _coco_entries(people: Instances, images: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for index in range(len(people)):
        points = ((x, y, int(visibility)) for x, y, visibility in people.keypoints[index].tolist())
        yield {
            "id": index + 1,
            "image_id": images[people.image_index[index]]["id"],
            "category_id": int(people.category_ids[index]),
            "keypoints": [value for point in points for value in point],
            "num_keypoints": int(people.num_keypoints[index]),
            "bbox": people.boxes[index].tolist(),
            "area": float(people.areas[index]),
            "iscrowd": int(people.is_crowd[index]),
        }
