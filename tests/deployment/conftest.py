"""A model for the export tests: tiny, with random weights and a non-square image size."""

import copy
from functools import cache

import pytest
import torch

from tiny import TINY_BACKBONE
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor, KeypointSchema

TRIANGLE = KeypointSchema(names=("top", "left", "right"), sigmas=(0.03, 0.05, 0.1))
SIZE = {"height": 64, "width": 96}


def make_model(**fields) -> DETRPoseForPoseEstimation:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_layers": 2, "num_queries": 7}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DETRPoseConfig(
        backbone_config=TINY_BACKBONE, feature_strides=(16, 32), keypoint_schema=TRIANGLE, **sizes, **heads, **fields
    )
    model = DETRPoseForPoseEstimation(config).eval()
    for parameter in model.parameters():
        # Layers initialized to zero would hide errors.
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


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


NETWORK_OUTPUTS = ("logits", "pred_keypoints", "pred_keypoint_std")


def assert_same(found, expected, names=NETWORK_OUTPUTS, atol=1e-4):
    """Compares outputs by name, arrays or tensors."""
    assert tuple(found) == names
    for name in names:
        torch.testing.assert_close(torch.as_tensor(found[name]), expected[name], atol=atol, rtol=0)
