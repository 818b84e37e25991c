"""Writes H.264 MP4 files, with the sound of the video they come from."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image

from .reading import Video
from .sound import Sound

CLOCK = Fraction(1, 90_000)  # seconds: the resolution of times in MPEG
PRESET = "veryfast"  # of x264, so that encoding does not take the processor from the network


class VideoWriter:
    """Context manager that writes an H.264 MP4 file, which every browser plays.

    Not `supervision.VideoSink`, because the OpenCV that it uses comes without an H.264 encoder, and it has no sound.

    Args:
        path: The file.
        info: Frame size and nominal rate. H.264 requires even sizes; odd ones are padded by repeating the last pixels.
        source: The video whose sound is written along, if it has any: copied as it is where MP4 allows its codec, and
            encoded as AAC otherwise.
    """

    def __init__(self, path: Path, info: Video | sv.VideoInfo, source: Video | None = None):
        import av  # imported here because its libraries conflict with those of OpenCV on macOS

        self.frame_type = av.VideoFrame
        self.container = av.open(str(path), mode="w", format="mp4")
        rate = Fraction(str(info.fps)).limit_denominator(100_000)
        self.stream = self.container.add_stream("h264", rate=rate, options={"preset": PRESET})
        self.stream.width, self.stream.height = info.width + info.width % 2, info.height + info.height % 2
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = CLOCK
        self.duration = round(1 / rate / CLOCK)
        self.last_time = -self.duration
        self.sound = None if source is None or source.audio is None else Sound(self.container, source)

    def write(self, picture: Image.Image | np.ndarray, timestamp: float | None = None):
        """Appends a frame.

        Args:
            picture: RGB image, or array of shape (height, width, 3).
            timestamp: Time in seconds; by default, when the previous frame ends.
        """
        pixels = np.asarray(picture)
        padding = [(0, length % 2) for length in pixels.shape[:2]]
        if padding != [(0, 0), (0, 0)]:
            pixels = np.pad(pixels, [*padding, (0, 0)], mode="edge")
        frame = self.frame_type.from_ndarray(pixels, format="rgb24")
        time = self.last_time + self.duration if timestamp is None else round(timestamp / CLOCK)
        self.last_time = max(time, self.last_time + 1)
        frame.pts, frame.time_base, frame.duration = self.last_time, CLOCK, self.duration
        self.container.mux(self.stream.encode(frame))
        if self.sound is not None:
            self.sound.write_until(self.end)

    @property
    def end(self) -> float:
        """Seconds until the end of the last frame."""
        return float(CLOCK * (self.last_time + self.duration))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error):
        try:
            if error_type is None or not issubclass(error_type, Exception):  # after an interruption the file is kept
                self.container.mux(self.stream.encode())
                if self.sound is not None:
                    self.sound.finish(self.end)
        finally:
            self.container.close()
