"""Checkpoints in every layout of the official code, made from the reference case."""

import torch
from huggingface_hub import PyTorchModelHubMixin, save_torch_state_dict
from safetensors.torch import load_file, save_file

import reference

CASE = reference.load_case("detrpose-n-crowdpose")
CROWDPOSE_N = ("--variant", "n", "--dataset", "crowdpose")
# A tensor, to tell checkpoints apart, by its official name and ours.
MARKER, OUR_MARKER = "transformer.instance_embedding.weight", "model.query_content.instance_embedding.weight"


def assert_same(tensors, expected):
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def save_pth(content):
    def save(tensors, folder):
        torch.save(content(tensors), folder / "checkpoint.pth")
        return folder / "checkpoint.pth"

    return save


def save_safetensors(tensors, folder):
    save_file(tensors, folder / "checkpoint.safetensors")
    return folder / "checkpoint.safetensors"


def save_shards(tensors, folder):
    save_torch_state_dict(tensors, folder, max_shard_size="5MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def save_hub_mixin(tensors, folder):
    class Wrapper(torch.nn.Module, PyTorchModelHubMixin):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Module()

    wrapper = Wrapper()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = wrapper.model
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(leaf, tensor)
    wrapper.save_pretrained(folder)
    assert all(name.startswith("model.") for name in load_file(folder / "model.safetensors"))
    return folder


def with_prefix(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


LAYOUTS = {
    "bare": save_pth(lambda tensors: tensors),
    "bare, from DataParallel": save_pth(lambda tensors: with_prefix("module.", tensors)),
    "last": save_pth(lambda tensors: {"model": tensors, "epoch": 3}),
    "last, from DataParallel": save_pth(lambda tensors: {"model": with_prefix("module.", tensors)}),
    "averaged": save_pth(lambda tensors: {"ema": {"module": tensors, "updates": 7}}),
    "safetensors": save_safetensors,
    "shards": save_shards,
    "hub mixin": save_hub_mixin,
}
