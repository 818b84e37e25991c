"""Reads and validates annotation files in COCO format, for training, evaluation and everything else."""

import json
import logging
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from ..instances import LARGEST_COORDINATE, DataError, Instances, Problems, is_id, parse_instances
from ..keypoint_schemas import KeypointSchema, unite_schemas

logger = logging.getLogger(__name__)

# Category ids are the model's labels, and a model has one class for each label up to the largest.
LARGEST_CATEGORY_ID = 10_000


@dataclass(frozen=True)
class CocoAnnotations:
    """The validated content of an annotation file in COCO format.

    Args:
        source: name of the file, for messages.
        schema: the keypoints.
        categories: names by id of the categories with keypoints, or of all categories if none lists its keypoints.
        images: image entries of the file, each with a unique `id`.
        instances: annotations of these categories; `None` if the file has no `annotations`, as for test sets.
    """

    source: str
    schema: KeypointSchema
    categories: dict[int, str]
    images: list[Mapping[str, Any]]
    instances: Instances | None

    @property
    def id2label(self) -> dict[int, str]:
        """`dict[int, str]`: names of the labels 0, 1, ..., the category ids; "N/A" for those the file does not use."""
        return {label: self.categories.get(label, "N/A") for label in range(max(self.categories, default=-1) + 1)}

    def first_images(self, count: int | None) -> "CocoAnnotations":
        """Returns the first images with their annotations; all images if `count` is `None`."""
        if count is None:
            return self
        instances = None if self.instances is None else self.instances[self.instances.image_index < count]
        return replace(self, images=self.images[:count], instances=instances)


def read_annotations(
    annotations: str | os.PathLike | Mapping[str, Any] | CocoAnnotations,
    schema: KeypointSchema | dict | str | None = None,
    share_keypoints: bool = True,
) -> CocoAnnotations:
    """Reads and validates annotations in COCO format.

    The file has `images` (`id`; optionally `file_name`, `height` and `width` in pixels, CrowdPose's `crowdIndex`),
    `categories` (`id`, `name`, and `keypoints`, their names in order; optionally `skeleton`) and `annotations`
    (`image_id`, `category_id`; optionally `id`, `keypoints`, `bbox`, `area`, `iscrowd` and `num_keypoints`; see
    `parse_instances`), except for test sets, which have none. Ids are unique integers. Annotations of categories
    without keypoints are left out if other categories have keypoints. Missing and empty boxes and areas are accepted;
    see `Instances.completed` for their substitutes.

    Categories may have different keypoints. The schema is then their union, and an annotation holds the keypoints of
    its category.

    Args:
        annotations: a path, the content of a file, or a result of this function, which is not validated again.
        schema: the keypoints of the model, or a known name; read from `categories` if not given.
        share_keypoints: whether keypoints of the same name in several categories are one keypoint, if the schema is
            read from `categories`; see `unite_schemas`.

    Raises:
        OSError: if the file cannot be opened.
        DataError: a `ValueError`, if anything is invalid. The message has one line for each of the first ten problems,
            with file, annotation, field, what was found and what would be accepted.
    """
    schema = None if schema is None else KeypointSchema.of(schema)
    if isinstance(annotations, CocoAnnotations):
        if schema is None:
            return annotations
        _check_order(annotations.source, "the file", annotations.schema, schema)
        _check_classes(annotations, schema)
        return replace(annotations, schema=schema)

    content, source = _load(annotations)
    images, categories = _entries(content, "images", source), _entries(content, "categories", source)
    people = _entries(content, "annotations", source) if "annotations" in content else None
    names, schema = _read_categories(categories, schema, source, share_keypoints)
    problems = Problems(source)
    index_of = _index_images(images, problems)
    instances = None
    if people is not None:
        others = {category["id"] for category in categories} - set(names)
        instances = _read_instances(people, index_of, set(names), others, schema, problems)
    problems.raise_any()
    return CocoAnnotations(source, schema, names, list(images), instances)


def read_coco_categories(
    annotation_file: str | os.PathLike, share_keypoints: bool = True
) -> tuple[KeypointSchema, dict[int, str]]:
    """Reads the schema and the category names from the `categories` of a COCO keypoint file.

    Args:
        annotation_file: a COCO-format JSON file.
        share_keypoints: see `read_annotations`.

    Returns:
        The schema, and `id2label`, which maps each category id of the file, and every smaller id that the file does not
        use (as "N/A"), to a name: labels are the file's own category ids.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if the file is not a COCO file, or has no categories with keypoints.
    """
    content, source = _load(annotation_file)
    names, schema = _read_categories(_entries(content, "categories", source), None, source, share_keypoints)
    return schema, CocoAnnotations(source, schema, names, [], None).id2label


def _load(annotations: str | os.PathLike | Mapping[str, Any]) -> tuple[Any, str]:
    """Returns the content of a file and its name for messages."""
    if isinstance(annotations, Mapping):
        return annotations, "annotations"
    source = os.fspath(annotations)
    with open(source, encoding="utf-8") as file:
        try:
            return json.load(file), source
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: not a JSON file, or too deeply nested ({error}).") from error


def _entries(content: Any, key: str, source: str) -> Sequence[Mapping[str, Any]]:
    """Returns one of the top-level lists of a file."""
    entries = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(entries, (list, tuple)) and all(isinstance(entry, Mapping) for entry in entries):
        return entries
    found = f"has {reprlib.repr(list(content))}" if isinstance(content, Mapping) else f"is a {type(content).__name__}"
    raise DataError(f"{source}: not a COCO file, for `{key}` is missing or not a list of dictionaries; it {found}.")


def _read_categories(
    categories: Sequence[Mapping[str, Any]], schema: KeypointSchema | None, source: str, share_keypoints: bool
) -> tuple[dict[int, str], KeypointSchema]:
    """Returns the names of the categories with keypoints (of all, if none lists its keypoints), and the schema."""
    _check_categories(categories, source)
    posed = [category for category in categories if category.get("keypoints")]
    known = None if schema is None else schema.classes
    others = [category for category in categories if known is None or category["id"] in known]
    names = {category["id"]: category["name"] for category in posed or others}
    try:
        found = {category["id"]: KeypointSchema.from_coco_category(category) for category in posed}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: {error}") from error
    if schema is not None:
        for category_id, own in found.items():
            what = f"category {names[category_id]!r}"
            if known is not None and category_id not in known:
                raise DataError(
                    f"{source}: {what} has the id {category_id}, but `schema` has the classes {list(known)}."
                )
            _check_order(source, what, own, schema.of_class(category_id).schema)
        return names, schema
    if not found:
        raise DataError(
            f"{source}: no entry of `categories` has `keypoints`: add their names, or pass `schema` in Python."
        )
    if len(set(found.values())) == 1:
        return names, next(iter(found.values()))
    try:
        return names, unite_schemas(found, names, share_keypoints)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def _check_categories(categories: Sequence[Mapping[str, Any]], source: str):
    """Raises `DataError` unless every category has a unique id and a name."""
    problems, seen = Problems(source), set()
    for number, category in enumerate(categories):
        where, category_id = f"category number {number}", category.get("id")
        if not is_id(category_id) or not 0 <= category_id <= LARGEST_CATEGORY_ID:
            problems.add(where, "`id`", f"an integer from 0 to {LARGEST_CATEGORY_ID}", category_id)
        elif category_id in seen:
            problems.add(where, "`id`", "no other category's", category_id)
        else:
            seen.add(category_id)
        if not isinstance(category.get("name"), str) or not category["name"]:
            problems.add(where, "`name`", "a text", category.get("name"))
    problems.raise_any()


