"""Importing the package: public names, and registration with transformers."""

import subprocess
import sys
from importlib.resources import files

import pytest
import transformers

import transformers_detrpose
from transformers_detrpose.registration import register_with_transformers


@pytest.mark.parametrize("name", transformers_detrpose.__all__)
def test_public_names(name):
    assert getattr(transformers_detrpose, name).__module__.startswith("transformers_detrpose.")


def test_unknown_name():
    with pytest.raises(AttributeError, match="'transformers_detrpose' has no attribute 'nothing'"):
        transformers_detrpose.nothing  # noqa: B018


def test_types_are_shipped():
    assert files("transformers_detrpose").joinpath("py.typed").is_file()


def test_registering_twice_changes_nothing():
    register_with_transformers()
    config = transformers_detrpose.DETRPoseConfig.from_variant("n")
    assert transformers.AutoConfig.for_model("detrpose").__class__ is type(config)
    auto_class = transformers.AutoModelForKeypointDetection
    assert auto_class._model_mapping[type(config)] is transformers_detrpose.DETRPoseForPoseEstimation


SCRIPT = """
import sys
import transformers_detrpose
print(*{"cv2", "matplotlib", "pycocotools", "supervision"} & set(sys.modules))
import transformers
transformers_detrpose.DETRPoseImageProcessor().save_pretrained(sys.argv[1])
processor = transformers.AutoImageProcessor.from_pretrained(sys.argv[1])
assert type(processor) is transformers_detrpose.DETRPoseImageProcessor
"""


def test_importing_is_light_and_loading_is_quiet(tmp_path):
    """In its own process, as transformers 4 warns of a slow image processor only once."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
    assert "image processor" not in run.stderr
