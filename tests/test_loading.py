"""Loading models and image processors by name."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from saved_model import NUM_QUERIES, save_tiny_model
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation
from transformers_detrpose.keypoint_schemas import COCO_PERSON, CROWDPOSE_PERSON
from transformers_detrpose.loading import first_line, load_config, load_image_processor, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def test_a_folder(folder):
    model = load_model(folder)
    saved = DETRPoseForPoseEstimation.from_pretrained(folder)
    assert load_config(folder).num_queries == model.config.num_queries == NUM_QUERIES
    assert all(map(torch.equal, model.state_dict().values(), saved.state_dict().values()))
    assert load_image_processor(folder).size["height"] == 64


def test_weights_are_float32_unless_asked_otherwise(folder, tmp_path):
    DETRPoseForPoseEstimation.from_pretrained(folder, dtype=torch.float16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.float32
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_variant(folder):
    assert load_config("n") == DETRPoseConfig.from_variant("n")
    assert load_model("n", config=load_config(folder)).config.num_queries == NUM_QUERIES
    assert load_image_processor("n", size={"height": 96, "width": 64}).size["width"] == 64
    assert load_image_processor("n").keypoint_schema == COCO_PERSON


def test_another_skeleton_keeps_what_fits(folder):
    config = load_config(folder)
    fields = {**config.to_dict(), "keypoint_schema": CROWDPOSE_PERSON}
    model = load_model(folder, config=DETRPoseConfig.from_dict(fields))
    assert model.config.num_keypoints == 14
    saved = load_model(folder)
    assert torch.equal(
        model.model.encoder.fpn_blocks[0].conv1.conv.weight, saved.model.encoder.fpn_blocks[0].conv1.conv.weight
    )


class TestErrors:
    @pytest.mark.parametrize("name", ["missing", "/missing/too/", "a/b/c", "xxl"])
    def test_no_such_model(self, name):
        for load in (load_config, load_model):
            with pytest.raises(ValueError, match="there is no model .*: no such folder, nor one of n, s, m, l, x"):
                load(name)

    def test_a_hub_id_without_network(self):
        with pytest.raises(ValueError, match="cannot load the configuration of nobody/nothing: "):
            load_model("nobody/nothing")

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match="cannot load the configuration of"):
            load_model(str(tmp_path))
        with pytest.raises(ValueError, match="cannot load the image processor of"):
            load_image_processor(str(tmp_path))

    def test_another_kind_of_model(self, tmp_path):
        config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        ViTModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is a vit model, not a detrpose model"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"not weights"])
    def test_broken_weights(self, tmp_path, content):
        folder = save_tiny_model(tmp_path)
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="cannot load the weights of"):
            load_model(str(folder))


def test_first_line():
    assert first_line(ValueError("\nfirst\nsecond")) == "first"
    assert first_line(KeyError()) == "KeyError"
