"""Counts the people whose feet cross a line, in both directions.

    python examples/count_line_crossings.py                        # in a generated video
    python examples/count_line_crossings.py --model detrpose-l --input street.mp4 --line 0 0.6 1 0.6

"in" is to the left of the line, as seen from its start to its end, "out" to the right.
"""

import argparse
from pathlib import Path

import numpy as np
import supervision as sv
from transformers import pipeline

from transformers_detrpose.commands.command_line import number, run_command
from transformers_detrpose.loading import DEMONSTRATION_MODEL
from transformers_detrpose.prediction.sample_video import open_frames
from transformers_detrpose.video import PoseTracker

FRAMES_BEYOND = 3  # how long feet must stay beyond the line, so that trembling on it does not count


def count(arguments: argparse.Namespace):
    """Follows the people of a video and prints each crossing, then the sums."""
    pose_estimator = pipeline("keypoint-detection", model=arguments.model)
    tracker = PoseTracker(pose_estimator.model.config.keypoint_schema)
    with open_frames(arguments.input) as (fps, (height, width), frames):
        x1, y1, x2, y2 = arguments.line * np.array([width, height, width, height])
        line = sv.LineZone(
            sv.Point(x1, y1),
            sv.Point(x2, y2),
            triggering_anchors=[sv.Position.BOTTOM_CENTER],
            minimum_crossing_threshold=FRAMES_BEYOND,
        )
        # Poses with low scores continue tracks, such as those of people who are half hidden, but begin none.
        results = pose_estimator(frames, threshold=0.1, tracker=tracker, fps=fps)
        for index, poses in enumerate(results):
            people = to_detections([pose for pose in poses if pose["track_id"] >= 0])
            for direction, crossed in zip(("in", "out"), line.trigger(people), strict=True):
                for track_id in people.tracker_id[crossed]:
                    print(f"{index / fps:.2f} s: person {track_id} goes {direction}")
    print(f"{line.in_count} in, {line.out_count} out")


def to_detections(poses: list[dict]) -> sv.Detections:
    """Returns the boxes of poses of the pipeline with the numbers of people."""
    boxes = [list(pose["box"].values()) for pose in poses]
    return sv.Detections(
        xyxy=np.array(boxes, dtype=float).reshape(-1, 4),
        class_id=np.zeros(len(poses), dtype=int),
        tracker_id=np.array([pose["track_id"] for pose in poses], dtype=int),
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input", type=Path, metavar="VIDEO", help="a generated video if not given")
    parser.add_argument("--model", default=str(DEMONSTRATION_MODEL), help="folder or Hub id")
    parser.add_argument(
        "--line",
        type=number(0, 1),
        nargs=4,
        default=(0.5, 0, 0.5, 1),
        metavar=("X1", "Y1", "X2", "Y2"),
        help="start and end, as fractions of width and height",
    )
    return run_command("count_line_crossings.py", count, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
