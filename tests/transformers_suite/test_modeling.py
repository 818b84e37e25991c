"""transformers' own tests for models and configurations, run on ours."""

import tempfile
import unittest
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import send_to_device
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import set_seed
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device
from upstream import load

from tiny import TINY_BACKBONE, tiny_ecpose_config
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseModel,
    ECViTPreTrainedModel,
    KeypointSchema,
)

common = load("test_modeling_common")
with patch("transformers.utils.direct_transformers_import"):  # asks for a file outside the source distribution
    configuration_common = load("test_configuration_common")

BACKBONE = {**TINY_BACKBONE, "out_features": ["stage2", "stage3", "stage4"]}
SCHEMA = KeypointSchema(
    names=("nose", "left_hand", "right_hand", "left_foot", "right_foot"),
    edges=((0, 1), (0, 2), (0, 3), (0, 4)),
    flip_pairs=((1, 2), (3, 4)),
    sigmas=(0.03, 0.06, 0.06, 0.09, 0.09),
)


class DETRPoseModelTester:
    """Settings and inputs for the mixin, under the names that it expects."""

    def __init__(self, parent=None):
        self.parent = parent
        self.is_training = True
        self.batch_size = 3
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.hidden_size = 32
        self.seq_length = SCHEMA.num_keypoints + 1  # tokens of an instance
        self.num_hidden_states_types = 2  # tokens and feature maps

    def get_config(self):
        return DETRPoseConfig(
            backbone_config=BACKBONE,
            keypoint_schema=SCHEMA,
            d_model=self.hidden_size,
            encoder_ffn_dim=24,
            encoder_attention_heads=2,
            hidden_expansion=0.5,
            depth_mult=0.34,
            num_queries=6,
            decoder_layers=self.num_hidden_layers,
            decoder_ffn_dim=24,
            decoder_attention_heads=self.num_attention_heads,
            decoder_n_points=2,
            max_num_bins=4,
            lqe_hidden_dim=8,
            num_denoising=4,
            num_denoising_labels=2,
            use_visibility_head=True,
        )

    def get_labels(self):
        """One, two and no people."""
        set_seed(0)
        labels = [
            {
                "class_labels": torch.ones(count, dtype=torch.int64),
                "keypoints": torch.cat((torch.rand(count, 5, 2), torch.full((count, 5, 1), 2.0)), dim=-1),
                "area": torch.full((count,), 0.2),
            }
            for count in (1, 2, 0)
        ]
        return send_to_device(labels, torch_device)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, 3, 64, 64).to(torch_device)}


def moved(model):
    """Moves all weights away from their initial values, so that nothing is zero or equal by chance."""
    set_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for buffer in model.buffers():
            buffer += torch.rand(buffer.shape).to(buffer)
    return model


class ECPoseModelTester(DETRPoseModelTester):
    """The same for ECPose."""

    def get_config(self):
        sizes = {"d_model": self.hidden_size, "num_queries": 6, "decoder_n_points": 2, "max_num_bins": 4}
        denoising = {"num_denoising": 4, "num_denoising_labels": 2}
        return tiny_ecpose_config(**sizes, **denoising, keypoint_schema=SCHEMA)


class DETRPoseConfigTest(unittest.TestCase):
    def test_config(self):
        fields = {"d_model": 64, "num_queries": 7, "keypoint_schema": SCHEMA.to_dict()}
        # No common properties: upstream sets them to 0 on transformers 4, which our configuration refuses.
        tester = configuration_common.ConfigTester(
            self, DETRPoseConfig, has_text_modality=False, common_properties=[], **fields
        )
        tester.run_common_tests()


def topk_without_ranking(scores, k, dim=-1, topk=torch.Tensor.topk):
    """Selects the first locations (batch, locations) as queries; elsewhere, the largest values as usual."""
    if scores.ndim != 2:
        return topk(scores, k, dim=dim)
    indices = torch.arange(k, device=scores.device).expand(len(scores), -1)
    return torch.return_types.topk((scores.gather(1, indices), indices))


class DETRPoseModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DETRPoseModel, DETRPoseForPoseEstimation)
    _is_composite = True  # has a backbone with its own configuration
    test_resize_embeddings = False  # no vocabulary
    test_head_masking = False  # transformers 4: no argument for it
    test_pruning = False
    test_torch_exportable = True  # transformers 4: off unless a model says so
    gradient_tolerance: dict[str, float] = {}

    def setUp(self):
        self.model_tester = DETRPoseModelTester(self)
        # The mixin takes base models, which have no loss, from this list.
        patcher = patch.dict(MODEL_MAPPING_NAMES, {DETRPoseConfig.model_type: DETRPoseModel.__name__})
        patcher.start()
        self.addCleanup(patcher.stop)
        if "eager_matches_sdpa" in self._testMethodName:
            # Rounding changes the order of queries with nearly equal scores, and so the hidden states of each.
            patcher = patch.object(torch.Tensor, "topk", topk_without_ranking)
            patcher.start()
            self.addCleanup(patcher.stop)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is DETRPoseForPoseEstimation:
            inputs["labels"] = self.model_tester.get_labels()
        return inputs

    def test_can_init_all_missing_weights(self):
        # Upstream leaves out old models, told by the year in the first lines of their configuration.
        with tempfile.NamedTemporaryFile("w", suffix=".py") as source:
            source.write("# Copyright 2025")
            source.flush()
            with patch.object(common.inspect, "getfile", return_value=source.name):
                super().test_can_init_all_missing_weights()

    def test_retain_grad_hidden_states_attentions(self):
        super().test_retain_grad_hidden_states_attentions()
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = DETRPoseModel(config).to(torch_device)(**inputs, output_attentions=True, output_hidden_states=True)
        states = [outputs[name][0] for name in ("across_attentions", "cross_attentions", "encoder_attentions")]
        states.append(outputs.encoder_hidden_states[0])
        for state in states:
            state.retain_grad()
        outputs.last_hidden_state.flatten()[0].backward()
        for state in states:
            self.assertIsNotNone(state.grad)

    def test_sdpa_can_dispatch_non_composite_models(self):
        with patch.object(self, "_is_composite", False):  # holds for composite models, too
            super().test_sdpa_can_dispatch_non_composite_models()

    def test_sdpa_can_dispatch_composite_models(self):
        # Upstream expects a vision and a language model inside.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with tempfile.TemporaryDirectory() as folder:
                moved(model_class(config)).save_pretrained(folder)
                models = {
                    name: model_class.from_pretrained(folder, attn_implementation=name) for name in ("sdpa", "eager")
                }
                models["default"] = model_class.from_pretrained(folder)
            self.assertEqual(models["default"].config._attn_implementation, "sdpa")
            self.assertEqual(models["sdpa"].config._attn_implementation, "sdpa")
            self.assertEqual(models["eager"].config._attn_implementation, "eager")
            with torch.no_grad():
                keypoints = [model.to(torch_device)(**inputs).pred_keypoints for model in models.values()]
            torch.testing.assert_close(keypoints[0], keypoints[1])
            torch.testing.assert_close(keypoints[0], keypoints[2])

    def test_can_set_attention_dynamically(self):
        # Upstream wants the backbone to change as well, which has no attention.
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            for implementation in ("eager", "sdpa"):
                model.set_attn_implementation(implementation)
                self.assertEqual(model.config._attn_implementation, implementation)
            with self.assertRaisesRegex(ValueError, "foo"):
                model.set_attn_implementation("foo")
            self.assertEqual(model.config._attn_implementation, "sdpa")

    @unittest.skip("The model reads images: there is no table of input tokens to get or to replace.")
    def test_model_get_set_embeddings(self):
        pass

    # What upstream leaves to models, or tests on a GPU only.

    def test_partial_checkpoint(self):
        """Tensors of the checkpoint are kept, the rest is initialized."""
        for frozen in (True, False):
            config = self.model_tester.get_config()
            config.freeze_backbone_batch_norms = frozen
            initial, other = (DETRPoseForPoseEstimation(config).state_dict() for _ in range(2))
            full = moved(DETRPoseForPoseEstimation(config)).state_dict()
            partial = {name: full[name] for index, name in enumerate(full) if index % 3}
            loaded = DETRPoseForPoseEstimation.from_pretrained(None, config=config, state_dict=partial).state_dict()
            for name, values in loaded.items():
                if name in partial:
                    torch.testing.assert_close(values, partial[name], msg=f"{name} is in the checkpoint but not loaded")
                elif torch.equal(initial[name], other[name]):
                    torch.testing.assert_close(values, initial[name], msg=f"{name} lacks its initial value")
                self.assertTrue(values.isfinite().all(), name)

    def test_initial_values(self):
        """Initially, scores are low, nothing is refined, and sampling points lie in all directions."""
        model = DETRPoseForPoseEstimation(self.model_tester.get_config()).model
        layer = model.decoder.layers[0]
        for head in (model.query_selection.class_head, *model.decoder.class_heads):
            torch.testing.assert_close(head.bias.sigmoid(), torch.full((2,), 0.01))
        changes = [layer.gate.gate, layer.cross_attn.attention_weights, layer.cross_attn.sampling_offsets]
        heads = [model.query_selection.keypoint_head, model.decoder.initial_keypoint_head]
        heads += [*model.decoder.keypoint_heads, *(head.mlp for head in model.decoder.quality_heads)]
        for linear in (*changes, *(head.layers[-1] for head in heads)):
            self.assertEqual(linear.weight.abs().sum(), 0)
        offsets = layer.cross_attn.sampling_offsets.bias.view(4, 3, 2, 2)  # heads, levels, points, (x, y)
        directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        torch.testing.assert_close(offsets[:, 2, 1], 2 * directions, atol=1e-6, rtol=0)

    def test_load_with_other_labels(self):
        """Class heads of another size are reinitialized, and everything else is kept."""
        model = moved(DETRPoseForPoseEstimation(self.model_tester.get_config()))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = DETRPoseForPoseEstimation.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
        self.assertEqual(len(loaded.config.id2label), 3)
        expected = model.state_dict()
        for name, values in loaded.state_dict().items():
            if "class_head" not in name:
                torch.testing.assert_close(values, expected[name])
            elif name.endswith("bias"):
                torch.testing.assert_close(values.sigmoid(), torch.full((3,), 0.01))

    def test_sharded_checkpoint_on_disk_and_cpu(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs = send_to_device(inputs, "cpu")
        for model_class in self.all_model_classes:
            model = moved(model_class(config)).eval()
            size = sum(values.nbytes for values in model.state_dict().values())
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as offload_folder:
                model.save_pretrained(folder, max_shard_size=size // 4)
                self.assertGreater(len(list(Path(folder).glob("*.safetensors"))), 2)
                for share in self.model_split_percents:
                    # transformers 4 does not load the buffers of what is on disk unless they go there as well.
                    offloaded = model_class.from_pretrained(
                        folder,
                        device_map="auto",
                        max_memory={"cpu": int(share * size)},
                        offload_folder=offload_folder,
                        offload_buffers=True,
                    )
                    self.assertEqual(set(offloaded.hf_device_map.values()), {"cpu", "disk"})
                    with torch.no_grad():
                        torch.testing.assert_close(offloaded(**inputs).pred_keypoints, model(**inputs).pred_keypoints)

    def test_model_parallelism_on_imaginary_gpus(self):
        """Tensors on the meta device detect device errors like the two GPUs that upstream needs."""
        for share in (0.5, 0.6, 0.7, 0.8, 0.9):
            with FakeTensorMode(allow_non_fake_inputs=True):
                model = DETRPoseForPoseEstimation(self.model_tester.get_config()).eval()
                size = sum(values.nbytes for values in model.state_dict().values())
                memory = {0: int(share * size), 1: size}
                device_map = infer_auto_device_map(model, memory, model._no_split_modules)
                self.assertEqual(set(device_map.values()), {0, 1})
                weights = {}
                for name, device in device_map.items():
                    move = partial(send_to_device, device=f"cuda:{device}")
                    block = model.get_submodule(name)
                    block.register_forward_pre_hook(
                        lambda _, args, kwargs, move=move: move((args, kwargs)), with_kwargs=True
                    )
                    weights |= {f"{name}.{key}": move(values) for key, values in block.state_dict().items()}
                torch.func.functional_call(model, weights, torch.rand(2, 3, 64, 64))

    def test_half_precision(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for dtype in (torch.float16, torch.bfloat16):
                with tempfile.TemporaryDirectory() as folder:
                    moved(model_class(config)).save_pretrained(folder)
                    model = model_class.from_pretrained(folder, dtype=dtype).to(torch_device)
                with torch.no_grad():
                    outputs = model(**inputs)
                self.assertEqual(outputs.last_hidden_state.dtype, dtype)
                self.assertEqual(outputs.pred_keypoints.dtype, torch.float32)
                for name in ("logits", "pred_keypoints", "pred_keypoint_std", "last_hidden_state"):
                    self.assertTrue(outputs[name].isfinite().all(), name)

    def test_gradient_checkpointing_gives_the_same_gradients(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = moved(DETRPoseForPoseEstimation(config)).to(torch_device).train()
        inputs["labels"] = self.model_tester.get_labels()
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}

        def gradients():
            model.load_state_dict(statistics, strict=False)
            model.zero_grad()
            set_seed(0)  # of the denoising queries
            model(**inputs).loss.backward()
            return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

        expected = gradients()
        for use_reentrant in (True, False):
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            for name, gradient in gradients().items():
                torch.testing.assert_close(
                    gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}", **self.gradient_tolerance
                )


class ECPoseModelTest(DETRPoseModelTest):
    # Its batch norms are not frozen, and with statistics of few pixels they amplify rounding.
    gradient_tolerance = {"rtol": 1e-3, "atol": 1e-4}
    # Slow, and about types that do not depend on the parts of the model.
    test_bc_torch_dtype = None

    def setUp(self):
        super().setUp()
        self.model_tester = ECPoseModelTester(self)
        if "imaginary_gpus" in self._testMethodName:
            # PyTorch's truncated normal distribution looks at values, which imaginary tensors lack.
            patcher = patch.object(ECViTPreTrainedModel, "_init_weights", lambda self, module: None)
            patcher.start()
            self.addCleanup(patcher.stop)
