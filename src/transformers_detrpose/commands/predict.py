"""Predicts poses in images, videos and camera pictures, draws them and writes them as JSON.

    python examples/predict.py                             # the demonstration model, on a generated picture
    python examples/predict.py --model detrpose-l --input photo.jpg holiday/ match.mp4 --output predicted
    python examples/predict.py --model detrpose-l --input 0 --output predicted          # camera 0, until Ctrl-C

The demonstration model has seen generated figures only and knows nothing of photographs. For those, convert the
published weights: `python conversion/convert_detrpose.py --variant l --output detrpose-l`.

Folders are searched with everything below them, except hidden files and the output folder itself. What is written has
the name of its input, relative to the deepest folder that holds all inputs:

* `holiday/a.jpg` with its poses drawn. Formats that are not written (GIF, TIFF, ...) become PNG: `a.gif.png`.
* `predictions.json`, the poses of all images as a list in COCO's results format, plus `file_name`. `image_id` is the
  number in the file's name if every name is a different plain number, as in COCO and CrowdPose, else `file_name`.
* `match.mp4` with the poses drawn, at the same size and frame rate, without sound (`clip.avi` becomes `clip.avi.mp4`),
  and `match.mp4.jsonl` with one line per frame: `{"frame": 0, "poses": [...]}`, poses again in COCO's format. Where
  OpenCV is installed, an odd width or height loses its last pixel.
* `camera0.mp4` and `camera0.mp4.jsonl` likewise, at the rate that the camera claims: if the model is slower than the
  camera, the video runs fast.

Coordinates are pixels of the upright image: a photograph's EXIF rotation has been applied. Transparency is ignored, as
everywhere in transformers. An input that cannot be read is reported and left out, and the exit code is then 1.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForKeypointDetection
from transformers.utils import logging as transformers_logging

# Only cameras need OpenCV. What it and supervision print about an unreadable video would come on top of this command's
# own line about it. transformers 4 advises a fast image processor; there is only one, and it is fast.
warnings.filterwarnings("ignore", message="OpenCV .* is not installed")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
logging.getLogger("supervision").setLevel(logging.ERROR)
logging.getLogger("transformers.models.auto.image_processing_auto").setLevel(logging.ERROR)

import supervision as sv  # noqa: E402

from .. import DETRPoseConfig  # noqa: E402, F401 - registers the model with transformers
from ..images import load_rgb_image  # noqa: E402
from ..visualization import draw_poses, to_supervision  # noqa: E402
from .command_line import CommandError, count, first_line  # noqa: E402

DEMONSTRATION_MODEL = Path(__file__).parents[1] / "demonstration_model"
SAMPLE_PICTURE = Path(__file__).parents[1] / "demonstration_model" / "picture.jpg"
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
WRITTEN_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".mp4", ".png", ".webp"}
FALLBACK_FPS = 30.0  # frames per second, for cameras that do not tell theirs
PREFETCHED_FRAMES = 8  # decoded while the model works


class Predictor:
    """A model with its image processor, and how many images it has seen, with how many poses and how fast.

    Args:
        model: Folder or Hub id.
        device: Name of a torch device.
        dtype: Type of the weights.
        threshold: Lowest score of a pose, from 0 to 1.
        keypoint_threshold: Lowest score of a keypoint that is drawn, from 0 to 1.
    """

    def __init__(self, model: str, device: str, dtype: torch.dtype, threshold: float, keypoint_threshold: float):
        if not Path(model).is_dir() and model.count("/") != 1:
            raise CommandError(f"--model {model}: no such folder, nor an id on the Hub (owner/name)")
        try:
            self.processor = AutoImageProcessor.from_pretrained(model)
            model_as_trained = AutoModelForKeypointDetection.from_pretrained(model, dtype=torch.float32)
        except Exception as error:  # transformers, safetensors, the Hub and torch all raise their own kinds
            raise CommandError(f"cannot load --model {model}: {first_line(error)}") from error
        if not hasattr(model_as_trained.config, "keypoint_schema"):
            raise CommandError(f"--model {model} is a {model_as_trained.config.model_type} model, not a DETRPose model")
        try:
            self.model = model_as_trained.fuse().to(device, dtype)
        except RuntimeError as error:
            raise CommandError(f"cannot use --device {device}: {first_line(error)}") from error
        self.threshold = threshold
        self.keypoint_threshold = keypoint_threshold
        self.num_images = self.num_poses = 0
        self.seconds_per_image: list[float] = []

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[dict[str, torch.Tensor]]:
        """Returns the poses of each image of a batch as `post_process_keypoint_detection` does, on the CPU."""
        start = time.perf_counter()
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        outputs = self.model(pixel_values.to(self.model.device, self.model.dtype))
        results = self.processor.post_process_keypoint_detection(
            outputs, threshold=self.threshold, target_sizes=[(image.height, image.width) for image in images]
        )
        results = [{key: value.cpu() for key, value in result.items()} for result in results]
        self.num_images += len(images)
        self.num_poses += sum(len(result["scores"]) for result in results)
        self.seconds_per_image.append((time.perf_counter() - start) / len(images))
        return results

    def draw(self, image: Image.Image, result: dict[str, torch.Tensor]) -> Image.Image:
        """Returns the image with its poses and their labels."""
        config = self.model.config
        return draw_poses(image, result, config.keypoint_schema, config.id2label, self.keypoint_threshold)


def find_files(path: Path, output: Path) -> list[Path]:
    """Returns a file as it is, and of a folder all images and videos in and below it, sorted by path.

    Args:
        path: Absolute path of a file or folder.
        output: Absolute path of the output folder, whose pictures from an earlier run are not inputs.
    """
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    shown = (file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))
    return sorted(file for file in shown if file.is_file() and (output == path or output not in file.parents))


def find_inputs(inputs: list[str], output: Path) -> tuple[dict[str, Path], dict[str, Path | int]]:
    """Finds all images and videos behind the given paths and camera indices.

    Args:
        inputs: Paths of files and folders, and camera indices.
        output: Absolute path of the output folder.

    Returns:
        The images and the videos, each as a dictionary from the name to the path or camera index.

    Raises:
        CommandError: if a path does not exist, or nothing is found, or an input would be overwritten.
    """
    cameras = [text for text in inputs if text.isdecimal() and not Path(text).exists()]
    paths = [Path(os.path.abspath(text)) for text in inputs if text not in cameras]
    for path in paths:
        if not path.exists():
            raise CommandError(f"--input {path}: no such file or folder")
    files = dict.fromkeys(file for path in paths for file in find_files(path, output))
    if not files and not cameras:
        raise CommandError(f"no images or videos in --input {' '.join(inputs)}")

    folder = os.path.commonpath([path if path.is_dir() else path.parent for path in paths]) if paths else ""
    named = {file.relative_to(folder).as_posix(): file for file in files}
    check_written_paths(named, output)
    videos = {name: file for name, file in named.items() if file.suffix.lower() in VIDEO_SUFFIXES}
    images = {name: file for name, file in named.items() if name not in videos}
    return images, {**videos, **{f"camera{index}.mp4": int(index) for index in cameras}}


def written_path(output: Path, name: str) -> Path:
    """Returns where the drawn picture or video of an input goes."""
    suffix = Path(name).suffix.lower()
    if suffix in WRITTEN_SUFFIXES:
        return output / name
    return output / f"{name}{'.mp4' if suffix in VIDEO_SUFFIXES else '.png'}"


def check_written_paths(named: dict[str, Path], output: Path):
    """Raises `CommandError` if a picture or video would be written over an input or over another one."""
    taken = {os.path.realpath(path) for path in named.values()}
    for name in named:
        path = os.path.realpath(written_path(output, name))
        if path in taken:
            raise CommandError(f"the result for {name} would overwrite {path}: choose another --output")
        taken.add(path)


def image_ids(names: Iterable[str]) -> dict[str, int | str]:
    """Returns the `image_id` of each file name: its number if all are different plain numbers, else the name."""
    numbers = {name: Path(name).stem for name in names}
    if all(number.isdecimal() for number in numbers.values()):
        numbers = {name: int(number) for name, number in numbers.items()}
        if len(set(numbers.values())) == len(numbers):
            return numbers
    return {name: name for name in numbers}


def coco_records(result: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Returns the poses of one image in COCO's results format, but for `image_id`.

    Returns:
        One dictionary per pose: `category_id`, `keypoints` as x, y in pixels and score of each keypoint in turn,
        `score`, and `bbox` as x, y, width, height in pixels.
    """
    poses = to_supervision(result)
    keypoints = np.concatenate([poses.xy, poses.keypoint_confidence[..., None]], axis=-1)
    boxes_xywh = sv.xyxy_to_xywh(poses.data["xyxy"])
    return [
        {
            "category_id": int(poses.class_id[index]),
            "keypoints": keypoints[index].astype(float).round(4).ravel().tolist(),
            "score": round(float(poses.detection_confidence[index]), 6),
            "bbox": boxes_xywh[index].astype(float).round(4).tolist(),
        }
        for index in range(len(poses))
    ]


