"""Loading models and image processors by name."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from saved_model import NUM_QUERIES, save_tiny_model, tiny_config
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


def change_tensors(folder, change):
    """Lets a function change the tensors of a model folder, a dictionary."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def drop_layer(tensors):
    for name in [name for name in tensors if name.startswith("model.decoder.layers.0.")]:
        del tensors[name]


def cut_bias(tensors):
    tensors["model.decoder.layers.0.fc1.bias"] = torch.zeros(3)


class TestFilling:
    """A checkpoint fills the model of its configuration, or is refused."""

    @pytest.mark.parametrize(
        "change, message",
        [
            (
                lambda tensors: tensors.pop("model.decoder.layers.0.fc1.bias"),
                r"lacks model.decoder.layers.0.fc1.bias\.",
            ),
            (drop_layer, r"lacks model.decoder.layers.0.\S+, .* and \d+ more\.$"),  # ten of them and a count
            (cut_bias, r"has in another shape model.decoder.layers.0.fc1.bias\."),
            (lambda tensors: tensors.update(extra=torch.zeros(1)), r"has too extra\."),
        ],
    )
    def test_tensors_that_are_not_the_models(self, tmp_path, change, message):
        folder = save_tiny_model(tmp_path)
        change_tensors(folder, change)
        with pytest.raises(ValueError, match=f"are not those of the model in its config.json: it {message}"):
            load_model(str(folder))

    @pytest.mark.parametrize(
        "layers, message", [(2, "lacks model.decoder.*layers.1"), (None, "has too model.decoder.*layers.1")]
    )
    def test_another_number_of_layers(self, tmp_path, layers, message):
        """More than the checkpoint has, which would be random, or fewer."""
        if layers is None:
            config = tiny_config().to_dict()
            DETRPoseForPoseEstimation(DETRPoseConfig.from_dict({**config, "decoder_layers": 2})).save_pretrained(
                tmp_path
            )
        else:
            save_tiny_model(tmp_path)
        change_config(tmp_path, decoder_layers=layers or 1)
        with pytest.raises(ValueError, match=message):
            load_model(str(tmp_path))

    def test_what_a_change_makes_new_is_said(self, folder, caplog):
        load_model(folder, config=load_config(folder, keypoint_schema={"names": ["a", "b"]}))
        (record,) = [record for record in caplog.records if record.name == "transformers_detrpose.loading"]
        message = record.getMessage()
        assert "new, because the configuration was changed: " in message
        assert "model.query_content.keypoint_embedding.weight" in message and "backbone" not in message

    def test_a_change_excuses_nothing_else(self, tmp_path):
        folder = save_tiny_model(tmp_path)
        change_tensors(folder, lambda tensors: tensors.pop("model.decoder.layers.0.fc1.bias"))
        config = load_config(str(folder), keypoint_schema={"names": ["a", "b"]}, decoder_layers=2)
        with pytest.raises(ValueError, match=r"lacks model.decoder.layers.0.fc1.bias\.$"):
            load_model(str(folder), config=config)

    def test_from_pretrained_warns_and_tells(self, tmp_path, caplog, monkeypatch):
        """As it does for every model; on either line of transformers."""
        folder = save_tiny_model(tmp_path)
        change_tensors(folder, lambda tensors: tensors.pop("model.decoder.layers.0.fc1.bias"))
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        model, info = DETRPoseForPoseEstimation.from_pretrained(folder, output_loading_info=True)
        assert set(info["missing_keys"]) == {"model.decoder.layers.0.fc1.bias"}
        (warning,) = {r.getMessage() for r in caplog.records if "model.decoder.layers.0.fc1.bias" in r.getMessage()}
        assert "newly initialized" in warning


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
