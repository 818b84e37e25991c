"""Writing files and folders whole or not at all."""

import errno
import os
import signal

import pytest
from kills import Kill, Killed
from safetensors import SafetensorError

from transformers_detrpose.files import (
    check_new_folder,
    check_outputs,
    naming_full_disk,
    restore_folder,
    whole_file,
    whole_folder,
)


@pytest.fixture(params=[OSError("disk full"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def failure(request):
    return request.param


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestFile:
    def test_it_appears_when_it_is_complete(self, tmp_path):
        path = tmp_path / "new" / "a.json"
        with whole_file(path) as unfinished:
            unfinished.write_text("half")
            assert not path.exists()
            assert unfinished.suffix == ".json"
        assert path.read_text() == "half"
        assert names(path.parent) == ["a.json"]

    def test_it_replaces_another(self, tmp_path):
        path = tmp_path / "a"
        path.write_text("old")
        with whole_file(path) as unfinished:
            unfinished.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"

    def test_a_failure_changes_nothing(self, tmp_path, failure):
        path = tmp_path / "a"
        path.write_text("old")
        with pytest.raises(type(failure)), whole_file(path) as unfinished:
            unfinished.write_text("half")
            raise failure
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a"]

    def test_a_folder_is_not_replaced(self, tmp_path):
        with pytest.raises(IsADirectoryError, match="is a folder"), whole_file(tmp_path):
            pass


class TestFolder:
    @pytest.mark.parametrize("exists", [False, True])
    def test_it_appears_when_it_is_complete(self, tmp_path, exists):
        path = tmp_path / "new" / "folder"
        if exists:
            path.mkdir(parents=True)  # an empty folder is as good as none
        with whole_folder(path) as unfinished:
            (unfinished / "a").write_text("a")
            assert not path.exists() or not names(path)
        assert names(path) == ["a"]
        assert names(path.parent) == ["folder"]

    def test_a_failure_leaves_nothing(self, tmp_path, failure):
        with pytest.raises(type(failure)), whole_folder(tmp_path / "folder") as unfinished:
            (unfinished / "a").write_text("a")
            raise failure
        assert not names(tmp_path)

    def test_what_is_there_is_kept(self, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "mine").touch()
        (tmp_path / "file").touch()
        for path in (tmp_path / "folder", tmp_path / "file"):
            with pytest.raises(FileExistsError, match=f"{path.name} exists already"), whole_folder(path):
                pytest.fail("there is nothing to fill")
        assert names(tmp_path / "folder") == ["mine"]

    def test_it_replaces_another_if_asked(self, tmp_path, failure):
        path = tmp_path / "folder"
        path.mkdir()
        (path / "old").touch()
        with pytest.raises(type(failure)), whole_folder(path, replace=True):
            raise failure
        assert names(path) == ["old"]
        with whole_folder(path, replace=True) as unfinished:
            (unfinished / "new").touch()
            assert names(path) == ["old"]
        assert names(path) == ["new"]
        assert names(tmp_path) == ["folder"]

    def test_a_relative_path_is_one_of_the_folder_it_was_given_in(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with whole_folder("folder") as unfinished:
            (unfinished / "a").touch()
        assert names(tmp_path / "folder") == ["a"]


def write(path, text):
    """Writes a folder of two files, as often as it is called."""
    with whole_folder(path, replace=True) as unfinished:
        for name in ("a", "b"):
            (unfinished / name).write_text(text)


def content(path):
    return {file.name: file.read_text() for file in path.iterdir()}


def restore_and_write(path, text):
    restore_folder(path)
    write(path, text)


def killed_at(operation, function, *arguments) -> bool:
    """Calls a function and kills it at a file operation; returns whether there were so many."""
    try:
        with Kill(operation):
            function(*arguments)
    except Killed:
        return True
    return False


def test_any_two_kills_leave_a_complete_folder(tmp_path):
    """The first while a folder is replaced, the second while that is put right and replaced again."""
    first, kills = 0, 0
    while first == 0 or kills:
        kills, second, more = 0, 0, True
        while more:
            path = tmp_path / f"{first}-{second}" / "folder"
            write(path, "1")
            kills += killed_at(first, write, path, "2")
            more = killed_at(second, restore_and_write, path, "3")
            restore_folder(path)
            assert content(path) in ({"a": text, "b": text} for text in "123"), (first, second)
            assert more or content(path) == {"a": "3", "b": "3"}
            assert names(path.parent) == ["folder"]
            second += 1
        first += 1
    assert first > 8  # kills were simulated


@pytest.mark.parametrize("operation", [1, 2])
def test_ctrl_c_while_a_folder_is_replaced(tmp_path, monkeypatch, operation):
    """What is raised between the two renames, or instead of one, loses nothing."""
    path, rename, calls = tmp_path / "folder", os.rename, []
    write(path, "1")

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == operation:
            raise KeyboardInterrupt
        rename(*arguments)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, "2")
    assert content(path)["a"] in "12" and len(content(path)) == 2 and names(tmp_path) == ["folder"]


def test_new_folders(tmp_path):
    check_new_folder(tmp_path / "missing")
    check_new_folder(tmp_path)
    (tmp_path / "a").touch()
    for path in (tmp_path, tmp_path / "a"):
        with pytest.raises(FileExistsError):
            check_new_folder(path)
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        with pytest.raises(NotADirectoryError, match="a is a file"):
            check_new_folder(path)


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
@pytest.mark.parametrize(
    "output",
    [
        "folder/a",
        "folder/../folder/a",  # the same by another path
        "link/a",  # through a link to the folder
        "link to a",  # a link to the input, which would be replaced by the output
    ],
)
def test_outputs_that_are_inputs(tmp_path, output):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "link to a").symlink_to(tmp_path / "folder" / "a")
    inputs = [tmp_path / "folder" / "b", tmp_path / "folder" / "a"]
    with pytest.raises(ValueError, match="would overwrite an input: choose another output"):
        check_outputs([tmp_path / "new", tmp_path / output], inputs)


def test_outputs_that_are_no_inputs(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    check_outputs([tmp_path / "new", tmp_path / "b"], [tmp_path / "a", tmp_path / "new"])  # what is missing is no input


class TestFullDisk:
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),  # of writing to an open file
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"),
        ],
    )
    @pytest.mark.parametrize("whole", [whole_file, whole_folder])
    def test_the_path_is_named(self, tmp_path, whole, error):
        with pytest.raises(OSError, match="No space left on device") as caught, whole(tmp_path / "a"):
            raise error
        assert caught.value.filename == str(tmp_path / "a")
        assert names(tmp_path) == []

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
    def test_a_full_device(self):
        with pytest.raises(OSError, match="No space left on device: 'a.json'"), naming_full_disk("a.json"):
            with open("/dev/full", "w") as file:
                file.write("x")

    @pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file", "b"), OSError("other"), ValueError("x")])
    def test_other_errors_stay(self, error):
        with pytest.raises(type(error)) as caught, naming_full_disk("a"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("keep", [False, True])
def test_interrupted_files(tmp_path, interruption, keep):
    with pytest.raises(interruption), whole_file(tmp_path / "a", keep_interrupted=keep) as unfinished:
        unfinished.write_text("half")
        raise interruption
    assert names(tmp_path) == (["a"] if keep else [])


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), whole_file(tmp_path / "result"):
        open(tmp_path / "other")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_without_notice(tmp_path):
    """The earlier file stays; what was written is beside it, in a hidden folder."""
    (tmp_path / "a").write_text("old")
    process = os.fork()
    if not process:
        with whole_file(tmp_path / "a", keep_interrupted=True) as unfinished:
            unfinished.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert (tmp_path / "a").read_text() == "old"
    (hidden, name) = names(tmp_path)
    assert hidden.startswith(".a-") and name == "a"
