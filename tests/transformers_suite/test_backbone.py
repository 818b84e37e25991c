"""transformers' own tests for backbones, run on ECViT."""

import unittest
from unittest.mock import patch

import torch
from transformers.testing_utils import torch_device
from upstream import load

from transformers_detrpose import ECViTBackbone, ECViTConfig

common = load("test_backbone_common")


class ECViTModelTester:
    """Settings and inputs for the mixin, under the names that it expects."""

    def prepare_config_and_inputs_for_common(self):
        fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = ECViTConfig(**fields, projection_size=24, out_features=["stem", "stage1", "stage3"])
        return config, {"pixel_values": torch.rand(2, 3, 64, 96, device=torch_device)}


class ECViTBackboneTest(common.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (ECViTBackbone,)
    config_class = ECViTConfig
    has_attentions = True

    def setUp(self):
        self.model_tester = ECViTModelTester()
        # The attribute by which the mixin counts feature maps; without it, it takes the layers for them.
        patcher = patch.object(ECViTConfig, "depths", (1, 1, 1), create=True)
        patcher.start()
        self.addCleanup(patcher.stop)
