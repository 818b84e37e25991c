"""Frames for examples: those of a video, or of generated people."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ..synthetic.videos import Video
from ..video_files.reading import open_video

FPS, SECONDS = 10.0, 6.0  # of the generated video
SIZE_HW = (360, 640)


@contextmanager
def open_frames(path: Path | None) -> Iterator[tuple[float, tuple[int, int], Iterator[Image.Image]]]:
    """Opens a video, or a generated one in which two people pass each other if there is none.

    Yields:
        The frames per second, the size as (height, width) in pixels, and the frames.

    Raises:
        UnreadableVideo: if the video cannot be opened or has no frames.
    """
    if path is None:
        people = Video(seed=0, index=1, size=SIZE_HW, max_people=2, duration=SECONDS)
        yield FPS, SIZE_HW, (people.draw(number / FPS)[0] for number in range(round(SECONDS * FPS)))
    else:
        with open_video(path) as video:
            frames = (Image.fromarray(frame.pixels) for frame in video.frames)
            yield video.fps, (video.height, video.width), frames
