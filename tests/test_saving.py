"""Saved folders: loaded by transformers' Auto classes, sharded, with their code, and on the Hub."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForKeypointDetection, pipeline

from tiny import tiny_config, tiny_ecpose_config
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseImageProcessor,
    DETRPoseModel,
    KeypointDetectionPipeline,
    modeling_detrpose,
)
from transformers_detrpose.pipeline_keypoint_detection import CUSTOM_PIPELINES

# transformers 4 has only the first.
POSE_AUTO_CLASSES = [
    name for name in ("AutoModelForKeypointDetection", "AutoModelForPoseEstimation") if hasattr(transformers, name)
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DETRPoseForPoseEstimation(tiny_config(id2label={0: "N/A", 1: "person", 2: "dog"})).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    DETRPoseImageProcessor(keypoint_schema=model.config.keypoint_schema).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ecpose_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = DETRPoseForPoseEstimation(tiny_ecpose_config())
    model.save_pretrained(folder)
    DETRPoseImageProcessor.for_model(model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def assert_same_outputs(loaded, model, image):
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(image).pred_keypoints, model(image).pred_keypoints)


def test_auto_classes(folder, model, image):
    assert isinstance(AutoConfig.from_pretrained(folder), DETRPoseConfig)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), DETRPoseImageProcessor)
    base = AutoModel.from_pretrained(folder)
    assert isinstance(base, DETRPoseModel)
    assert_same_outputs(base, model, image)
    assert len(POSE_AUTO_CLASSES) == (1 if transformers.__version__.startswith("4.") else 2)
    for name in POSE_AUTO_CLASSES:
        loaded = getattr(transformers, name).from_pretrained(folder)
        assert isinstance(loaded, DETRPoseForPoseEstimation)
        assert_same_outputs(loaded, model, image)


def test_skeleton_and_labels_travel(folder, model):
    config = AutoConfig.from_pretrained(folder)
    assert config.keypoint_schema == model.config.keypoint_schema
    assert config.id2label == {0: "N/A", 1: "person", 2: "dog"}
    assert AutoImageProcessor.from_pretrained(folder).keypoint_schema == model.config.keypoint_schema


def test_by_name_in_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert AutoModel.from_pretrained(folder.name).config.num_keypoints == 3
    assert pipeline("keypoint-detection", model=folder.name).model.config.num_keypoints == 3


def test_sharded(model, image, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_outputs(AutoModelForKeypointDetection.from_pretrained(tmp_path), model, image)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map(folder, model, image, device_map):
    loaded = AutoModelForKeypointDetection.from_pretrained(folder, device_map=device_map)
    # "auto" is the GPU where there is one.
    assert_same_outputs(loaded, copy.deepcopy(model).to(loaded.device), image.to(loaded.device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype(folder, image, dtype):
    loaded = AutoModelForKeypointDetection.from_pretrained(folder, dtype=dtype).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    with torch.no_grad():
        assert loaded(image).pred_keypoints.isfinite().all()


def test_attention_implementations(folder, model, image):
    loaded = AutoModelForKeypointDetection.from_pretrained(folder, attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"
    assert_same_outputs(loaded, model, image)
    loaded.set_attn_implementation("sdpa")
    assert loaded.model.decoder.layers[0].within_attn.config._attn_implementation == "sdpa"
    assert_same_outputs(loaded, model, image)


def test_new_number_of_labels(folder):
    """Fine-tuning on other labels: heads of the wrong size are reinitialized, the rest is kept."""
    loaded = AutoModelForKeypointDetection.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    prior = modeling_detrpose.DETRPosePreTrainedModel._prior_logit.fget(loaded)
    assert loaded.model.decoder.class_heads[0].bias.tolist() == pytest.approx([prior] * 5)
    original = DETRPoseForPoseEstimation.from_pretrained(folder)
    weight = "model.decoder.position_head.layers.0.weight"
    assert torch.equal(loaded.state_dict()[weight], original.state_dict()[weight])


def test_missing_weights_start_as_in_a_new_model(folder, tmp_path):
    """A checkpoint without a decoder, as from a detector: the decoder is properly initialized."""
    model = DETRPoseForPoseEstimation.from_pretrained(folder)
    kept = {name: tensor for name, tensor in model.state_dict().items() if ".decoder." not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = DETRPoseForPoseEstimation.from_pretrained(tmp_path)
    decoder = loaded.model.decoder
    assert all(head.layers[-1].weight.abs().sum() == 0 for head in decoder.keypoint_heads)
    assert decoder.layers[0].cross_attn.attention_weights.weight.abs().sum() == 0
    offsets = decoder.layers[0].cross_attn.sampling_offsets.bias.view(4, 2, 6, 2)  # heads, levels, points, xy
    torch.testing.assert_close(offsets[0, 0].detach(), torch.tensor([[float(point), 0] for point in range(1, 7)]))
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["transformers_detrpose"] = None  # importing it fails, as if it were not installed
import torch, transformers
from PIL import Image
folder, image_file, saved_again = sys.argv[1:]
image = Image.open(image_file)
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(image, return_tensors="pt")
results = {}
for name in ("AutoModel", "AutoModelForKeypointDetection", "AutoModelForPoseEstimation"):
    if hasattr(transformers, name):
        auto_class = getattr(transformers, name)
        model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            outputs = model(**inputs)
        results[name] = [type(model).__name__, outputs.pred_keypoints.tolist()]
pipe = transformers.pipeline("keypoint-detection", model=folder, trust_remote_code=True, device="cpu")
results["pipeline"] = [type(pipe).__name__, pipe(image, threshold=0.0)]
model.save_pretrained(saved_again)
print(json.dumps(results))
"""


