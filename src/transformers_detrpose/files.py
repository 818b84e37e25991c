"""Writing files and folders whole or not at all."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a file to write, which takes the name `path` once it is complete and otherwise disappears.

    Missing parent folders are made. A file that is there already is replaced.

    Args:
        path: the file to write.

    Yields:
        The path to write to, beside `path` and with the same suffix.

    Raises:
        IsADirectoryError: if `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, but a file shall be written there.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as beside:
        unfinished = Path(beside) / path.name
        yield unfinished
        os.replace(unfinished, path)


@contextmanager
def whole_folder(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Gives a folder to fill, which takes the name `path` once it is complete and otherwise disappears.

    Missing parent folders are made.

    Args:
        path: the folder to write.
        replace: whether a folder that is there already is replaced. It is moved aside first, so that at every moment
            there is a complete one, under this name or beside it.

    Yields:
        The folder to fill, beside `path`.

    Raises:
        FileExistsError: see `check_new_folder`, unless `replace`.
    """
    path = Path(path)
    if not replace:
        check_new_folder(path)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        unfinished = beside / path.name
        unfinished.mkdir()
        yield unfinished
        if path.exists():
            os.rename(path, beside / "replaced")
        os.rename(unfinished, path)
    finally:
        _clear(path, beside)


def restore_folder(path: str | os.PathLike):
    """Puts back a folder that `whole_folder` was replacing when it was killed, and removes what it left beside it.

    Args:
        path: the folder that was being written. Nobody else may be writing it.
    """
    path = Path(path).resolve()
    for beside in path.parent.glob(f".{glob.escape(path.name)}-*"):
        _clear(path, beside)


def _clear(path: Path, beside: Path):
    """Removes what `whole_folder` has made beside a folder, unless that is the only complete one."""
    replaced, new = beside / "replaced", beside / path.name
    # The old folder is moved aside once the new one is complete.
    if not path.exists() and replaced.is_dir():
        os.rename(new if new.is_dir() else replaced, path)
    # Half removed, it must not be taken for a complete one, whatever else is killed.
    if replaced.is_dir():
        os.rename(replaced, beside / "removed")
    shutil.rmtree(beside, ignore_errors=True)


def check_new_folder(path: str | os.PathLike):
    """Checks that a folder can be made, before the work that fills it.

    Raises:
        FileExistsError: if `path` exists already and is not an empty folder.
        NotADirectoryError: if it would lie in a file.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: remove it or choose another output.")
    for parent in path.parents:
        if parent.is_file():
            raise NotADirectoryError(f"{path} cannot be made, because {parent} is a file: choose another output.")


def same_file(path: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Tells whether two paths, of which neither need exist, lead to the same place."""
    return os.path.realpath(path) == os.path.realpath(other)
