"""Draws scenes of walking people as videos, and writes them as a dataset in PoseTrack's form: COCO's plus `track_id`.

Annotations are those of `pictures.py`, except that a person of whom too little is visible is not annotated in that
frame. A person has the same `track_id` in all frames of a video, also after leaving the image and coming back.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..files import whole_folder
from .dataset import coco_content, map_in_order
from .figures import build_figure, move_figure, paint_figure
from .pictures import SUPERSAMPLING, PlacedFigure, annotate, cover, is_recognisable, place_figure
from .scenery import finish, paint_background
from .scenes import Scene, sample_scene
from .shapes import sample_style

FRAMES_PER_VIDEO = 100_000  # at most; image ids start after this times the index of the video
PEOPLE_PER_FRAME = 1000  # annotation ids start after this times the id of the image
ASPECT = 16 / 9
BACKGROUND_SIZE = (1.4, 2.0)  # (height, width) relative to the frame's, as the camera turns
QUALITY = 90  # of JPEG


@dataclass(frozen=True)
class Video:
    """A scene that can be drawn at any time; the same arguments give the same video.

    Args:
        seed: Random seed of the dataset, at least 0.
        index: Index of the video in the dataset, at least 0. People cross each other in every second video, and leave
            the image and come back in the others.
        size: (height, width) in pixels.
        max_people: Maximum number of people.
        duration: In seconds.
    """

    seed: int
    index: int
    size: tuple[int, int]
    max_people: int
    duration: float

    @cached_property
    def scene(self) -> Scene:
        """`Scene`: the people and the camera."""
        rng, crossing = self._rng(0), self.index % 2 == 1
        num_people = int(rng.integers(min(2, self.max_people), self.max_people + 1))
        return sample_scene(rng, self.size, num_people, self.duration, crossing)

    @cached_property
    def background(self) -> Image.Image:
        """`Image.Image`: what is behind the people, all around."""
        return paint_background(
            self._rng(1), tuple(int(a * b) for a, b in zip(BACKGROUND_SIZE, self.size, strict=True))
        )

    def draw(self, time: float) -> tuple[Image.Image, list[dict[str, Any]]]:
        """Draws the frame at a time in seconds.

        Returns:
            The image, and for each person who can be recognised `track_id`, `keypoints`, `num_keypoints`, `bbox` and
            `area` in COCO's form, the farthest first.
        """
        style, canvas = sample_style(self._rng(2)), self._background_at(time)
        draw, track_ids, figures = ImageDraw.Draw(canvas), [], []
        for person in self.scene.people(time):
            walker = self.scene.walkers[person.track_id]
            height = SUPERSAMPLING * person.height
            figure = build_figure(person.skeleton, walker.body, walker.look, height, style)
            # In drawing, pixel centers are at integers.
            placed = place_figure(move_figure(figure, SUPERSAMPLING * person.hips - 0.5), canvas.size[::-1])
            paint_figure(draw, placed.figure)
            figures = [*cover(figures, placed.part_map > 0), placed]
            track_ids.append(person.track_id)
        return finish(self._rng(3), canvas, SUPERSAMPLING), _annotations(track_ids, figures)

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.index, 2, purpose])

    def _background_at(self, time: float) -> Image.Image:
        """Returns the part of the background that the camera sees, in the size of the canvas."""
        camera = self.scene.camera
        pan, pitch, _ = camera.motion(time)
        offset = camera.focal_length * np.array([pan, pitch - camera.pitch])
        height, width = self.size
        room = np.array(self.background.size) - (width, height)
        left, top = np.clip(0.5 * room + offset, 0, room).tolist()
        box = (left, top, left + width, top + height)
        return self.background.resize((SUPERSAMPLING * width, SUPERSAMPLING * height), Image.Resampling.BILINEAR, box)


def _annotations(track_ids: list[int], figures: list[PlacedFigure]) -> list[dict[str, Any]]:
    return [
        {"track_id": track_id, **annotate(figure)}
        for track_id, figure in zip(track_ids, figures, strict=True)
        if is_recognisable(figure)
    ]


def write_videos(
    output: Path,
    videos: int,
    frames: int,
    fps: float,
    size: int = 320,
    seed: int = 0,
    workers: int = 1,
    max_people: int = 6,
    mp4: bool = False,
):
    """Writes videos and their annotations: `videos.json`, and `00000000/000000.jpg` etc. or `00000000.mp4` etc.

    Args:
        output: Folder to create; it appears only once it is complete.
        videos: Number of videos.
        frames: Number of frames of each.
        fps: Frames per second.
        size: Height in pixels; the width is 16/9 of it, rounded to an even number.
        seed: Random seed, at least 0.
        workers: Number of processes.
        max_people: Maximum number of people per video.
        mp4: Whether to write a video file instead of one image per frame.

    Raises:
        FileExistsError: if `output` is a file or a nonempty folder.
    """
    shape = (size, 2 * round(0.5 * ASPECT * size))
    with whole_folder(output) as folder:
        write_one = partial(_write_video, folder=folder, frames=frames, fps=fps, size=shape, seed=seed, mp4=mp4)
        write_one = partial(write_one, max_people=max_people)
        results = list(tqdm(map_in_order(write_one, range(videos), workers), "videos", total=videos, unit="video"))
        records = [record for result in results for record in result]
        content = coco_content(records, f"Videos of synthetic people, seed {seed}")
        (folder / "videos.json").write_text(json.dumps(content), encoding="utf-8")


def _write_video(
    index: int, folder: Path, frames: int, fps: float, size: tuple[int, int], seed: int, max_people: int, mp4: bool
) -> list[tuple[dict, list[dict]]]:
    """Writes one video, and returns for each frame its entry in `images` and its annotations."""
    video = Video(seed, index, size, max_people, frames / fps)
    records = []
    with ExitStack() as stack:
        save = _open_mp4(stack, folder / f"{index:08d}.mp4", size, fps) if mp4 else _open_folder(folder, f"{index:08d}")
        for number in range(frames):
            picture, people = video.draw(number / fps)
            image_id = FRAMES_PER_VIDEO * index + number
            image = {"id": image_id, "file_name": save(picture, number), "width": size[1], "height": size[0]}
            image |= {"vid_id": index, "frame_id": number, "nframes": frames, "is_labeled": True}
            image["timestamp"] = number / fps
            ids = {"image_id": image_id, "category_id": 1, "iscrowd": 0}
            first_id = PEOPLE_PER_FRAME * image_id + 1
            records.append((image, [{"id": first_id + i, **ids, **person} for i, person in enumerate(people)]))
    return records


def _open_folder(folder: Path, name: str) -> Callable[[Image.Image, int], str]:
    """Returns a function that writes a frame, and returns its file name."""
    (folder / name).mkdir()

    def save(picture: Image.Image, number: int) -> str:
        file_name = f"{name}/{number:06d}.jpg"
        picture.save(folder / file_name, quality=QUALITY)
        return file_name

    return save


def _open_mp4(stack: ExitStack, path: Path, size: tuple[int, int], fps: float) -> Callable[[Image.Image, int], str]:
    """Returns a function that appends a frame to a video file, and returns the file's name."""
    from ..video_files.writing import VideoWriter  # imported here because its libraries take a second

    writer = stack.enter_context(VideoWriter(path, sv.VideoInfo(width=size[1], height=size[0], fps=fps)))

    def save(picture: Image.Image, number: int) -> str:
        writer.write(picture)
        return path.name

    return save
