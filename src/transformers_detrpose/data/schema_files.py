"""Keypoint schemas in files, which give what an annotation file lacks."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..instances import DataError
from ..keypoint_schemas import SCHEMAS, KeypointSchema
from .tool_exports import tidy_categories

_FIELDS = ("names", "edges", "flip_pairs", "sigmas")


def read_schema(schema: str | os.PathLike | None) -> dict[str, Any] | None:
    """Reads fields of a keypoint schema, for the parameter `schema` of `read_annotations`.

    Args:
        schema: a JSON or YAML file, or the name of a known schema ("coco", "crowdpose"). The file holds some of the
            fields of a `KeypointSchema` (`names`, `edges` and `flip_pairs`, with indices from 0, and `sigmas`), or an
            entry of the `categories` of a COCO file (`keypoints`, and `skeleton`, usually with indices from 1).

    Returns:
        The fields in the file; `None` if `schema` is.

    Raises:
        OSError: if the file cannot be opened.
        DataError: a `ValueError`, if it is in another format.
    """
    if schema is None:
        return None
    if schema in SCHEMAS:
        return SCHEMAS[schema].to_dict()
    content = load_yaml(schema)
    if isinstance(content, Mapping) and "keypoints" in content:
        try:
            return _fields_of_category(content, os.fspath(schema))
        except ValueError as error:
            raise DataError(f"{schema}: {error}") from error
    if not isinstance(content, Mapping) or not content or not set(content) <= set(_FIELDS):
        found = f"has {list(content)}" if isinstance(content, Mapping) else f"is a {type(content).__name__}"
        raise DataError(f"{schema}: not a keypoint schema, which has some of {', '.join(_FIELDS)}, but it {found}.")
    return dict(content)


def load_yaml(path: str | os.PathLike) -> Any:
    """Returns the content of a JSON or YAML file.

    Raises:
        OSError: if the file cannot be opened.
        DataError: a `ValueError`, if it is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text) if Path(path).suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{os.fspath(path)}: not a JSON or YAML file ({reason}).") from error


def _fields_of_category(category: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns the fields that a category has; those that can be found by names are left to `completed_schema`."""
    (category,) = tidy_categories([category], source)
    schema = KeypointSchema.from_coco_category(dict(category))
    present = {"names": "keypoints", "edges": "skeleton", "flip_pairs": "flip_pairs", "sigmas": "sigmas"}
    return {field: getattr(schema, field) for field, key in present.items() if category.get(key)}


def completed_schema(given: Mapping[str, Any], own: KeypointSchema | None) -> KeypointSchema:
    """Returns a schema of some given fields; others are those of the dataset, or else found by the names.

    Args:
        given: fields of a `KeypointSchema`.
        own: the schema that the dataset itself gives, if any.

    Raises:
        ValueError: if a field is invalid or unknown, or nothing gives the names.
    """
    names = given.get("names") or (own.names if own else None)
    if not names:
        raise ValueError("a keypoint schema needs `names`, as the dataset has none.")
    named = KeypointSchema.from_coco_category({"keypoints": names})
    if own is None or own.num_keypoints != named.num_keypoints:
        own = named
    # A dataset has no sigmas but those that follow from the names of its keypoints, or that it gives expressly.
    sigmas = named.sigmas if own.names != named.names else own.sigmas
    found = {"edges": own.edges or named.edges, "flip_pairs": own.flip_pairs or named.flip_pairs, "sigmas": sigmas}
    return KeypointSchema.of({"names": names, **found, **given})
