"""transformers' own pipeline test, run on our task: load a tiny model and processor, predict, predict in batches.

The mixin knows only transformers' tasks. It reads which tiny models there are, and where, from a folder; finds image
processor classes in the transformers module; and looks a task's test class up in a table: all three are given ours.
"""

import json
import unittest

import numpy as np
import pytest
import torch
import transformers.utils
from huggingface_hub import ObjectDetectionInput
from PIL import Image
from transformers import pipeline
from transformers.testing_utils import torch_device
from upstream import load

import transformers_detrpose
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseImageProcessor,
    KeypointDetectionPipeline,
    KeypointSchema,
)
from transformers_detrpose.variants import hgnet_config

TASK = "keypoint-detection"
SCHEMA = KeypointSchema(names=("top", "left", "right"))


class KeypointDetectionPipelineTests:
    """The mixin's requirements: a pipeline with examples, and checks of its results."""

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32"):
        model = model.to(getattr(torch, dtype))
        pipe = pipeline(TASK, model=model, image_processor=image_processor, device=torch_device, threshold=0.0)
        values = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
        return pipe, [Image.fromarray(values), Image.fromarray(values[:, :32])]

    def run_pipeline_test(self, pipe, examples):
        for poses in pipe(examples):
            assert poses
            for pose in poses:
                assert list(pose) == ["score", "label", "box", "keypoints"]
                assert [keypoint["name"] for keypoint in pose["keypoints"]] == list(SCHEMA.names)


@pytest.fixture(scope="module")
def mixin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_models")
    (folder / "reports").mkdir()
    summary = {
        "DETRPoseForPoseEstimation": {"tokenizer_classes": [], "processor_classes": ["DETRPoseImageProcessor"]},
    }
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
    config = DETRPoseConfig(
        backbone_config=hgnet_config("B0", (16, 32)),
        feature_strides=[16, 32],
        keypoint_schema=SCHEMA,
        d_model=32,
        encoder_ffn_dim=32,
        hidden_expansion=0.5,
        depth_mult=0.3,
        num_queries=5,
        decoder_layers=1,
        decoder_ffn_dim=32,
    )
    model_folder = folder / "detrpose" / "DETRPoseForPoseEstimation"
    DETRPoseForPoseEstimation(config).save_pretrained(model_folder)
    size = {"height": 64, "width": 64}
    DETRPoseImageProcessor(keypoint_schema=SCHEMA, size=size).save_pretrained(model_folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMERS_TINY_MODEL_PATH", str(folder))
        patch.setattr(transformers.utils, "direct_transformers_import", lambda path: transformers_detrpose)
        module = load("test_pipeline_mixin")
        # transformers 4 holds the classes themselves, transformers 5 their dotted names.
        by_name = isinstance(module.pipeline_test_mapping["object-detection"]["test"], str)
        test = f"{__name__}.KeypointDetectionPipelineTests" if by_name else KeypointDetectionPipelineTests
        patch.setitem(module.pipeline_test_mapping, TASK, {"test": test})
        yield module


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_task(mixin, dtype):
    class Runner(mixin.PipelineTesterMixin, unittest.TestCase):
        pipeline_model_mapping = {TASK: DETRPoseForPoseEstimation}

    try:
        Runner().run_task_tests(TASK, dtype=dtype)
    except unittest.SkipTest as reason:  # raised by the mixin if something could not be loaded
        pytest.fail(f"the task was not tested: {reason}")


def test_arguments_are_those_of_object_detection(mixin):
    # The Hub specifies no arguments for keypoint detection; object detection is the nearest task that it knows.
    mixin.compare_pipeline_args_to_hub_spec(KeypointDetectionPipeline, ObjectDetectionInput)
