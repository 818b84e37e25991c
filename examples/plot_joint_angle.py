"""Plots the angle of a joint of each person over time; needs matplotlib.

python examples/plot_joint_angle.py                            # the left knees in a generated video
python examples/plot_joint_angle.py --model detrpose-l --input squats.mp4 --joint right_knee --output knee.png
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from transformers import pipeline

from transformers_detrpose import KeypointSchema
from transformers_detrpose.commands.command_line import CommandError, run_command
from transformers_detrpose.files import check_outputs, whole_file
from transformers_detrpose.loading import DEMONSTRATION_MODEL
from transformers_detrpose.prediction.sample_video import open_frames
from transformers_detrpose.video import PoseSmoother, PoseTracker


class SmoothedTracker(PoseTracker):
    """A tracker whose poses are smoothed, as angles tremble more than keypoints."""

    def __init__(self, schema: KeypointSchema):
        super().__init__(schema)
        self.smoother = PoseSmoother()

    def update(self, poses, timestamp):
        return self.smoother.update(super().update(poses, timestamp), timestamp)


def plot(arguments: argparse.Namespace):
    """Follows the people of a video, measures the angle in each frame and plots it."""
    check_outputs([arguments.output], [] if arguments.input is None else [arguments.input])
    pose_estimator = pipeline("keypoint-detection", model=arguments.model)
    schema = pose_estimator.model.config.keypoint_schema
    bones = find_bones(schema, arguments.joint)
    with open_frames(arguments.input) as (fps, _, frames):
        angles = defaultdict(list)  # track id → (seconds, degrees)
        results = pose_estimator(frames, threshold=0.1, tracker=SmoothedTracker(schema), fps=fps)
        for index, poses in enumerate(results):
            for pose in poses:
                if pose["track_id"] >= 0:
                    angles[pose["track_id"]].append((index / fps, measure_angle(pose["keypoints"], *bones)))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="seconds", ylabel="degrees", title=arguments.joint.replace("_", " "), ylim=(0, 190)
    )
    for track_id, measured in angles.items():
        axes.plot(*zip(*measured, strict=True), label=f"person {track_id}")
    if angles:
        axes.legend()
    with whole_file(arguments.output) as unfinished:
        figure.savefig(unfinished, dpi=120)
    print(f"{arguments.joint} of {len(angles)} people plotted in {arguments.output}")


def find_bones(schema: KeypointSchema, joint: str) -> tuple[int, int, int]:
    """Returns the indices of the joint and of the two keypoints that the skeleton connects with it.

    Raises:
        CommandError: if it has no such joint.
    """
    bones = {}
    for index, name in enumerate(schema.names):
        ends = [end if start == index else start for start, end in schema.edges if index in (start, end)]
        if len(ends) == 2:
            bones[name] = (index, *ends)
    if joint not in bones:
        raise CommandError(f"--joint {joint} is not a keypoint between two others, as are {', '.join(bones) or 'none'}")
    return bones[joint]


def measure_angle(keypoints: list[dict], joint: int, first: int, second: int) -> float:
    """Returns the angle at a joint between two other keypoints in the image, from 0 to 180 degrees."""
    center, *ends = (np.array([keypoints[index]["x"], keypoints[index]["y"]]) for index in (joint, first, second))
    (x1, y1), (x2, y2) = (end - center for end in ends)
    return float(np.degrees(np.arctan2(abs(x1 * y2 - y1 * x2), x1 * x2 + y1 * y2)))


def main(argv: list[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input", type=Path, metavar="VIDEO", help="a generated video if not given")
    parser.add_argument("--model", default=str(DEMONSTRATION_MODEL), help="folder or Hub id")
    parser.add_argument("--joint", default="left_knee", help="name of a keypoint with two neighbors in the skeleton")
    parser.add_argument("--output", type=Path, default=Path("joint_angle.png"), metavar="FILE", help="image to write")
    return run_command("plot_joint_angle.py", plot, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
