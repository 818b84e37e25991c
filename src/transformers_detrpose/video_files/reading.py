"""Reads video files, streams and cameras: frames with their times, and the packets of the sound."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..loading import first_line

FALLBACK_FPS = 30.0  # frames per second, for sources that do not report theirs
STREAM_TIMEOUT = 10.0  # seconds to wait for a stream
LIVE_SCHEMES = {"rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "udp"}

Source = Path | int | str  # a video file, the index of a camera, or the URL of a stream

logger = logging.getLogger(__name__)


class UnreadableVideo(OSError):
    """Raised when a video, stream or camera cannot be opened or has no frames."""


class Frame(NamedTuple):
    """A frame.

    Attributes:
        pixels: RGB, (height, width, 3), uint8.
        timestamp: Seconds since the first frame.
    """

    pixels: np.ndarray
    timestamp: float


@dataclass
class Video:
    """An open video.

    Attributes:
        height: Height of all frames in pixels.
        width: Width of all frames in pixels.
        fps: Nominal frames per second.
        total_frames: Number of frames, if the file says it.
        frames: All frames, once.
        audio: Stream of the sound, if there is one.
        audio_packets: Its packets that were read along with the frames so far; whoever writes them takes them out.
        start: Time of the first frame, in seconds on the clock of the packets.
    """

    height: int
    width: int
    fps: float
    total_frames: int | None
    frames: Iterator[Frame]
    audio: Any = None
    audio_packets: deque = field(default_factory=deque)
    start: float = 0.0


def is_url(text: str) -> bool:
    """Whether an input is the URL of a video or stream."""
    return "://" in text


def is_live(source: Source) -> bool:
    """Whether a source does not wait for its frames to be taken, and has no end."""
    return isinstance(source, int) or (isinstance(source, str) and urlsplit(source).scheme.lower() in LIVE_SCHEMES)


def describe(source: Source) -> str:
    """Returns the name of a source for messages, without the password that a URL may contain."""
    if isinstance(source, int):
        return f"camera {source}"
    if isinstance(source, Path):
        return f"video {source}"
    return f"stream {without_secrets(source)}"


def without_secrets(url: str) -> str:
    """Returns a URL without what may be secret: user name, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@contextmanager
def open_video(source: Source) -> Iterator[Video]:
    """Opens a video file, a stream or a camera.

    Raises:
        UnreadableVideo: if it cannot be opened or has no frames.
    """
    with _open_camera(source) if isinstance(source, int) else _open_container(source) as video:
        yield video


@contextmanager
def _open_container(source: Path | str) -> Iterator[Video]:
    import av  # imported here because its libraries conflict with those of OpenCV on macOS

    if isinstance(source, Path):
        settings = {}
    else:
        # Over UDP, the default, pictures lose parts.
        transport = {"rtsp_transport": "tcp"} if urlsplit(source).scheme.lower().startswith("rtsp") else {}
        settings = {"timeout": STREAM_TIMEOUT, "options": transport}
    try:
        container = av.open(str(source), metadata_errors="ignore", **settings)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideo(f"cannot read {describe(source)}: {_reason(error, source)}") from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise UnreadableVideo(f"cannot read {describe(source)}: it has no pictures")
        stream.thread_type = "AUTO"
        video = Video(0, 0, float(stream.average_rate or FALLBACK_FPS), stream.frames or None, iter(()))
        video.audio = container.streams.best("audio")
        decoded = _decode(container, stream, video, source)
        try:
            first = next(decoded)
        except StopIteration:
            raise UnreadableVideo(f"cannot read {describe(source)}: it has no frames") from None
        video.start = first.time or 0.0
        video.height, video.width = _upright(first).shape[:2]
        video.frames = _timed_frames(chain([first], decoded), video, source)
        yield video


def _reason(error: Exception, source: Source) -> str:
    """Returns why a source cannot be read. FFmpeg's messages end with the name of the source."""
    return (getattr(error, "strerror", None) or first_line(error)).replace(str(source), describe(source))


def _decode(container, stream, video: Video, source: Source) -> Iterator:
    """Yields the decoded frames and puts the packets of the sound aside; a broken end is reported and ends it."""
    import av

    streams = [stream] if video.audio is None else [stream, video.audio]
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            logger.warning("%s ends early: %s", describe(source), _reason(error, source))
            return
        if packet.stream is not stream:
            if packet.dts is not None:  # which the empty packet at the end has not
                video.audio_packets.append(packet)
            continue
        try:
            yield from packet.decode()
        except av.InvalidDataError:  # a damaged picture; the decoder goes on with the next
            continue


def _timed_frames(frames: Iterable, video: Video, source: Source) -> Iterator[Frame]:
    """Yields decoded frames in the size of the video, with times that always increase."""
    step, is_scaled = 1 / video.fps, False
    last, shift = -step, -video.start
    for frame in frames:
        timestamp = last + step if frame.time is None else frame.time + shift
        if timestamp <= last:  # the clock of the source went back
            shift += last + step - timestamp
            timestamp = last + step
        last = timestamp
        pixels = _upright(frame)
        if pixels.shape[:2] != (video.height, video.width):
            if not is_scaled:
                sizes = f"from {video.width}x{video.height} to {pixels.shape[1]}x{pixels.shape[0]}"
                logger.warning("%s changes its size %s: all frames are scaled to the first", describe(source), sizes)
            is_scaled = True
            pixels = np.asarray(Image.fromarray(pixels).resize((video.width, video.height)))
        yield Frame(pixels, timestamp)


def _upright(frame) -> np.ndarray:
    """Returns the pixels (height, width, 3) of a frame as it shall be shown: phones store how they were held."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


@contextmanager
def _open_camera(index: int) -> Iterator[Video]:
    try:
        import cv2
    except ImportError as error:
        install = 'pip install "transformers-detrpose[video]"'
        raise UnreadableVideo(f"cannot read camera {index}: {install}") from error
    camera = cv2.VideoCapture(index)
    try:
        is_read, first = camera.read()
        if not is_read:
            raise UnreadableVideo(f"cannot read camera {index}: it gives no pictures")
        height, width = first.shape[:2]
        fps = camera.get(cv2.CAP_PROP_FPS) or FALLBACK_FPS
        yield Video(height, width, fps, None, _camera_frames(camera, first))
    finally:
        camera.release()


def _camera_frames(camera, frame: np.ndarray) -> Iterator[Frame]:
    """Yields the frames of a camera, given the first, with the times at which they came."""
    is_read, start = True, time.monotonic()
    while is_read:
        yield Frame(np.ascontiguousarray(frame[:, :, ::-1]), time.monotonic() - start)
        is_read, frame = camera.read()
