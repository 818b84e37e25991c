"""Writes files and folders atomically, and never over an input."""

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Errors of a full disk: no space left, quota exceeded, file size limit exceeded.
_FULL_DISK = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# The same for libraries with their own errors: safetensors and torch.save.
_FULL_DISK_MESSAGES = ("No space left on device", "File too large", "PytorchStreamWriter failed writing file")


@contextmanager
def whole_file(path: str | os.PathLike, keep_interrupted: bool = False) -> Iterator[Path]:
    """Yields a temporary file that is moved to `path` once it is complete and removed otherwise.

    Missing parent folders are created. An existing file is replaced. If the process is killed (SIGKILL, power failure),
    an existing file is unchanged, and a hidden folder `.NAME-<random letters>` is left beside it.

    Args:
        path: the file to write.
        keep_interrupted: whether to keep the file if Ctrl-C or SIGTERM interrupts writing; the block must then leave a
            usable file.

    Yields:
        The temporary path, beside `path` and with the same suffix.

    Raises:
        IsADirectoryError: if `path` is a folder.
        OSError: with `path` in the message, if the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, but a file shall be written there.")
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as beside:
            unfinished = Path(beside) / path.name
            try:
                yield unfinished
            except (KeyboardInterrupt, SystemExit):
                if keep_interrupted and unfinished.exists():
                    os.replace(unfinished, path)
                raise
            os.replace(unfinished, path)


@contextmanager
def naming_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Converts errors of a full disk, which rarely name a file, into an `OSError` with the path.

    Args:
        path: the path being written.
    """
    try:
        yield
    except Exception as error:
        number, is_named = getattr(error, "errno", None), getattr(error, "filename", None) is not None
        is_full = number in _FULL_DISK or any(message in str(error) for message in _FULL_DISK_MESSAGES)
        if is_named or not is_full:
            raise
        number = number if number in _FULL_DISK else errno.ENOSPC
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


@contextmanager
def whole_folder(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that is moved to `path` once it is complete and removed otherwise.

    Missing parent folders are created. If the process is killed, the same applies as for `whole_file`.

    Args:
        path: the folder to write.
        replace: whether to replace an existing folder. It is moved aside first, so that there is always a complete one,
            under this name or beside it.

    Yields:
        The temporary folder, beside `path`.

    Raises:
        FileExistsError: see `check_new_folder`, unless `replace`.
        OSError: with `path` in the message, if the disk is full.
    """
    path = Path(path)
    if not replace:
        check_new_folder(path)
    path = path.resolve()
    with naming_full_disk(path):
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
    """Restores a folder that `whole_folder` was replacing when it was killed, and removes its temporary folders.

    Also removes those that `whole_file` left.

    Args:
        path: the folder or file that was being written. No other process may be writing it.
    """
    path = Path(path).resolve()
    for beside in path.parent.glob(f".{glob.escape(path.name)}-*"):
        _clear(path, beside)


def _clear(path: Path, beside: Path):
    """Removes the temporary folders of `whole_folder`, unless one is the only complete version."""
    replaced, new = beside / "replaced", beside / path.name
    # The old folder is moved aside once the new one is complete.
    if not path.exists() and replaced.is_dir():
        os.rename(new if new.is_dir() else replaced, path)
    # A partly removed folder must not be mistaken for a complete one even if this process is killed.
    if replaced.is_dir():
        os.rename(replaced, beside / "removed")
    shutil.rmtree(beside, ignore_errors=True)


def check_new_folder(path: str | os.PathLike):
    """Checks that a folder can be created, before the work that fills it.

    Raises:
        FileExistsError: if `path` exists already and is not an empty folder.
        NotADirectoryError: if one of its parents is a file.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: remove it or choose another output.")
    for parent in path.parents:
        if parent.is_file():
            raise NotADirectoryError(f"{path} cannot be made, because {parent} is a file: choose another output.")


def check_outputs(outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike]):
    """Checks that no output would overwrite an input, resolving links and relative paths.

    Args:
        outputs: files to write.
        inputs: files to read.

    Raises:
        ValueError: if an output is an input; the message names it.
    """
    # Only existing outputs can be inputs, so there is seldom anything to compare with thousands of inputs.
    existing = {os.path.realpath(path): path for path in outputs if os.path.lexists(path)}
    if not existing:
        return
    for path in inputs:
        output = existing.get(os.path.realpath(path))
        if output is not None:
            raise ValueError(f"the output {output} would overwrite an input: choose another output")
