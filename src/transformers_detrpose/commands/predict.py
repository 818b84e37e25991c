"""Predicts poses in images, videos, cameras and streams, draws them and writes them as JSON.

    detrpose predict --input photo.jpg holiday/ match.mp4 --output predicted
    detrpose predict --input match.mp4 --track --smooth online
    detrpose predict --model detrpose-l --input 0 rtsp://192.168.1.20/live       # a camera, then a stream, until Ctrl-C

Without --model, the published N model is used; it is downloaded and converted once, and kept in the Hugging Face cache.
If it cannot be downloaded, a small demonstration model is used, which was trained on synthetic figures only and does
not work on photographs. Without --input, a synthetic image is used.

Folders are searched recursively, except for hidden files and the output folder itself. Output files are named after
their inputs, relative to the deepest folder that contains all inputs:

* `holiday/a.jpg` with its poses drawn. Formats that cannot be written (GIF, TIFF, ...) become PNG: `a.gif.png`.
* `predictions.json`, the poses of all images as a list in COCO's results format, plus `file_name`. With --annotations,
  `image_id` is that of the image in the annotations; without, it is the file name as a number if all names are distinct
  numbers, as in COCO and CrowdPose, else `file_name`.
* `match.mp4` with the poses drawn, in H.264, with the sound, times and size of the original (an odd width or height
  grows by a pixel; `clip.avi` becomes `clip.avi.mp4`), and `match.mp4.jsonl` with one line per frame:
  `{"frame": 0, "timestamp": 0.0, "poses": [...]}`, with the poses in COCO's results format.
* `camera0.mp4` and `camera0.mp4.jsonl` for a camera, `HOST_PATH.mp4` and so on for a stream. If the model is slower
  than a camera or a live stream, frames are left out.

With --track, poses also have a `track_id`, the same for the same person in all frames of a video, and trails are drawn
where people went. --smooth removes the trembling of their keypoints: "online" one frame late, "offline" afterwards,
which is smoother and fills short gaps; those poses are marked by `filled`. --tracks-format writes `match.mp4.mot.txt`,
`match.mp4.posetrack.json` or both.

Coordinates are in pixels after EXIF rotation. Transparency is ignored, as elsewhere in transformers. Only the first
frame of an animation, such as a GIF, is used. Inputs that cannot be read are reported and skipped, and the exit code is
then 1.

Images, videos and `predictions.json` are replaced once they are complete. Ctrl-C and SIGTERM keep what was predicted
until then; after SIGKILL there is the `predictions.json` of the previous run, or none.
"""

import argparse
import logging
import os
import statistics
import warnings
from collections.abc import Mapping
from pathlib import Path

# This command reports unreadable videos itself.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
warnings.filterwarnings("ignore", message="OpenCV .* is not installed")
logging.getLogger("supervision").setLevel(logging.ERROR)

import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from ..data import read_annotations  # noqa: E402
from ..loading import SAMPLE_PICTURE, model_files  # noqa: E402
from ..memory import keep_freed_memory  # noqa: E402
from ..prediction.image_files import predict_images  # noqa: E402
from ..prediction.models import Predictor, find_model  # noqa: E402
from ..prediction.paths import find_inputs, image_ids  # noqa: E402
from ..prediction.track_files import SUFFIXES  # noqa: E402
from ..prediction.videos import VideoOptions, predict_videos  # noqa: E402
from ..video_files.reading import Source, describe  # noqa: E402
from .command_line import (  # noqa: E402
    CommandError,
    add_device,
    add_max_pixels,
    add_tiles,
    check_device,
    count,
    read_tiles,
    run_command,
    show_log,
)


