"""Poses as records of COCO's results format, and the file of them that test servers take."""

import json
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np


def coco_results(
    predictions: Mapping[int, Mapping[str, np.ndarray]], decimals: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yields one record of COCO's results format per pose, images in the order of their ids.

    Args:
        predictions: For each image id a dictionary with `scores` (n,), `labels` (n,) and `keypoints` (n, K, 2) as x, y
            in pixels.
        decimals: Decimal places to round coordinates to, or `None` for as they are.

    Yields:
        `image_id`, `category_id`, `keypoints` as x, y, 1 for each keypoint in turn (the third number is not used for
        scoring, and COCO asks for ones), and `score`. There is no `bbox`: COCO derives it, and the area that decides
        whether an unmatched pose counts as medium or large, from the keypoints.
    """
    for image_id, poses in sorted(predictions.items()):
        keypoints = poses["keypoints"].astype(np.float64)
        if decimals is not None:
            keypoints = keypoints.round(decimals)
        triples = np.concatenate([keypoints, np.ones_like(keypoints[..., :1])], axis=-1)
        for score, label, pose in zip(poses["scores"], poses["labels"], triples, strict=True):
            yield {
                "image_id": image_id,
                "category_id": int(label),
                "keypoints": pose.ravel().tolist(),
                "score": float(score),
            }


def write_coco_results(path: str | PathLike, predictions: Mapping[int, Mapping[str, np.ndarray]]):
    """Writes the results file that COCO's test server takes, coordinates in hundredths of a pixel.

    Args:
        path: The JSON file to write. Servers accept one named `person_keypoints_<set>_<name>_results.json`, zipped.
        predictions: As for `coco_results`.
    """
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"
        for record in coco_results(predictions, decimals=2):
            file.write(separator + json.dumps(record))
            separator = ",\n"
        file.write("\n]\n" if separator == ",\n" else "[]\n")
