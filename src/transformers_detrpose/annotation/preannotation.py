"""Predictions as a COCO keypoint dataset, which annotation tools import and people correct."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file
from ..instances import box_areas
from ..keypoint_schemas import KeypointSchema
from ..prediction.paths import image_ids
from .jobs import SHARDS_FOLDER

DECIMALS = 2  # of coordinates in pixels
SCORE_DECIMALS = 4


def read_rows(output: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of all images of a complete output folder, in the order of the input."""
    import pyarrow.parquet as pq

    for path in sorted((output / SHARDS_FOLDER).glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


def write_coco(path: Path, output: Path, settings: Mapping[str, Any], keypoint_threshold: float, review_below: float):
    """Writes a COCO keypoint dataset of all images that could be read.

    Args:
        path: The JSON file to write.
        output: A complete output folder.
        settings: Its settings, with `keypoint_schema` and `id2label`.
        keypoint_threshold: Keypoints with a lower score are marked as hidden (visibility 1, "occluded" in CVAT).
        review_below: Poses with a lower score get the attribute `review`.
    """
    schema = KeypointSchema.of(settings["keypoint_schema"])
    classes = {int(label): name for label, name in settings["id2label"].items() if name != "N/A"}
    rows = [row for row in read_rows(output) if row["error"] is None]
    ids = image_ids([row["id"] for row in rows])
    if not all(isinstance(value, int) for value in ids.values()):
        ids = {name: number for number, name in enumerate(ids, start=1)}
    annotations: list[dict[str, Any]] = []
    for row in rows:
        for person in _people(row, schema, keypoint_threshold, review_below):
            annotations.append({"id": len(annotations) + 1, "image_id": ids[row["id"]], **person})
    images = [{"id": ids[row["id"]], "file_name": row["id"], **_size(row)} for row in rows]
    content = {
        "info": {"description": f"Predicted by {settings['model']}"},
        "licenses": [],
        "categories": [schema.of_class(label).schema.to_coco_category(label, classes[label]) for label in classes],
        "images": images,
        "annotations": annotations,
    }
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def _size(row: Mapping[str, Any]) -> dict[str, int]:
    return {"width": row["width"], "height": row["height"]}


def _people(
    row: Mapping[str, Any], schema: KeypointSchema, keypoint_threshold: float, review_below: float
) -> Iterator[dict[str, Any]]:
    """Yields the poses of an image as annotations with the keypoints of their class, without those outside of it."""
    size = np.array([row["width"], row["height"]])
    columns = ("scores", "labels", "keypoints", "keypoint_scores")
    for score, label, points, point_scores in zip(*(row[name] for name in columns), strict=True):
        own = list(schema.of_class(label).indices)
        points, point_scores = np.array(points)[own].round(DECIMALS), np.array(point_scores)[own]
        is_inside = ((points >= 0) & (points <= size)).all(axis=-1)
        visibility = np.where(point_scores < keypoint_threshold, 1, 2) * is_inside
        if not is_inside.any():
            continue
        low, high = points[is_inside].min(axis=0), points[is_inside].max(axis=0)
        box = np.concatenate([low, high - low])
        triples = zip(*(points * is_inside[:, None]).T.tolist(), visibility.tolist(), strict=True)
        yield {
            "category_id": label,
            "keypoints": [value for triple in triples for value in triple],
            "num_keypoints": int(is_inside.sum()),
            "bbox": box.round(DECIMALS).tolist(),
            "area": round(float(box_areas(box[None])[0]), DECIMALS),
            "segmentation": [],
            "iscrowd": 0,
            "score": round(score, SCORE_DECIMALS),
            "attributes": {"review": score < review_below},
        }
