"""Predicts poses in videos and camera streams."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image
from tqdm import tqdm

from ..evaluation.coco_results import coco_records
from ..files import whole_file
from .batches import batched
from .image_files import DECIMALS
from .models import Predictor
from .paths import written_path

FALLBACK_FPS = 30.0  # frames per second, for cameras that do not report theirs
PREFETCHED_FRAMES = 8  # decoded while the model runs

logger = logging.getLogger(__name__)


def predict_videos(
    predictor: Predictor, videos: dict[str, Path | int], output: Path, batch_size: int, max_frames: int | None
) -> int:
    """Predicts, draws and records all videos and cameras.

    Args:
        predictor: The model.
        videos: Paths or camera indices by their names.
        output: Folder for the videos and their JSON files.
        batch_size: Maximum number of frames per batch.
        max_frames: Maximum number of frames to read from each, or `None` for all.

    Returns:
        The number of inputs that could not be read.
    """
    num_failed = 0
    for name, source in videos.items():
        path = written_path(output, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            predict_video(predictor, source, path, batch_size, max_frames)
        except UnreadableVideo as error:
            logger.warning("%s", error)
            num_failed += 1
    return num_failed


def predict_video(predictor: Predictor, source: Path | int, path: Path, batch_size: int, max_frames: int | None):
    """Predicts, draws and records one video or camera, with one batch of frames in memory; Ctrl-C ends a camera.

    An interruption keeps what was completed.

    Args:
        predictor: The model.
        source: Path of a video, or index of a camera.
        path: Path of the drawn video; the JSON lines are written to the same path with `.jsonl` appended.
        batch_size: Maximum number of frames per batch; fewer if they are large.
        max_frames: Maximum number of frames to read, or `None` for all.

    Raises:
        UnreadableVideo: if the source cannot be opened or has no frames.
        OSError: if the disk is full.
    """
    with (
        _open_video(source) as (info, frames),
        whole_file(path, keep_interrupted=True) as unfinished,
        open(f"{path}.jsonl", "w", encoding="utf-8") as file,
        VideoWriter(unfinished, info) as writer,
        tqdm(total=info.total_frames, desc=path.name, unit="frame") as progress,
    ):
        try:
            for batch in batched(islice(frames, max_frames), batch_size, lambda frame: frame.size // 3):
                pictures = [sv.cv2_to_pillow(frame) for frame in batch]
                for picture, result in zip(pictures, predictor(pictures), strict=True):
                    writer.write(predictor.draw(picture, result))
                    record = {"frame": progress.n, "poses": coco_records(result, DECIMALS)}
                    file.write(json.dumps(record) + "\n")
                    progress.update()
        except KeyboardInterrupt:
            if not isinstance(source, int):
                raise
    if max_frames is None and progress.n < (info.total_frames or 0):
        logger.warning("%s should have %d frames, but only %d could be read", source, info.total_frames, progress.n)


class VideoWriter:
    """Context manager that writes an H.264 MP4 file, which every browser plays.

    Not `supervision.VideoSink`, because the OpenCV that it uses comes without an H.264 encoder.

    Args:
        path: The file.
        info: Frame size and rate. H.264 requires even sizes, so odd ones are padded by repeating the last pixels.
    """

    def __init__(self, path: Path, info: sv.VideoInfo):
        import av  # imported here because its libraries conflict with those of OpenCV on macOS

        self.frame_type = av.VideoFrame
        self.container = av.open(str(path), mode="w", format="mp4")
        rate = Fraction(str(info.fps)).limit_denominator(100_000)
        self.stream = self.container.add_stream("h264", rate=rate)
        self.stream.width, self.stream.height = info.width + info.width % 2, info.height + info.height % 2
        self.stream.pix_fmt = "yuv420p"

    def write(self, picture: Image.Image):
        """Appends a frame."""
        pixels = np.asarray(picture)
        pixels = np.pad(pixels, [(0, length % 2) for length in pixels.shape[:2]] + [(0, 0)], mode="edge")
        self.container.mux(self.stream.encode(self.frame_type.from_ndarray(pixels, format="rgb24")))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *error):
        try:
            self.container.mux(self.stream.encode())
        finally:
            self.container.close()


class UnreadableVideo(OSError):
    """Raised when a video or camera cannot be opened or has no frames."""


@contextmanager
def _open_video(source: Path | int) -> Iterator[tuple[sv.VideoInfo, Iterator[np.ndarray]]]:
    """Opens a video file or camera and yields its size, rate and frames: BGR arrays of shape (height, width, 3)."""
    is_camera = isinstance(source, int)
    if is_camera and find_spec("cv2") is None:
        raise UnreadableVideo(f'cannot read camera {source}: pip install "transformers-detrpose[video]"')
    source = source if is_camera else str(source)
    frames = sv.get_video_frames_generator(source, prefetch=PREFETCHED_FRAMES)
    try:
        info = sv.VideoInfo.from_video_path(source)
        first = next(frames)
    except Exception as error:  # supervision raises `Exception`; `StopIteration` is a video without frames
        raise UnreadableVideo(f"cannot read {'camera' if is_camera else 'video'} {source}") from error
    info.height, info.width = first.shape[:2]
    info.fps = info.fps or FALLBACK_FPS
    info.total_frames = info.total_frames if (info.total_frames or 0) > 0 else None
    with closing(frames):
        yield info, chain([first], frames)
