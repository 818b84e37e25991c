"""Reads and validates annotation files, in COCO or YOLO format, for training, evaluation and everything else."""

import json
import logging
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from ..instances import LARGEST_COORDINATE, DataError, Instances, Problems, is_id, parse_instances
from ..keypoint_schemas import KeypointSchema, unite_schemas
from .schema_files import completed_schema
from .tool_exports import find_file_names, tidy_annotations, tidy_categories, tidy_images
from .yolo_files import YOLO_SUFFIXES, read_yolo, read_yolo_file

logger = logging.getLogger(__name__)

# Category ids are the model's labels, and a model has one class for each label up to the largest.
LARGEST_CATEGORY_ID = 10_000


@dataclass(frozen=True)
class CocoAnnotations:
    """The validated content of an annotation file, in the terms of COCO's format.

    Args:
        source: name of the file, for messages.
        schema: the keypoints.
        categories: names by id of the categories with keypoints, or of all categories if none lists its keypoints.
        images: image entries of the file, each with a unique `id`.
        instances: annotations of these categories; `None` if the file has no `annotations`, as for test sets.
        image_folder: folder that the images' `file_name` is relative to; `None` if the file does not say, as in COCO.
        has_image_sizes: whether the heights and widths were read from the images themselves.
    """

    source: str
    schema: KeypointSchema
    categories: dict[int, str]
    images: list[Mapping[str, Any]]
    instances: Instances | None
    image_folder: str | None = None
    has_image_sizes: bool = False

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

    def located(self, image_folder: str | os.PathLike | None) -> "CocoAnnotations":
        """Returns the annotations with the folder of their images, and with file names that exist in it.

        Args:
            image_folder: the folder; `None` if the annotations have it.

        Raises:
            FileNotFoundError: if there is no such folder.
            DataError: a `ValueError`, if neither or both say where the images are, or an image has no file name.
        """
        if image_folder is None:
            if self.image_folder is None:
                raise DataError(f"{self.source}: in COCO's format, the folder of the images must be given, too.")
            return self
        if self.image_folder is not None:
            raise DataError(
                f"{self.source}: its images are in {self.image_folder}, so no other folder can be given, but got "
                f"{os.fspath(image_folder)}."
            )
        folder = os.fspath(image_folder)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"image folder {folder} does not exist or is not a folder.")
        names = find_file_names(folder, _file_names(self), self.source)
        images = [
            image if image["file_name"] == name else {**image, "file_name": name}
            for image, name in zip(self.images, names, strict=True)
        ]
        return replace(self, images=images, image_folder=folder)


def _file_names(content: CocoAnnotations) -> list[str]:
    """Returns the file name of each image."""
    problems = Problems(content.source)
    names = [image.get("file_name") for image in content.images]
    for image, name in zip(content.images, names, strict=True):
        if not name:
            problems.add(f"image {image['id']}", "`file_name`", "the name of a file", name)
    problems.raise_any()
    return names


def read_annotations(
    annotations: str | os.PathLike | Mapping[str, Any] | CocoAnnotations,
    schema: KeypointSchema | Mapping[str, Any] | str | None = None,
    split: str = "val",
    share_keypoints: bool = True,
) -> CocoAnnotations:
    """Reads and validates annotations in COCO's format, or the `data.yaml` of a YOLO pose dataset (see `read_yolo`).

    A COCO file has `images` (`id`; optionally `file_name`, `height` and `width` in pixels, CrowdPose's `crowdIndex`),
    `categories` (`id`, `name`, and `keypoints`, their names in order; optionally `skeleton`) and `annotations`
    (`image_id`, `category_id`; optionally `id`, `keypoints`, `bbox`, `area`, `iscrowd` and `num_keypoints`; see
    `parse_instances`), except for test sets, which have none. Ids are unique integers. Annotations of categories
    without keypoints are left out if other categories have keypoints. Missing and empty boxes and areas are accepted;
    see `Instances.completed` for their substitutes. What annotation tools write otherwise is read as well, and noted in
    the log; see `tool_exports`.

    Categories may have different keypoints. The schema is then their union, and an annotation holds the keypoints of
    its category.

    Args:
        annotations: a path, the content of a COCO file, or a result of this function, which is not validated again.
        schema: the keypoints of the model, or a known name; read from `categories` if not given. A dictionary with some
            fields of a schema, such as a result of `read_schema`, takes the others from `categories`.
        split: images to read of a YOLO dataset: "train", "val" or "test".
        share_keypoints: whether keypoints of the same name in several categories are one keypoint, if the schema is
            read from `categories`; see `unite_schemas`.

    Raises:
        OSError: if the file cannot be opened.
        DataError: a `ValueError`, if anything is invalid. The message has one line for each of the first ten problems,
            with file, annotation, field, what was found and what would be accepted.
    """
    if isinstance(annotations, CocoAnnotations):
        return _with_schema(annotations, schema)
    if _is_yolo(annotations):
        yolo = read_yolo(annotations, split)
        result = _read_content(yolo.content, yolo.source, schema, share_keypoints)
        if result.instances is not None:
            result.instances.names[:] = yolo.names
        return replace(result, image_folder=yolo.folder, has_image_sizes=True)
    return _read_content(*_load(annotations), schema, share_keypoints)


