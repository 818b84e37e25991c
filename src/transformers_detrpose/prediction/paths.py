"""Finds the inputs and the output path of each."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..files import check_outputs
from ..images import IMAGE_SUFFIXES
from ..video_files.reading import Source, is_url, without_secrets
from .track_files import SUFFIXES

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
WRITTEN_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".mp4", ".png", ".webp"}


def find_inputs(
    inputs: list[str], output: Path, others: Iterable[str | os.PathLike] = ()
) -> tuple[dict[str, Path], dict[str, Source]]:
    """Finds all images and videos in the given paths, and URLs and camera indices.

    Args:
        inputs: Paths of files and folders, URLs of videos and streams, and camera indices.
        output: Absolute path of the output folder.
        others: Other input files that must not be overwritten.

    Returns:
        The images and the videos, each as a dictionary from name to path, URL or camera index. Names are relative to
        the deepest folder that contains all inputs; a stream is called after its host and path.

    Raises:
        OSError: if a path does not exist.
        ValueError: if nothing is found, or an input would be overwritten.
    """
    streams = {text: int(text) for text in inputs if text.isdecimal() and not Path(text).exists()}
    streams |= {text: text for text in inputs if is_url(text)}
    paths = [Path(os.path.abspath(text)) for text in inputs if text not in streams]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    files = dict.fromkeys(file for path in paths for file in _find_files(path, output))
    if not files and not streams:
        raise ValueError(f"no images or videos in {' '.join(inputs)}")

    folder = os.path.commonpath([path if path.is_dir() else path.parent for path in paths]) if paths else ""
    named = {file.relative_to(folder).as_posix(): file for file in files}
    _check_written_paths(named, [_stream_name(source) for source in streams.values()], output, others)
    videos = {name: file for name, file in named.items() if file.suffix.lower() in VIDEO_SUFFIXES}
    images = {name: file for name, file in named.items() if name not in videos}
    return images, {**videos, **{_stream_name(source): source for source in streams.values()}}


def _stream_name(source: str | int) -> str:
    """Returns the file name of a camera or stream: `camera0.mp4`, or host and path, without password.

    Raises:
        ValueError: if a URL has no host, or is that of an image.
    """
    if isinstance(source, int):
        return f"camera{source}.mp4"
    parts = urlsplit(source)
    if Path(parts.path).suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(
            f"{without_secrets(source)} is an image: by URL, only videos and streams are read; download it first"
        )
    name = re.sub(r"[^\w.-]+", "_", f"{parts.hostname or ''}{parts.path}").strip("_.")
    if not name:
        raise ValueError(f"{without_secrets(source)} is not the URL of a video or stream")
    return name if name.lower().endswith(".mp4") else f"{name}.mp4"


def _find_files(path: Path, output: Path) -> list[Path]:
    """Returns the file itself, or all images and videos in and below a folder, sorted by path.

    Args:
        path: Absolute path of a file or folder.
        output: Absolute path of the output folder, whose images from an earlier run are not inputs.
    """
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    shown = (file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))
    return sorted(file for file in shown if file.is_file() and (output == path or output not in file.parents))


def written_path(output: Path, name: str) -> Path:
    """Returns the path of the drawn image or video of an input."""
    suffix = Path(name).suffix.lower()
    if suffix in WRITTEN_SUFFIXES:
        return output / name
    return output / f"{name}{'.mp4' if suffix in VIDEO_SUFFIXES else '.png'}"


def lines_path(path: Path) -> Path:
    """Returns the path of the JSON lines, given that of the drawn video."""
    return path.with_name(f"{path.name}.jsonl")


def tracks_path(path: Path, format: str) -> Path:
    """Returns the path of the exported tracks, given that of the drawn video."""
    return path.with_name(path.name + SUFFIXES[format])


def _check_written_paths(named: dict[str, Path], streams: list[str], output: Path, others: Iterable[str | os.PathLike]):
    """Raises `ValueError` if an output would overwrite an input or the output of another input."""
    taken = {os.path.realpath(path) for path in named.values()}
    for name in [*named, *streams]:
        path = os.path.realpath(written_path(output, name))
        if path in taken:
            raise ValueError(f"the result for {name} would overwrite {path}: choose another output")
        taken.add(path)
    pictures = [written_path(output, name) for name in [*named, *streams]]
    videos = [path for path in pictures if path.suffix == ".mp4"]
    more = [file for path in videos for file in (lines_path(path), *(tracks_path(path, name) for name in SUFFIXES))]
    check_outputs([*pictures, *more, output / "predictions.json"], [*named.values(), *others])


def image_ids(names: Iterable[str], images: Iterable[Mapping[str, Any]] | None = None) -> dict[str, int | str]:
    """Returns the `image_id` of each file name.

    Args:
        names: The names.
        images: Image entries of an annotation file, whose ids are used: the entry whose `file_name` is the name, or
            else the only one of that name in another folder. Without them, the id is the number in the name if all
            names are distinct plain numbers, else the name itself.

    Raises:
        ValueError: if a name has no such entry.
    """
    if images is not None:
        return _annotated_ids(names, images)
    numbers = {name: Path(name).stem for name in names}
    if all(number.isdecimal() for number in numbers.values()):
        numbers = {name: int(number) for name, number in numbers.items()}
        if len(set(numbers.values())) == len(numbers):
            return numbers
    return {name: name for name in numbers}


def _annotated_ids(names: Iterable[str], images: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    by_name, by_last_part = {}, {}
    for image in images:
        name = str(image.get("file_name"))
        by_name[name] = image["id"]
        by_last_part.setdefault(Path(name).name, []).append(image["id"])
    ids = {}
    for name in names:
        candidates = [by_name[name]] if name in by_name else by_last_part.get(Path(name).name, [])
        if len(candidates) != 1:
            problem = "several images" if candidates else "no image"
            raise ValueError(f"the annotations have {problem} named {name}, so that there is no `image_id` for it.")
        ids[name] = candidates[0]
    return ids
