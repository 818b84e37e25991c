"""Shared by all commands: argument types, and errors reported in one line."""

import argparse
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ..configuration_detrpose import DETRPoseConfig
from ..data import CocoAnnotations, read_schema
from ..data.schema_files import completed_schema
from ..data.yolo_files import SPLITS
from ..instances import DataError
from ..keypoint_schemas import KeypointSchema
from ..loading import first_line
from ..tiles import Tiles

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


class CommandError(Exception):
    """An error that the user can correct; only the message is shown."""


def run_command(name: str, command: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Runs a command, and reports errors that the user can correct in one line.

    Args:
        name: name of the command, such as "detrpose predict".
        command: the command. `CommandError`, `ValueError` and `OSError` are treated as errors in its input, other
            exceptions as bugs.
        arguments: the parsed command line.

    Returns:
        The exit code.

    Raises:
        SystemExit: if the process is asked to end, see `ending_on_request`.
    """
    if getattr(arguments, "max_pixels", None):
        Image.MAX_IMAGE_PIXELS = arguments.max_pixels
    try:
        with ending_on_request():
            command(arguments)
        return 0
    except DataError as error:
        message = str(error)  # one line per problem
    except (CommandError, ValueError, OSError) as error:
        message = first_line(error)
    except torch.cuda.OutOfMemoryError as error:
        message = f"{first_line(error)} A smaller --batch-size needs less memory."
    except KeyboardInterrupt:
        return 130
    tqdm.write(f"{name}: error: {message}", file=sys.stderr)
    return 1


@contextmanager
def ending_on_request() -> Iterator[None]:
    """Lets a request to end the process (SIGTERM, or SIGHUP of a closed terminal) end it by `SystemExit`.

    By default the process would vanish at once. This way everything unfinished is removed, as after Ctrl-C.
    """
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Somebody else's handler stays, and so does `nohup`, which ignores SIGHUP. Threads cannot set handlers.
    in_main_thread = threading.current_thread() is threading.main_thread()
    mine = [number for number in signals if in_main_thread and signal.getsignal(number) == signal.SIG_DFL]

    def end(number, frame):
        for each in mine:
            signal.signal(each, signal.SIG_IGN)  # a second request must not interrupt the cleaning up
        raise SystemExit(128 + number)

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


class _ProgressHandler(logging.Handler):
    """Writes log messages to standard error without breaking a progress bar."""

    def emit(self, record: logging.LogRecord):
        tqdm.write(self.format(record), file=sys.stderr)


def show_log():
    """Shows the library's log messages on standard error."""
    logger = logging.getLogger("transformers_detrpose")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_ProgressHandler())


def count(text: str) -> int:
    """Argument type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def number(least: float, most: float = sys.float_info.max, kind: type = float) -> Callable[[str], float]:
    """Returns the argument type of numbers of the given kind from `least` to `most`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # also if it is NaN
            name = "a whole number" if kind is int else "a number"
            limits = f"of at least {least}" if most == sys.float_info.max else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not {name} {limits}")
        return value

    return read


def field_value(text: str) -> tuple[str, Any]:
    """Argument type: FIELD=VALUE, with the value parsed as JSON if possible."""
    field, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text} is not FIELD=VALUE")
    try:
        return field, json.loads(value)
    except json.JSONDecodeError:
        return field, value


def add_max_pixels(parser: argparse.ArgumentParser):
    """Adds `--max-pixels`, which `run_command` hands to Pillow, where `images.open_image` reads it."""
    parser.add_argument(
        "--max-pixels",
        type=count,
        default=Image.MAX_IMAGE_PIXELS,
        metavar="N",
        help="most pixels, width times height, of an image to decode; one of N pixels takes about 20 N bytes of memory",
    )


def add_tiles(parser: argparse.ArgumentParser):
    """Adds `--tiles` and `--overlap`, see `read_tiles`."""
    parser.add_argument(
        "--tiles",
        type=count,
        metavar="PIXELS",
        help="also look at tiles of this height and width, of twice that and so on, to find small people",
    )
    parser.add_argument(
        "--overlap",
        type=number(0, 0.9),
        default=0.25,
        metavar="FRACTION",
        help="minimum overlap of neighboring tiles, as a fraction of their size",
    )