def _is_yolo(annotations: Any) -> bool:
    return not isinstance(annotations, Mapping) and Path(annotations).suffix.lower() in YOLO_SUFFIXES


def _with_schema(annotations: CocoAnnotations, schema) -> CocoAnnotations:
    """Returns annotations with another schema of the same keypoints."""
    if schema is None:
        return annotations
    is_partial = isinstance(schema, Mapping)
    schema = completed_schema(schema, annotations.schema) if is_partial else KeypointSchema.of(schema)
    _check_order(annotations.source, "the file", annotations.schema, schema)
    _check_classes(annotations, schema)
    return replace(annotations, schema=schema)


def _read_content(content: Any, source: str, schema, share_keypoints: bool) -> CocoAnnotations:
    """Reads the content of a COCO file."""
    images = tidy_images(_entries(content, "images", source), source)
    categories = tidy_categories(_entries(content, "categories", source), source)
    people = _entries(content, "annotations", source) if "annotations" in content else None
    if isinstance(schema, Mapping):
        schema = _completed(schema, categories, source, share_keypoints)
    schema = None if schema is None else KeypointSchema.of(schema)
    names, schema = _read_categories(categories, schema, source, share_keypoints)
    problems = Problems(source)
    index_of = _index_images(images, problems)
    instances = None
    if people is not None:
        people = tidy_annotations(people, categories, schema.num_keypoints, source)
        others = {category["id"] for category in categories} - set(names)
        instances = _read_instances(people, index_of, set(names), others, schema, problems)
    problems.raise_any()
    return CocoAnnotations(source, schema, names, images, instances)


def _completed(
    given: Mapping[str, Any], categories: Sequence[Mapping[str, Any]], source: str, share_keypoints: bool
) -> KeypointSchema:
    """Returns a schema of the given fields and, for others, of those in `categories`."""
    has_keypoints = any(category.get("keypoints") for category in categories)
    own = _read_categories(categories, None, source, share_keypoints)[1] if has_keypoints else None
    try:
        return completed_schema(given, own)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def read_coco_categories(
    annotation_file: str | os.PathLike, share_keypoints: bool = True
) -> tuple[KeypointSchema, dict[int, str]]:
    """Reads the schema and the category names from the `categories` of a COCO keypoint file.

    Args:
        annotation_file: a COCO-format JSON file, or the `data.yaml` of a YOLO dataset.
        share_keypoints: see `read_annotations`.

    Returns:
        The schema, and `id2label`, which maps each category id of the file, and every smaller id that the file does not
        use (as "N/A"), to a name: labels are the file's own category ids.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if the file is not a COCO file, or has no categories with keypoints.
    """
    if _is_yolo(annotation_file):
        content, source = {"categories": read_yolo_file(annotation_file).categories}, os.fspath(annotation_file)
    else:
        content, source = _load(annotation_file)
    categories = tidy_categories(_entries(content, "categories", source), source)
    names, schema = _read_categories(categories, None, source, share_keypoints)
    return schema, CocoAnnotations(source, schema, names, [], None).id2label


def _load(annotations: str | os.PathLike | Mapping[str, Any]) -> tuple[Any, str]:
    """Returns the content of a file and its name for messages."""
    if isinstance(annotations, Mapping):
        return annotations, "annotations"
    source = os.fspath(annotations)
    with open(source, encoding="utf-8-sig") as file:  # with or without a byte order mark
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
            f"{source}: no entry of `categories` has `keypoints`: add their names, or give a schema that has them."
        )
    if len({own.names for own in found.values()}) == 1:
        return names, _with_all_edges(list(found.values()), source)
    try:
        return names, unite_schemas(found, names, share_keypoints)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def _with_all_edges(schemas: Sequence[KeypointSchema], source: str) -> KeypointSchema:
    """Returns the schema of categories with the same keypoints, which has the edges of all of them."""
    first = schemas[0]
    edges: dict[frozenset, tuple[int, int]] = {}
    for edge in (edge for schema in schemas for edge in schema.edges):
        edges.setdefault(frozenset(edge), edge)
    if any(set(map(frozenset, schema.edges)) != set(edges) for schema in schemas):
        logger.warning("%s: categories have the same keypoints, but other edges: all edges are drawn.", source)
    if any((schema.flip_pairs, schema.sigmas) != (first.flip_pairs, first.sigmas) for schema in schemas):
        logger.warning("%s: categories have other `flip_pairs` or `sigmas`: those of the first are used.", source)
    return first if set(map(frozenset, first.edges)) == set(edges) else replace(first, edges=tuple(edges.values()))


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
