"""Poses in COCO's results format: records, and the JSON file that test servers and other tools accept."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch

from ..files import whole_file
from ..keypoint_schemas import KeypointSchema

DECIMALS = 2  # of coordinates in files, in pixels


def coco_records(
    poses: Mapping[str, Any], decimals: int | None = None, schema: KeypointSchema | None = None, **fields: Any
) -> list[dict[str, Any]]:
    """Returns the poses of one image as records of COCO's results format.

    Args:
        poses: as returned by `post_process_keypoint_detection`, as tensors or arrays: `scores` (n,), `labels` (n,) and
            `keypoints` (n, K, 2), x, y in pixels; optionally `keypoint_scores` (n, K), `keypoint_visibility` (n, K) and
            `boxes` (n, 4), x1, y1, x2, y2 in pixels.
        decimals: decimal places of coordinates and keypoint scores; not rounded if `None`.
        schema: the keypoint schema, needed only if classes have different keypoints: each pose then has those of its
            class, in its order.
        fields: additional fields of each record, such as `image_id` and `file_name`, which come first.

    Returns:
        For each pose, `category_id`, `keypoints` (x, y and score of each keypoint in turn) and `score`. Without
        `keypoint_scores`, the third number is 1: the format requires it, but scoring ignores it. With `boxes`, also
        `bbox` (x, y, width, height), from which COCO computes the area that makes an unmatched pose medium or large;
        otherwise COCO derives the box from the keypoints. With `keypoint_visibility`, also that, as COCO's values 0, 1
        and 2, which are no part of the format.
    """

    def rounded(values: Any) -> np.ndarray:
        values = torch.as_tensor(values).detach().cpu().double().numpy()
        return values if decimals is None else values.round(decimals)

    def own(pose: np.ndarray, label: int) -> np.ndarray:
        return pose if schema is None or schema.classes is None else pose[list(schema.of_class(label).indices)]

    keypoints = rounded(poses["keypoints"])
    ones = np.ones(keypoints.shape[:-1])
    thirds = rounded(poses["keypoint_scores"]) if "keypoint_scores" in poses else ones
    triples = np.concatenate([keypoints, thirds[..., None]], axis=-1)
    records = [
        {**fields, "category_id": int(label), "keypoints": own(pose, int(label)).ravel().tolist(), "score": score}
        for score, label, pose in zip(map(float, poses["scores"]), poses["labels"], triples, strict=True)
    ]
    if "boxes" in poses:
        boxes = rounded(poses["boxes"])
        boxes[:, 2:] -= boxes[:, :2]
        for record, box in zip(records, boxes.tolist(), strict=True):
            record["bbox"] = box
    if "keypoint_visibility" in poses:
        values = np.asarray(torch.as_tensor(poses["keypoint_visibility"]).cpu())
        for record, pose in zip(records, values, strict=True):
            record["keypoint_visibility"] = own(pose, record["category_id"]).tolist()
    return records


@contextmanager
def results_writer(
    path: str | PathLike, keep_interrupted: bool = False
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yields a function that appends records to a JSON list, which is moved to `path` once it is complete.

    Args:
        path: the file to write. Records are written immediately, so that they need not fit in memory.
        keep_interrupted: whether to keep the records so far on Ctrl-C or SIGTERM; see `whole_file`.

    Example:

    ```python
    >>> with results_writer("results.json") as write:
    ...     for image_id, poses in predictions.items():
    ...         write(coco_records(poses, decimals=2, image_id=image_id))
    ```
    """
    with whole_file(path, keep_interrupted) as unfinished, open(unfinished, "w", encoding="utf-8") as file:

        def write(records: list[dict[str, Any]]):
            # At once, so that an interruption comes before or after them.
            if records:
                file.write((",\n" if file.tell() else "[\n") + ",\n".join(map(json.dumps, records)))

        try:
            yield write
        finally:
            file.write("\n]\n" if file.tell() else "[]\n")


def write_coco_results(
    path: str | PathLike, predictions: Mapping[int, Mapping[str, Any]], schema: KeypointSchema | None = None
):
    """Writes a results file for COCO's test server, with coordinates rounded to hundredths of a pixel.

    Args:
        path: the JSON file to write. The server accepts `person_keypoints_<set>_<name>_results.json`, zipped.
        predictions: by image id, the `poses` for `coco_records`; written in the order of image ids.
        schema: as for `coco_records`.
    """
    with results_writer(path) as write:
        for image_id, poses in sorted(predictions.items()):
            write(coco_records(poses, DECIMALS, schema, image_id=image_id))
