"""Generates synthetic images of people with exact keypoints: a COCO keypoint dataset without any download.

    detrpose generate-people --output people --train 4000 --val 200
    detrpose generate-people --output videos --videos 4 --frames 300 --fps 30
    detrpose generate-people --output large --train 0 --val 10 --size 3000 --width 4000 \\
        --scattered 60 400 --max-people 40

The first writes `people/train/*.jpg`, `people/val/*.jpg`, `people/train.json` and `people/val.json`. The second writes
videos of walking people instead: `videos/00000000/000000.jpg` and so on, or with --mp4 `videos/00000000.mp4` and so on,
and `videos/videos.json`, in which a person has the same `track_id` in all frames. The people are articulated
figures with COCO's 17 keypoints, in many poses, seen from all sides, and partly occluded by each other and by objects.
The third writes large images of small upright figures that are apart from each other, on a single color.
The same seed gives the same images, whatever the numbers of images and of processes. The annotations are described in
`transformers_detrpose.synthetic.pictures`, and those of videos in `transformers_detrpose.synthetic.videos`.
"""

import argparse
import math
import os
from functools import partial
from pathlib import Path

from ..synthetic.dataset import FIRST_VAL_INDEX, SMALLEST_SIZE, write_dataset
from ..synthetic.pictures import MAX_HEIGHT, MIN_HEIGHT, PEOPLE_PER_ID
from ..synthetic.videos import FRAMES_PER_VIDEO, write_videos
from .command_line import number, run_command

SIZE_HELP = "height and width of the images in pixels; videos are 16/9 times as wide as high"
# Arguments of `write_videos` and of `write_dataset` that the other does not have.
VIDEO_OPTIONS = ("videos", "frames", "fps", "mp4")
PICTURE_OPTIONS = ("train", "val", "min_height", "plain", "upright", "width", "scattered")


def generate(arguments: argparse.Namespace):
    """Writes the dataset."""
    options = vars(arguments)
    both = {name: options[name] for name in ("output", "size", "seed", "workers", "max_people")}
    if arguments.videos:
        write_videos(**both, **{name: options[name] for name in VIDEO_OPTIONS})
        print(f"{arguments.videos} videos of {arguments.frames} frames written to {arguments.output}")
    else:
        write_dataset(**both, **{name: options[name] for name in PICTURE_OPTIONS})
        print(f"{arguments.train} training and {arguments.val} validation images written to {arguments.output}")


def whole_number(text: str, least: int, most: float = math.inf) -> int:
    """Parses an integer from `least` to `most`."""
    if not text.isdecimal() or not least <= int(text) <= most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}{limit}")
    return int(text)


def figure_height(text: str) -> float:
    """Argument type: the height of a figure as a fraction of the image height."""
    height = float(text)
    if not 0.1 <= height <= MAX_HEIGHT:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0.1 to {MAX_HEIGHT}")
    return height


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose generate-people",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, required=True, default=argparse.SUPPRESS, metavar="DIR", help="folder to create"
    )
    count, up_to_999 = partial(whole_number, least=0), partial(whole_number, least=0, most=PEOPLE_PER_ID - 1)
    train_count = partial(whole_number, least=0, most=FIRST_VAL_INDEX)
    parser.add_argument("--train", type=train_count, default=4000, metavar="N", help="number of training images")
    parser.add_argument("--val", type=count, default=200, metavar="N", help="number of validation images")
    size = partial(whole_number, least=SMALLEST_SIZE)
    parser.add_argument("--size", type=size, default=320, metavar="N", help=SIZE_HELP)
    parser.add_argument("--width", type=size, metavar="N", help="width of the images, if they are not square")
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="random seed")
    workers = partial(whole_number, least=1)
    parser.add_argument("--workers", type=workers, default=os.cpu_count() or 1, metavar="N", help="number of processes")
    parser.add_argument("--max-people", type=up_to_999, default=6, metavar="N", help="maximum people per image")
    parser.add_argument(
        "--min-height",
        type=figure_height,
        default=MIN_HEIGHT,
        metavar="FRACTION",
        help="minimum standing height of a figure as a fraction of the image height",
    )
    parser.add_argument("--plain", action="store_true", help="figures on a single color, with nothing else")
    parser.add_argument("--upright", action="store_true", help="figures that stand or walk and face the viewer")
    parser.add_argument(
        "--scattered",
        type=number(1),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="minimum and maximum height in pixels of --max-people upright figures apart from each other; "
        "--min-height, --plain and --upright then have no effect",
    )
    videos = parser.add_argument_group("videos")
    videos.add_argument("--videos", type=count, default=0, metavar="N", help="number of videos; 0 for images")
    frames = partial(whole_number, least=1, most=FRAMES_PER_VIDEO)
    videos.add_argument("--frames", type=frames, default=300, metavar="N", help="frames per video")
    videos.add_argument("--fps", type=number(1, 240), default=30, metavar="N", help="frames per second")
    videos.add_argument("--mp4", action="store_true", help="write a video file instead of one image per frame")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose generate-people", generate, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
