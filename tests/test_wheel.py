"""The contents and dependencies of the wheel. `.ci/run` installs and uses it outside the clone."""

import stat
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "transformers_detrpose"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_files(wheel):
    names = set(wheel.namelist())
    source = ROOT / "src"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert f"{PACKAGE}/py.typed" in names
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "picture.jpg"):
        assert f"{PACKAGE}/demonstration_model/{name}" in names
    assert not [name for name in names if name.startswith(("tests", "examples"))]


def test_the_training_script_is_a_regular_file(wheel):
    entry = wheel.getinfo(f"{PACKAGE}/commands/train.py")
    assert not stat.S_ISLNK(entry.external_attr >> 16)
    assert wheel.read(entry) == (ROOT / "examples" / "train.py").read_bytes()


def test_console_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "detrpose = detrpose_cli:main" in wheel.read(name).decode().splitlines()


def test_inference_needs_no_package_of_training_or_export(metadata):
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {line.replace(">", " ").replace("<", " ").split()[0] for line in required}
    assert names >= {"torch", "torchvision", "transformers", "supervision"}
    assert not names & {"accelerate", "datasets", "evaluate", "faster-coco-eval", "pycocotools", "onnx", "onnxruntime"}


def test_extras(metadata):
    extras = {"train", "onnx", "optimum", "tensorrt", "video", "ray", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras
