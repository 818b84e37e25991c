"""Predicting poses in videos and camera pictures."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path

import numpy as np
import supervision as sv
from tqdm import tqdm

from ..evaluation.coco_results import coco_records
from .image_files import DECIMALS, batched
from .models import Predictor
from .paths import written_path

FALLBACK_FPS = 30.0  # frames per second, for cameras that do not tell theirs
PREFETCHED_FRAMES = 8  # decoded while the model works

logger = logging.getLogger(__name__)


def predict_videos(
    predictor: Predictor, videos: dict[str, Path | int], output: Path, batch_size: int, max_frames: int | None
) -> int:
    """Predicts, draws and records all videos and cameras.

    Args:
        predictor: The model.
        videos: Paths or camera indices by their names.
        output: Folder for the videos and their JSON files.
        batch_size: Frames per batch.
        max_frames: Most frames to take of each, or `None` for all.

    Returns:
        How many could not be read.
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

    Args:
        predictor: The model.
        source: Path of a video, or index of a camera.
        path: Where the drawn video goes; its JSON lines go to the same name with `.jsonl` appended.
        batch_size: Frames per batch.
        max_frames: Most frames to take, or `None` for all.

    Raises:
        UnreadableVideo: if the source cannot be opened or has no frames.
    """
    with (
        _open_video(source) as (info, frames),
        open(f"{path}.jsonl", "w", encoding="utf-8") as file,
        sv.VideoSink(str(path), info) as sink,
        tqdm(total=info.total_frames, desc=path.name, unit="frame") as progress,
    ):
        try:
            for batch in batched(islice(frames, max_frames), batch_size):
                pictures = [sv.cv2_to_pillow(frame) for frame in batch]
                for picture, result in zip(pictures, predictor(pictures), strict=True):
                    sink.write_frame(sv.pillow_to_cv2(predictor.draw(picture, result)))
                    record = {"frame": progress.n, "poses": coco_records(result, DECIMALS)}
                    file.write(json.dumps(record) + "\n")
                    progress.update()
        except KeyboardInterrupt:
            if not isinstance(source, int):
                raise
    if max_frames is None and progress.n < (info.total_frames or 0):
        logger.warning("%s should have %d frames, but only %d could be read", source, info.total_frames, progress.n)


class UnreadableVideo(OSError):
    """A video or camera cannot be opened or has no frames."""


@contextmanager
def _open_video(source: Path | int) -> Iterator[tuple[sv.VideoInfo, Iterator[np.ndarray]]]:
    """Opens a video file or camera and gives its size, rate and frames: BGR arrays of shape (height, width, 3)."""
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
