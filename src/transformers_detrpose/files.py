"""Writing files and folders whole or not at all, and never over an input."""

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# What a disk that takes no more says: full, over the user's quota, over the limit of a file's size.
_FULL_DISK = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# The same in libraries that raise errors of their own: safetensors and torch.save.
_FULL_DISK_MESSAGES = ("No space left on device", "File too large", "PytorchStreamWriter failed writing file")


@contextmanager
def whole_file(path: str | os.PathLike, keep_interrupted: bool = False) -> Iterator[Path]:
    """Gives a file to write, which takes the name `path` once it is complete and otherwise disappears.

    Missing parent folders are made. A file that is there already is replaced. If the process is killed without notice
    (SIGKILL, power failure), there is the earlier file or none under this name, and a hidden folder
    `.NAME-<random letters>` beside it.

    Args:
        path: the file to write.
        keep_interrupted: whether the file counts as complete when Ctrl-C or SIGTERM ends its writing; the block must
            then leave a file that is of use.

    Yields:
        The path to write to, beside `path` and with the same suffix.

    Raises:
        IsADirectoryError: if `path` is a folder.
        OSError: naming `path`, if the disk is full.
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
    """Turns errors of a full disk, which as a rule do not say where, into an `OSError` that names what was written.

    Args:
        path: what is being written.
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
    """Gives a folder to fill, which takes the name `path` once it is complete and otherwise disappears.

    Missing parent folders are made. What is said of killed processes in `whole_file` holds here, too.

    Args:
        path: the folder to write.
        replace: whether a folder that is there already is replaced. It is moved aside first, so that at every moment
            there is a complete one, under this name or beside it.

    Yields:
        The folder to fill, beside `path`.

    Raises:
        FileExistsError: see `check_new_folder`, unless `replace`.
        OSError: naming `path`, if the disk is full.
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


def check_outputs(outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike]):
    """Checks that no output would be written over an input, by whatever path or link they were given.

    Args:
        outputs: files to write.
        inputs: files that are read.

    Raises:
        ValueError: naming the output that is an input.
    """
    # What does not exist yet is no input; so there is seldom anything to compare thousands of inputs with.
    existing = {os.path.realpath(path): path for path in outputs if os.path.lexists(path)}
    if not existing:
        return
    for path in inputs:
        output = existing.get(os.path.realpath(path))
        if output is not None:
            raise ValueError(f"the output {output} would overwrite an input: choose another output")