def predict(arguments: argparse.Namespace):
    """Predicts poses in all inputs, and prints a summary."""
    output = Path(os.path.abspath(arguments.output))
    others = [arguments.annotations] if arguments.annotations else []
    images, videos = find_inputs(arguments.input, output, [*others, *model_files(arguments.model or "")])
    ids = image_ids(images, read_annotations(arguments.annotations).images if arguments.annotations else None)
    if output.exists() and not output.is_dir():
        raise CommandError(f"--output {arguments.output} is a file, not a folder")
    check_video_options(arguments, videos)
    check_device(arguments.device)
    keep_freed_memory()
    predictor = Predictor(
        find_model(arguments.model),
        arguments.device,
        getattr(torch, arguments.dtype),
        arguments.threshold,
        arguments.keypoint_threshold,
        arguments.uncertainty,
        arguments.remove_duplicates,
        arguments.max_people,
        read_tiles(arguments),
        arguments.batch_size,
    )
    output.mkdir(parents=True, exist_ok=True)
    num_failed = predict_images(predictor, images, ids, output, arguments.batch_size) if images else 0
    options = VideoOptions(
        batch_size=arguments.batch_size,
        max_frames=arguments.max_frames,
        track=arguments.track,
        smooth=arguments.smooth,
        tracks_formats=tuple(arguments.tracks_format),
    )
    num_failed += predict_videos(predictor, videos, output, options)

    num_inputs = len(images) + len(videos)
    print(f"{num_inputs - num_failed} of {num_inputs} inputs written to {arguments.output}")
    if predictor.num_images:
        milliseconds = 1000 * statistics.median(predictor.seconds_per_image)
        print(f"{predictor.num_poses} poses in {predictor.num_images} images or frames", end=", ")
        print(f"{milliseconds:.1f} ms each (median; model and post-processing on {arguments.device})")
    if num_failed:
        raise CommandError(f"{num_failed} of {num_inputs} inputs could not be read")


def check_video_options(arguments: argparse.Namespace, videos: Mapping[str, Source]):
    """Checks that options for videos apply to the inputs.

    Raises:
        CommandError: if one does not.
    """
    given = {
        "--max-frames": arguments.max_frames,
        "--track": arguments.track,
        "--smooth": arguments.smooth,
        "--tracks-format": arguments.tracks_format,
    }
    for option, value in given.items():
        if value and not videos:
            raise CommandError(f"{option} is for videos, cameras and streams, but there are images only")
        if value and option in ("--smooth", "--tracks-format") and not arguments.track:
            raise CommandError(f"{option} needs --track, which says whose poses belong together")
    endless = [source for source in videos.values() if not isinstance(source, Path)]
    if arguments.smooth == "offline" and endless:
        raise CommandError(f"--smooth offline reads a file twice, but {describe(endless[0])} is none: use online")


def fraction(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return number


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose predict",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--model",
        help="folder (also of an exported model), Hub id, or published variant (n, s, m, l, x); if not "
        "given, n, or the demonstration model if n cannot be downloaded",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        default=[str(SAMPLE_PICTURE)],
        metavar="PATH",
        help="images, videos, folders (searched recursively), camera indices such as 0, and URLs of videos and streams "
        "(rtsp://, http://, ...)",
    )
    parser.add_argument("--output", type=Path, default=Path("predicted"), metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO-format JSON file of the images, to take each `image_id` from by its `file_name`",
    )
    parser.add_argument(
        "--threshold",
        type=fraction,
        default=0.5,
        help="minimum score of a pose, 0 to 1; with --track, of one that begins a track",
    )
    parser.add_argument(
        "--keypoint-threshold",
        type=fraction,
        default=0.2,
        help="minimum score, 0 to 1, of a drawn keypoint; the JSON files contain all keypoints",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="draw the ellipses that contain 50 %% and 90 %% of the true keypoints, once the model is calibrated",
    )
    parser.add_argument("--batch-size", type=count, default=8, help="images, frames or tiles per batch")
    add_tiles(parser)
    add_max_pixels(parser)
    parser.add_argument("--max-frames", type=count, help="maximum number of frames per video or camera")
    parser.add_argument(
        "--remove-duplicates",
        type=fraction,
        metavar="SIMILARITY",
        help="minimum keypoint similarity, 0 to 1, of two poses that count as one; near 0.9 they are hardly "
        "distinguishable, and all poses are kept if not given",
    )
    parser.add_argument("--max-people", type=count, metavar="N", help="maximum number of poses per image or frame")
    parser.add_argument("--track", action="store_true", help="give people in videos numbers that they keep")
    parser.add_argument(
        "--smooth", choices=("online", "offline"), help="smooth tracks one frame late, or the whole video at the end"
    )
    parser.add_argument(
        "--tracks-format",
        nargs="+",
        choices=tuple(SUFFIXES),
        default=[],
        help="formats to export tracks in, besides the JSON lines",
    )
    add_device(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="precision of the model"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = parse_arguments(argv)
    show_log()
    logging.getLogger("transformers_detrpose.conversion").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # of loading weights; this command has its own
    return run_command("detrpose predict", predict, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