def read_tiles(arguments: argparse.Namespace) -> Tiles | None:
    """Returns the tiles that `--tiles` and `--overlap` ask for."""
    return None if arguments.tiles is None else Tiles(arguments.tiles, arguments.overlap)


def add_device(parser: argparse.ArgumentParser):
    """Adds `--device`, by default a GPU if there is one; see `check_device`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch device, such as cpu, cuda, cuda:1 or mps")


def add_num_workers(parser: argparse._ActionsContainer, help: str = "processes that load images"):
    """Adds `--num-workers`, the number of a data loader's processes: at most 4, and no more than there are CPUs."""
    parser.add_argument("--num-workers", type=number(0, kind=int), default=min(4, os.cpu_count() or 1), help=help)


def check_device(name: str) -> torch.device:
    """Returns a device, after checking that PyTorch can use it.

    Raises:
        CommandError: if it cannot.
    """
    try:
        return torch.empty(1, device=name).device
    except Exception as error:  # RuntimeError, AssertionError or NotImplementedError, depending on the device
        raise CommandError(f"cannot use --device {name}: {first_line(error)}") from error


def find_images(paths: list[Path], option: str) -> list[Path]:
    """Returns the image files among paths, including those in folders and their subfolders.

    Args:
        paths: files and folders.
        option: option that specified them, for error messages.

    Raises:
        CommandError: if a path does not exist, or there are no images.
    """
    for path in paths:
        if not path.exists():
            raise CommandError(f"{option} {path}: no such file or folder")
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise CommandError(f"{option} {' '.join(map(str, paths))} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def locate_images(folder: Path | None, annotations: CocoAnnotations, option: str = "--images") -> CocoAnnotations:
    """Returns annotations with the folder of their images, after checking that the files exist.

    Args:
        folder: folder of the images; `None` for a YOLO dataset, which says itself where they are.
        annotations: the content of the annotation file.
        option: option that specified the folder, for error messages.

    Raises:
        CommandError: if the folder or a file does not exist, or the folder is not given.
    """
    if folder is None and annotations.image_folder is None:
        raise CommandError(f"{option} is needed, as {annotations.source} does not say where its images are")
    if folder is not None and not folder.is_dir():
        raise CommandError(f"{option} {folder}: no such folder")
    located = annotations.located(folder)
    for image in () if located.has_image_sizes else located.images:  # they have been opened
        if not (Path(located.image_folder) / image["file_name"]).is_file():
            raise CommandError(f"{option} {folder}: no file {image['file_name']} for image {image['id']}")
    return located


def add_schema(parser: argparse.ArgumentParser, whose: str = "the dataset's"):
    """Adds `--schema`, for `read_schema`."""
    parser.add_argument(
        "--schema",
        metavar="FILE",
        help="JSON or YAML file of names, edges, flip_pairs or sigmas of the keypoints, or coco or crowdpose, in place "
        f"of {whose}",
    )


def add_split(parser: argparse.ArgumentParser, default: str, option: str = "--split", annotations="--annotations"):
    """Adds the option that selects the images of a YOLO dataset."""
    parser.add_argument(
        option,
        choices=SPLITS,
        default=default,
        help=f"images to read if {annotations} is the data.yaml of a YOLO dataset",
    )


def schema_of_model(config: DETRPoseConfig, file: str | None) -> KeypointSchema:
    """Returns the keypoint schema of a model, with the fields that `--schema` gives in place of its own.

    Raises:
        CommandError: if the file has another number of keypoints.
    """
    own, given = config.keypoint_schema, read_schema(file)
    schema = own if given is None else completed_schema(given, own)
    if schema.num_keypoints != own.num_keypoints:
        raise CommandError(f"--schema {file} has {schema.num_keypoints} keypoints, but the model {own.num_keypoints}")
    return schema


def add_set(parser: argparse.ArgumentParser):
    """Adds the option that changes fields of the configuration, as pairs of name and value."""
    parser.add_argument(
        "--set",
        type=field_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of the configuration",
    )