@pytest.mark.parametrize("family", ["detrpose", "ecpose"])
def test_code_travels(family, request, tmp_path):
    """Without the package, Python loads the folder with `trust_remote_code` and computes the same outputs."""
    folder = request.getfixturevalue({"detrpose": "folder", "ecpose": "ecpose_folder"}[family])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(folder), str(tmp_path / "image.png"), str(tmp_path / "again")]
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])

    model = DETRPoseForPoseEstimation.from_pretrained(folder).eval()
    with torch.no_grad():
        keypoints = model(**DETRPoseImageProcessor.from_pretrained(folder)(image, return_tensors="pt")).pred_keypoints
    auto_classes = [name for name in found if name != "pipeline"]
    assert auto_classes == ["AutoModel", *POSE_AUTO_CLASSES]
    for name in auto_classes:
        class_name, values = found[name]
        assert class_name == ("DETRPoseModel" if name == "AutoModel" else "DETRPoseForPoseEstimation")
        torch.testing.assert_close(torch.tensor(values), keypoints, atol=1e-4, rtol=0)

    name, poses = found["pipeline"]
    expected = pipeline("keypoint-detection", model=str(folder), device="cpu")(image, threshold=0.0)
    assert name == "KeypointDetectionPipeline" and len(poses) == len(expected) == 7
    scores, expected_scores = ([pose["score"] for pose in result] for result in (poses, expected))
    assert scores == pytest.approx(expected_scores, abs=1e-4)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["custom_pipelines"] == CUSTOM_PIPELINES


def test_pipeline_of_the_package_needs_no_trust(folder):
    """Although the folder names its own pipeline, which must not run where the package is installed."""
    assert "custom_pipelines" in json.loads((folder / "config.json").read_text())
    assert type(pipeline("keypoint-detection", model=str(folder))) is KeypointDetectionPipeline
    assert not hasattr(AutoConfig.from_pretrained(folder), "custom_pipelines")


class FakeHub:
    """A stand-in for the Hub's interface that `push_to_hub` uses, without network access."""

    def __init__(self, has_card):
        self.has_card = has_card
        self.uploaded = {}

    def create_repo(self, repo_id, **kwargs):
        return type("Url", (), {"repo_id": f"someone/{repo_id}"})

    def file_exists(self, repo_id, filename, **kwargs):
        return self.has_card

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id, **kwargs):
        self.uploaded[path_in_repo] = path_or_fileobj.decode()


@pytest.mark.parametrize("has_card", [False, True])
def test_push_to_hub(model, monkeypatch, tmp_path, has_card):
    hub = FakeHub(has_card)
    monkeypatch.setattr(modeling_detrpose, "HfApi", lambda **kwargs: hub)
    pushed = []
    monkeypatch.setattr(
        transformers.PreTrainedModel, "push_to_hub", lambda self, repo_id, **kwargs: pushed.append(repo_id)
    )
    model.push_to_hub("poses")
    assert pushed == ["someone/poses"]
    if has_card:
        assert not hub.uploaded
    else:
        card = hub.uploaded["README.md"]
        assert "pipeline_tag: keypoint-detection" in card
        assert 'model="someone/poses"' in card
        assert "keypoint_0, keypoint_1, keypoint_2" in card and "dog (2)" in card


def test_folder_holds_the_code(folder, model):
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_detrpose.DETRPoseConfig",
        "AutoModel": "modeling_detrpose.DETRPoseModel",
        "AutoModelForKeypointDetection": "modeling_detrpose.DETRPoseForPoseEstimation",
        "AutoModelForPoseEstimation": "modeling_detrpose.DETRPoseForPoseEstimation",
    }
    assert config["custom_pipelines"] == CUSTOM_PIPELINES
    assert not hasattr(model.config, "custom_pipelines")
    modules = ["configuration", "modeling", "image_processing", "loss"]
    for module in [*(f"{module}_detrpose" for module in modules), "pipeline_keypoint_detection"]:
        assert (folder / f"{module}.py").is_file()
