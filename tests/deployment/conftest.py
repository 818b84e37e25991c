"""A tiny model, its folder and its exported folders."""

import copy
from functools import cache

import pytest
import torch

from small_models import SIZE, TRIANGLE, make_model
from transformers_detrpose import DETRPoseImageProcessor


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def processor():
    return DETRPoseImageProcessor(size=SIZE, keypoint_schema=TRIANGLE)


@pytest.fixture(scope="session")
def model_dir(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def export(model, processor, tmp_path_factory):
    """Returns a function that exports the model, once per variant, to a folder that tests must not modify."""

    @cache
    def run(variant="default", dtype=torch.float32):
        from transformers_detrpose.deployment import export_onnx

        folder = tmp_path_factory.mktemp("export") / variant
        export_onnx(copy.deepcopy(model).to(dtype), processor, folder, variant)
        return folder

    return run


@pytest.fixture
def images():
    """Returns a function that makes a batch of noise, (batch, 3, height, width)."""

    def make(batch_size, height=SIZE["height"], width=SIZE["width"]):
        return torch.rand(batch_size, 3, height, width, generator=torch.Generator().manual_seed(batch_size))

    return make
