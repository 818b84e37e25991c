"""Exports tracks in the formats of PoseTrack and MOTChallenge."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ..configuration_detrpose import DETRPoseConfig

# Name of a format → what is appended to the name of the video.
SUFFIXES = {"posetrack": ".posetrack.json", "mot": ".mot.txt"}


def write_tracks(format: str, lines: Path, path: Path, config: DETRPoseConfig):
    """Writes the tracks of a video, one frame at a time, so that their number is not limited by memory.

    Args:
        format: A key of `SUFFIXES`.
        lines: File with the JSON lines of the video, as `videos.predict_video` writes them.
        path: The file to write.
        config: Configuration of the model, which names keypoints and categories.
    """
    with open(path, "w", encoding="utf-8") as file:
        if format == "mot":
            file.writelines(_mot_rows(lines))
        else:
            _write_posetrack(file, lines, config)


def _read(lines: Path) -> Iterator[dict[str, Any]]:
    with open(lines, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _mot_rows(lines: Path) -> Iterator[str]:
    """Yields MOTChallenge's rows: frame from 1, id, left, top, width, height, confidence, and no place in the world."""
    for line in _read(lines):
        for pose in line["poses"]:
            values = [line["frame"] + 1, pose["track_id"], *pose["bbox"], pose["score"], -1, -1, -1]
            yield ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values) + "\n"


def _write_posetrack(file: IO[str], lines: Path, config: DETRPoseConfig):
    """Writes PoseTrack's JSON, which is COCO's with `frame_id`, `vid_id`, `track_id` and the `scores` of keypoints."""
    schema, video = config.keypoint_schema, lines.name.removesuffix(".jsonl")
    categories = [
        {"id": label, "name": name, **schema.of_class(label).schema.to_coco()}
        for label, name in config.id2label.items()
    ]
    file.write('{"images": [\n')
    _write_items(file, (_posetrack_image(line, video) for line in _read(lines)))
    file.write('\n], "annotations": [\n')
    _write_items(file, _posetrack_annotations(lines))
    file.write(f'\n], "categories": {json.dumps(categories)}}}\n')


def _write_items(file: IO[str], items: Iterable[dict[str, Any]]):
    for index, item in enumerate(items):
        file.write((",\n" if index else "") + json.dumps(item))


def _posetrack_image(line: dict[str, Any], video: str) -> dict[str, Any]:
    name = f"{video}/{line['frame']:06d}.jpg"
    fields = {"vid_id": video, "frame_id": line["frame"], "timestamp": line["timestamp"], "is_labeled": True}
    return {"id": line["frame"], "file_name": name, **fields}


def _posetrack_annotations(lines: Path) -> Iterator[dict[str, Any]]:
    number = 0
    for line in _read(lines):
        for pose in line["poses"]:
            number += 1
            keypoints = list(pose["keypoints"])
            scores, keypoints[2::3] = keypoints[2::3], [2] * (len(keypoints) // 3)  # 2: COCO's mark of a seen keypoint
            box = pose["bbox"]
            fields = {"num_keypoints": len(scores), "area": round(box[2] * box[3], 2), "iscrowd": 0}
            ids = {"id": number, "image_id": line["frame"]}
            yield {**ids, **pose, "keypoints": keypoints, "scores": scores, **fields}