@contextmanager
def json_list(path: Path) -> Iterator[Callable[[Any], None]]:
    """Opens a JSON file for a list and gives a function that appends to it, so that the list need not fit in memory.
    The file is complete even if the work is interrupted."""
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"

        def append(record: Any):
            nonlocal separator
            file.write(separator + json.dumps(record))
            separator = ",\n"

        try:
            yield append
        finally:
            file.write("\n]\n" if separator == ",\n" else "[]\n")


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Yields the items in lists of `size`, the last one perhaps shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def predict_images(predictor: Predictor, images: dict[str, Path], output: Path, batch_size: int) -> int:
    """Predicts, draws and records all images; returns how many could not be read.

    Args:
        predictor: The model.
        images: Paths of the images by their names.
        output: Folder for the pictures and `predictions.json`.
        batch_size: Images per batch.
    """
    ids = image_ids(images)
    num_failed = 0
    with json_list(output / "predictions.json") as append, tqdm(total=len(images), unit="image") as progress:
        for names in batched(images, batch_size):
            pictures = read_images({name: images[name] for name in names})
            num_failed += len(names) - len(pictures)
            results = predictor(list(pictures.values())) if pictures else []
            for (name, picture), result in zip(pictures.items(), results, strict=True):
                path = written_path(output, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                predictor.draw(picture, result).save(path, quality=95)
                for record in coco_records(result):
                    append({"image_id": ids[name], "file_name": name, **record})
            progress.update(len(names))
    return num_failed


def read_images(paths: dict[str, Path]) -> dict[str, Image.Image]:
    """Reads images, and reports and leaves out those that cannot be read."""
    pictures = {}
    for name, path in paths.items():
        try:
            pictures[name] = load_rgb_image(path)
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            report(f"cannot read image {path}: {first_line(error)}")
    return pictures


def predict_videos(
    predictor: Predictor, videos: dict[str, Path | int], output: Path, batch_size: int, max_frames: int | None
) -> int:
    """Predicts, draws and records all videos and cameras; returns how many could not be read.

    Args:
        predictor: The model.
        videos: Paths or camera indices by their names.
        output: Folder for the videos and their JSON files.
        batch_size: Frames per batch.
        max_frames: Most frames to take of each, or `None` for all.
    """
    num_failed = 0
    for name, source in videos.items():
        path = written_path(output, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            predict_video(predictor, source, path, batch_size, max_frames)
        except CommandError as error:
            report(str(error))
            num_failed += 1
    return num_failed


def predict_video(predictor: Predictor, source: Path | int, path: Path, batch_size: int, max_frames: int | None):
    """Predicts, draws and records one video or camera, with one batch of frames in memory; Ctrl-C ends a camera.

    Args:
        predictor: The model.
        source: Path of a video, or index of a camera.
        path: Where the drawn video goes; its JSON lines go to the same name with `.jsonl` appended.
        batch_size: Frames per batch.
        max_frames: Most frames to take, or `None` for all.
    """
    with (
        open_video(source) as (info, frames),
        open(f"{path}.jsonl", "w", encoding="utf-8") as file,
        sv.VideoSink(str(path), info) as sink,
        tqdm(total=info.total_frames, desc=path.name, unit="frame") as progress,
    ):
        try:
            for batch in batched(islice(frames, max_frames), batch_size):
                pictures = [sv.cv2_to_pillow(frame) for frame in batch]
                for picture, result in zip(pictures, predictor(pictures), strict=True):
                    sink.write_frame(sv.pillow_to_cv2(predictor.draw(picture, result)))
                    file.write(json.dumps({"frame": progress.n, "poses": coco_records(result)}) + "\n")
                    progress.update()
        except KeyboardInterrupt:
            if not isinstance(source, int):
                raise
    if max_frames is None and progress.n < (info.total_frames or 0):
        report(f"note: {source} should have {info.total_frames} frames, but only {progress.n} could be read")


@contextmanager
def open_video(source: Path | int) -> Iterator[tuple[sv.VideoInfo, Iterator[np.ndarray]]]:
    """Opens a video file or camera and gives its size, rate and frames: BGR arrays of shape (height, width, 3).

    Raises:
        CommandError: if it cannot be opened or has no frames.
    """
    is_camera = isinstance(source, int)
    if is_camera and find_spec("cv2") is None:
        raise CommandError(f"cannot read camera {source}: cameras need OpenCV (pip install opencv-python)")
    source = source if is_camera else str(source)
    frames = sv.get_video_frames_generator(source, prefetch=PREFETCHED_FRAMES)
    try:
        info = sv.VideoInfo.from_video_path(source)
        first = next(frames)
    except Exception as error:  # supervision raises `Exception`; `StopIteration` is a video without frames
        raise CommandError(f"cannot read {'camera' if is_camera else 'video'} {source}") from error
    info.height, info.width = first.shape[:2]
    info.fps = info.fps or FALLBACK_FPS
    info.total_frames = info.total_frames if (info.total_frames or 0) > 0 else None
    with closing(frames):
        yield info, chain([first], frames)


def report(message: str):
    """Prints a line to standard error without tearing a progress bar."""
    tqdm.write(f"predict.py: {message}", file=sys.stderr)


def fraction(text: str) -> float:
    """Reads a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return number


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Predicts poses in images, videos and camera pictures, draws them and writes them as JSON.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default=str(DEMONSTRATION_MODEL), help="model folder or Hub id")
    parser.add_argument(
        "--input",
        nargs="+",
        default=[str(SAMPLE_PICTURE)],
        metavar="PATH",
        help="images, videos, folders (with all folders below them) and camera indices such as 0",
    )
    parser.add_argument("--output", type=Path, default=Path("predicted"), metavar="DIR", help="folder to write to")
    parser.add_argument("--threshold", type=fraction, default=0.5, help="lowest score of a pose, 0 to 1")
    parser.add_argument(
        "--keypoint-threshold",
        type=fraction,
        default=0.0,
        help="lowest score, 0 to 1, of a keypoint that is drawn; the JSON files have all keypoints",
    )
    parser.add_argument("--batch-size", type=count, default=8, help="images or frames predicted at once")
    parser.add_argument("--max-frames", type=count, help="most frames to take of each video or camera")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch device, such as cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="type of the model's numbers"
    )
    return parser.parse_args(argv)


def predict(arguments: argparse.Namespace) -> int:
    """Does what the command line asks and prints a summary; returns how many inputs could not be read."""
    output = Path(os.path.abspath(arguments.output))
    images, videos = find_inputs(arguments.input, output)
    if output.exists() and not output.is_dir():
        raise CommandError(f"--output {arguments.output} is a file, not a folder")
    output.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, arguments.dtype)
    predictor = Predictor(arguments.model, arguments.device, dtype, arguments.threshold, arguments.keypoint_threshold)
    num_failed = predict_images(predictor, images, output, arguments.batch_size) if images else 0
    num_failed += predict_videos(predictor, videos, output, arguments.batch_size, arguments.max_frames)

    print(
        f"{len(images) + len(videos) - num_failed} of {len(images) + len(videos)} inputs written to {arguments.output}"
    )
    if predictor.num_images:
        milliseconds = 1000 * statistics.median(predictor.seconds_per_image)
        print(f"{predictor.num_poses} poses in {predictor.num_images} images or frames", end=", ")
        print(f"{milliseconds:.1f} ms each (median; preparing, model and post-processing on {arguments.device})")
    if arguments.model == str(DEMONSTRATION_MODEL):
        print("The demonstration model knows generated figures only. For photographs, convert the published weights:")
        print("python conversion/convert_detrpose.py --variant l --output detrpose-l")
    return num_failed


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = parse_arguments(argv)
    transformers_logging.disable_progress_bar()  # the bar of loading weights; this command has its own
    try:
        return 1 if predict(arguments) else 0
    except (CommandError, OSError) as error:
        report(f"error: {first_line(error)}")
        return 1
    except torch.cuda.OutOfMemoryError as error:
        report(f"error: {first_line(error)} A smaller --batch-size needs less memory.")
        return 1
    except KeyboardInterrupt:
        report("interrupted; what had been predicted is written")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
