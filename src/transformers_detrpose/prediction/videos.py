"""Predicts poses in videos, streams and cameras."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..evaluation.coco_results import coco_records
from ..files import whole_file
from ..keypoint_schemas import KeypointSchema
from ..pose_arrays import Poses
from ..video_files.reading import Frame, Source, UnreadableVideo, Video, describe, is_live, open_video
from ..video_files.writing import VideoWriter
from .batches import batched
from .following import Follower, Predicted
from .image_files import DECIMALS
from .models import Predictor, PreparedBatch
from .paths import lines_path, tracks_path, written_path
from .stages import Stages
from .track_files import write_tracks
from .video_drawing import VideoDrawer

# How many items wait between two stages. Each is a frame or a batch of frames, so that few keep memory small.
DECODED_FRAMES, PREPARED_BATCHES, PREDICTED_FRAMES, DRAWN_FRAMES = 4, 1, 8, 2
TIME_DECIMALS = 6  # of seconds in files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoOptions:
    """How videos are predicted.

    Args:
        batch_size: Maximum number of frames per batch; fewer if they are large.
        max_frames: Maximum number of frames to read from each video, or `None` for all.
        track: Whether to follow people from frame to frame.
        smooth: Whether to smooth tracks one frame late ("online"), all at once ("offline"), or not (`None`).
        tracks_formats: Names of `track_files.SUFFIXES`, the formats to export tracks in.
    """

    batch_size: int = 8
    max_frames: int | None = None
    track: bool = False
    smooth: str | None = None
    tracks_formats: tuple[str, ...] = ()


def predict_videos(predictor: Predictor, videos: dict[str, Source], output: Path, options: VideoOptions) -> int:
    """Predicts, draws and records all videos, streams and cameras.

    Args:
        predictor: The model.
        videos: Paths, URLs or camera indices by their names.
        output: Folder for the videos and their other files.
        options: How.

    Returns:
        The number of inputs that could not be read.
    """
    num_failed = 0
    for name, source in videos.items():
        try:
            predict_video(predictor, source, written_path(output, name), options)
        except UnreadableVideo as error:
            logger.warning("%s", error)
            num_failed += 1
    return num_failed


def predict_video(predictor: Predictor, source: Source, path: Path, options: VideoOptions):
    """Predicts, draws and records one video, stream or camera; Ctrl-C ends a live one.

    Decoding, preparing, the network, drawing and encoding overlap, with a few frames in memory. An interruption keeps
    what was completed.

    Args:
        predictor: The model.
        source: Path of a video, URL of a stream, or index of a camera.
        path: Path of the drawn video; the other files have longer names, see `paths.lines_path`.
        options: How.

    Raises:
        UnreadableVideo: if the source cannot be opened or has no frames.
        OSError: if the disk is full.
    """
    smoothed = _smoothed_poses(predictor, source, path.name, options) if options.smooth == "offline" else None
    with (
        open_video(source) as video,
        _output_files(path, video, predictor.model.config.keypoint_schema) as write,
        Stages() as stages,
        tqdm(total=_num_frames(video, options), desc=path.name, unit="frame") as progress,
    ):
        frames = _decode(stages, video, source, options)
        if smoothed is None:
            predicted = _predict_and_follow(stages, predictor, frames, options)
        else:
            predicted = map(Predicted, frames, smoothed)
        draw = VideoDrawer(predictor, video.fps)
        try:
            for item, pixels in stages.run(((item, draw(*item)) for item in predicted), DRAWN_FRAMES):
                write(item, pixels)
                progress.update()
        except KeyboardInterrupt:
            if not is_live(source):
                raise
    if options.max_frames is None and progress.n < (video.total_frames or 0):
        message = "%s should have %d frames, but only %d could be read"
        logger.warning(message, describe(source), video.total_frames, progress.n)
    for name in options.tracks_formats:
        with whole_file(tracks_path(path, name)) as unfinished:
            write_tracks(name, lines_path(path), unfinished, predictor.model.config)


def _smoothed_poses(predictor: Predictor, source: Source, name: str, options: VideoOptions) -> list[Poses]:
    """Returns the smoothed poses of all frames of a file, which is read once for them alone."""
    follower = Follower(predictor)
    with (
        open_video(source) as video,
        Stages() as stages,
        tqdm(total=_num_frames(video, options), desc=f"{name}, poses", unit="frame") as progress,
    ):
        poses, timestamps = [], []
        frames = _decode(stages, video, source, options)
        for item in _predict(stages, predictor, frames, options.batch_size, follower.least_score):
            poses.append(item.poses)
            timestamps.append(item.frame.timestamp)
            progress.update()
    return follower.follow_all(poses, timestamps)


def _num_frames(video: Video, options: VideoOptions) -> int | None:
    """Returns how many frames will be read, if that is known."""
    return min((count for count in (video.total_frames, options.max_frames) if count), default=None)


def _decode(stages: Stages, video: Video, source: Source, options: VideoOptions) -> Iterator[Frame]:
    """Decodes frames ahead. A live source does not wait: when the network is slower, it loses frames."""
    return stages.run(islice(video.frames, options.max_frames), DECODED_FRAMES, drop_oldest=is_live(source))


def _predict_and_follow(
    stages: Stages, predictor: Predictor, frames: Iterator[Frame], options: VideoOptions
) -> Iterator[Predicted]:
    """Predicts the poses of frames, and follows and smooths them as they come if the options say so."""
    if not options.track:
        return _predict(stages, predictor, frames, options.batch_size, predictor.threshold)
    follower = Follower(predictor, options.smooth == "online")
    predicted = _predict(stages, predictor, frames, options.batch_size, follower.least_score)
    return follower.follow(predicted)


def _predict(
    stages: Stages, predictor: Predictor, frames: Iterator[Frame], batch_size: int, threshold: float
) -> Iterator[Predicted]:
    """Predicts the poses of frames whose scores are at least a threshold."""

    def prepare() -> Iterator[tuple[list[Frame], PreparedBatch]]:
        for batch in batched(frames, batch_size, lambda frame: frame.pixels.size // 3):
            yield batch, predictor.prepare([frame.pixels for frame in batch])

    def predict(prepared: Iterator[tuple[list[Frame], PreparedBatch]]) -> Iterator[Predicted]:
        for batch, pixel_values in prepared:
            for frame, poses in zip(batch, predictor.predict(pixel_values, threshold), strict=True):
                yield Predicted(frame, poses)

    return stages.run(predict(stages.run(prepare(), PREPARED_BATCHES)), PREDICTED_FRAMES)


@contextmanager
def _output_files(
    path: Path, video: Video, schema: KeypointSchema
) -> Iterator[Callable[[Predicted, np.ndarray], None]]:
    """Yields a function that appends a frame, and its pixels with the poses drawn, to the video and the JSON lines."""
    with (
        whole_file(path, keep_interrupted=True) as unfinished,
        whole_file(lines_path(path), keep_interrupted=True) as unfinished_lines,
        open(unfinished_lines, "w", encoding="utf-8") as lines,
        VideoWriter(unfinished, video, source=video) as writer,
    ):
        numbers = count()

        def write(item: Predicted, pixels: np.ndarray):
            writer.write(pixels, item.frame.timestamp)
            record = {"frame": next(numbers), "timestamp": round(item.frame.timestamp, TIME_DECIMALS)}
            lines.write(json.dumps({**record, "poses": _records(item.poses, schema)}) + "\n")

        yield write


def _records(poses: Poses, schema: KeypointSchema) -> list[dict[str, Any]]:
    """Returns the poses of a frame in COCO's results format, and what is known of their tracks."""
    records = coco_records(poses, DECIMALS, schema)
    for name in [name for name in ("track_id", "filled") if name in poses]:
        for record, value in zip(records, poses[name].tolist(), strict=True):
            record[name] = value
    return records
