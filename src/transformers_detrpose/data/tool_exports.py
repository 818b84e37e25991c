"""What annotation tools write otherwise than COCO, put into COCO's form before it is validated.

Each of these habits is logged once for a file, with the number of entries concerned.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

logger = logging.getLogger(__name__)

Entry = Mapping[str, Any]

NOTES = {
    "float_id": "ids are floating-point numbers, such as 7.0, taken for integers",
    "no_visibility": "annotations give only x and y of each keypoint: those at (0, 0) count as not labeled, others as "
    "visible",
    "zero_based": "categories have a `skeleton` whose indices count from 0, not from 1 as in COCO, because one of them "
    "is 0",
    "repeated": "annotations have exactly the keypoints of another one in the same image; all of them are kept",
    "no_count": "annotations have no `num_keypoints`: labeled keypoints are counted",
}
# Nothing is guessed here, so that there is nothing to warn of.
_HARMLESS = {"no_count"}
_ID_FIELDS = ("id", "image_id", "category_id")
# Label Studio puts eight characters before the names of uploaded files.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
_UNUSUAL_NAME = re.compile(r"[/\\%?]|" + _UPLOAD_PREFIX.pattern)


def tidy_images(images: Sequence[Entry], source: str) -> list[Entry]:
    """Returns the image entries of a COCO file with integer ids; changed entries are copies."""
    counts: Counter[str] = Counter()
    tidied = [_with_integer_ids(image, counts) for image in images]
    _log(counts, source)
    return tidied


def tidy_categories(categories: Sequence[Entry], source: str) -> list[Entry]:
    """Returns the categories of a COCO file with integer ids, and the indices of each `skeleton` counted from 1.

    Args:
        categories: the entries. If an index of any of them is 0, all count from 0, as one tool has written them.
        source: name of the file, for messages.

    Returns:
        The entries; changed ones are copies.
    """
    counts: Counter[str] = Counter()
    tidied = [_with_integer_ids(category, counts) for category in categories]
    edges = {index: _edges(category) for index, category in enumerate(tidied) if _num_names(category)}
    lowest = min((min(pair) for pairs in edges.values() for pair in pairs), default=1)
    fits = all(max(pair) < _num_names(tidied[index]) for index, pairs in edges.items() for pair in pairs)
    if lowest == 0 and fits:
        for index, pairs in edges.items():
            tidied[index] = {**tidied[index], "skeleton": [[start + 1, end + 1] for start, end in pairs]}
        counts["zero_based"] = sum(map(bool, edges.values()))
    _log(counts, source)
    return tidied


def tidy_annotations(
    annotations: Sequence[Entry], categories: Sequence[Entry], num_keypoints: int, source: str
) -> list[Entry]:
    """Returns the annotations of a COCO file with integer ids and the visibility of each keypoint.

    Args:
        annotations: the entries.
        categories: the categories, whose `keypoints` tell how many an annotation has.
        num_keypoints: their number in categories that do not list them.
        source: name of the file, for messages.

    Returns:
        The entries; changed ones are copies.
    """
    num_names = {category["id"]: _num_names(category) or num_keypoints for category in categories}
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    tidied = []
    for annotation in annotations:
        annotation = _with_integer_ids(annotation, counts)
        keypoints = annotation.get("keypoints")
        if isinstance(keypoints, list) and keypoints:
            category_id = annotation.get("category_id")
            count = num_names.get(category_id) if isinstance(category_id, int) else None
            if _lacks_visibility(keypoints, count):
                annotation = {**annotation, "keypoints": _with_visibility(keypoints)}
                counts["no_visibility"] += 1
            counts["no_count"] += annotation.get("num_keypoints") is None
            counts["repeated"] += _is_repeated(annotation, seen)
        tidied.append(annotation)
    _log(counts, source)
    return tidied


def _log(counts: Counter, source: str):
    for kind, count in counts.items():
        if count:
            level = logging.INFO if kind in _HARMLESS else logging.WARNING
            logger.log(level, "%s: %d %s.", source, count, NOTES[kind])


def _with_integer_ids(entry: Entry, counts: Counter) -> Entry:
    changed = {}
    for field in _ID_FIELDS:
        value = entry.get(field)
        if isinstance(value, float) and value.is_integer():
            changed[field] = int(value)
    counts["float_id"] += len(changed)
    return {**entry, **changed} if changed else entry


def _num_names(category: Entry) -> int:
    names = category.get("keypoints")
    return len(names) if isinstance(names, (list, tuple)) else 0


def _edges(category: Entry) -> list[list[int]]:
    """Returns the pairs of a `skeleton`; none if it is not a list of pairs of integers."""
    skeleton = category.get("skeleton")
    pairs = skeleton if isinstance(skeleton, (list, tuple)) else []
    if all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(i) is int for i in pair) for pair in pairs):
        return [list(pair) for pair in pairs]
    return []


def _lacks_visibility(keypoints: list, count: int | None) -> bool:
    if not count:
        return False
    if len(keypoints) == count and all(isinstance(point, (list, tuple)) and len(point) == 2 for point in keypoints):
        return True
    return len(keypoints) == 2 * count and all(isinstance(value, (int, float)) for value in keypoints)


def _with_visibility(keypoints: list) -> list:
    pairs = keypoints if isinstance(keypoints[0], (list, tuple)) else zip(keypoints[::2], keypoints[1::2], strict=True)
    return [value for x, y in pairs for value in (x, y, 0 if x == y == 0 else 2)]


def _is_repeated(annotation: Entry, seen: set[int]) -> bool:
    """Returns whether an earlier annotation of the same image and category has the same labeled keypoints."""
    try:
        key = hash((annotation.get("image_id"), annotation.get("category_id"), *annotation["keypoints"]))
        is_repeated = key in seen and any(annotation["keypoints"])
        seen.add(key)
    except TypeError:  # nested, or not numbers
        return False
    return is_repeated


def find_file_names(folder: str | os.PathLike, names: Sequence[str], source: str) -> list[str]:
    """Returns the names of image files in a folder, for names that an annotation tool has written.

    Tools write paths of other folders, Windows' separators, parts of URLs, and names of uploads. A name for which there
    is no file stands for the first of these that is one: the name with `/` for Windows' separators, without its first
    folders, without the encoding of URLs, and without Label Studio's prefix of uploads.

    Args:
        folder: the folder.
        names: the names in the annotation file.
        source: name of the file, for messages.

    Returns:
        For each name the file's, or the name itself if there is none, or if another name stands for the same file.
    """
    is_unusual = [bool(name) and _UNUSUAL_NAME.search(name) is not None for name in names]
    if not any(is_unusual):  # looking for thousands of files takes time
        return list(names)
    found = [_find(folder, name) if unusual else name for name, unusual in zip(names, is_unusual, strict=True)]
    times = Counter(found)
    found = [other if times[other] == 1 else name for name, other in zip(names, found, strict=True)]
    changed = [(name, other) for name, other in zip(names, found, strict=True) if name != other]
    if changed:
        name, other = changed[0]
        logger.warning(
            "%s: %d images are found under other names than the file gives, such as %s for %s.",
            source, len(changed), other, name,
        )  # fmt: skip
    return found


def _find(folder: str | os.PathLike, name: str) -> str:
    if os.path.isfile(os.path.join(folder, name)):
        return name
    return next((other for other in _other_names(name) if os.path.isfile(os.path.join(folder, other))), name)


def _other_names(name: str) -> Iterator[str]:
    """Yields relative paths that a name may stand for."""
    parts = urlsplit(name) if "?" in name or "://" in name else None
    path = name if parts is None else (parse_qs(parts.query).get("d") or [parts.path])[0]
    path = path.replace("\\", "/")
    for decoded in dict.fromkeys((path, unquote(path))):
        folders = [part for part in PurePosixPath(decoded).parts if part not in ("/", "..")]
        yield from ("/".join(folders[start:]) for start in range(len(folders)))
        if folders:
            yield _UPLOAD_PREFIX.sub("", folders[-1])