def _check_classes(annotations: CocoAnnotations, schema: KeypointSchema):
    """Raises `DataError` if classes have other keypoints in a schema than in annotations that were read without it."""
    if annotations.instances is None:
        return
    for label in annotations.categories:
        found, wanted = (each.of_class(label).indices for each in (annotations.schema, schema))
        if found != wanted:
            raise DataError(
                f"{annotations.source}: category {annotations.categories[label]!r} was read with the keypoints {found} "
                f"of the file, but has {wanted} in `schema`: read the file with this schema."
            )


def _check_order(source: str, what: str, found: KeypointSchema, schema: KeypointSchema):
    """Raises `DataError` if the keypoints of a file cannot be those of a schema; warns if their names differ."""
    if found.num_keypoints != schema.num_keypoints:
        raise DataError(
            f"{source}: {what} has {found.num_keypoints} keypoints, but `schema` has {schema.num_keypoints}."
        )
    moved = [
        name for name in found.names if name in schema.names and found.names.index(name) != schema.names.index(name)
    ]
    if moved:
        raise DataError(
            f"{source}: {what} has the keypoints {list(found.names)}, but `schema` has them in another order: "
            f"{list(schema.names)}."
        )
    if found.names != schema.names:
        logger.warning("%s: keypoints %s are taken for %s.", source, list(found.names), list(schema.names))


def _index_images(images: Sequence[Mapping[str, Any]], problems: Problems) -> dict[int, int]:
    """Returns the index of each image by its id."""
    index_of = {}
    for index, image in enumerate(images):
        image_id = image.get("id")
        where = f"image {image_id}" if is_id(image_id) else f"image number {index}"
        if not is_id(image_id):
            problems.add(where, "`id`", "an integer", image_id)
        elif index_of.setdefault(image_id, index) != index:
            problems.add(where, "`id`", "no other image's", image_id)
        for field, (is_accepted, accepted) in _IMAGE_FIELDS.items():
            value = image.get(field)
            if value is not None and not is_accepted(value):
                problems.add(where, f"`{field}`", accepted, value)
    return index_of


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_length(value: Any) -> bool:
    return _is_number(value) and 1 <= value <= LARGEST_COORDINATE and value == int(value)


_IMAGE_FIELDS = {
    "file_name": (lambda value: isinstance(value, str), "a text"),
    "height": (_is_length, "a whole number of pixels"),
    "width": (_is_length, "a whole number of pixels"),
    "crowdIndex": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
}


def _read_instances(
    annotations: Sequence[Mapping[str, Any]],
    index_of: dict[int, int],
    categories: set[int],
    others: set[int],
    schema: KeypointSchema,
    problems: Problems,
) -> Instances:
    """Reads the annotations of the given categories, and leaves out those of others."""
    kept, names, image_index, seen = [], [], [], set()
    for number, annotation in enumerate(annotations):
        annotation_id, image_id = annotation.get("id"), annotation.get("image_id")
        has_id, has_image = is_id(annotation_id), is_id(image_id) and image_id in index_of
        name = f"annotation {annotation_id}" if has_id else f"annotation number {number}"
        name = f"{name} of image {image_id}" if has_image else name
        if annotation_id in seen if has_id else annotation_id is not None:
            problems.add(name, "`id`", "an integer that no other annotation has", annotation_id)
        elif has_id:
            seen.add(annotation_id)
        if not has_image:
            problems.add(name, "`image_id`", "the `id` of one of the images", image_id)
        elif not _is_left_out(annotation, others):
            kept.append(annotation)
            names.append(name)
            image_index.append(index_of[image_id])
    return parse_instances(kept, names, schema.num_keypoints, problems, categories, image_index, schema.classes)


def _is_left_out(annotation: Mapping[str, Any], categories: set[int]) -> bool:
    """Returns whether an annotation belongs to a category without keypoints and has no labeled keypoint."""
    category_id, keypoints = annotation.get("category_id"), annotation.get("keypoints")
    if not is_id(category_id) or category_id not in categories:
        return False
    return not (isinstance(keypoints, list) and any(_is_number(value) and value > 0 for value in keypoints[2::3]))
