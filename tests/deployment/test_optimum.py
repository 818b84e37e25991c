"""`optimum-cli export onnx`, its checks, and the exported model in ONNX Runtime."""

import importlib
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE, make_model
from PIL import Image
from transformers import pipeline

for name in ("optimum.exporters.onnx", "onnxslim", "onnxruntime"):
    pytest.importorskip(name, reason=f'{name} is missing: pip install "transformers-detrpose[onnx]"')

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from optimum.commands.optimum_cli import main  # noqa: E402
from optimum.exporters.onnx import main_export  # noqa: E402

from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseForPoseEstimationOutput  # noqa: E402
from transformers_detrpose.deployment import (  # noqa: E402
    DETRPoseOnnxConfig,
    ExportError,
    ORTDETRPoseForPoseEstimation,
    register_with_optimum,
    validate_onnx,
)
from transformers_detrpose.deployment.graph import POSE_OUTPUTS  # noqa: E402

NETWORK_OUTPUTS = ("logits", "pred_keypoints", "pred_keypoint_std")


@pytest.fixture(scope="module")
def export(model_dir, tmp_path_factory):
    """Exports a variant and returns its folder, which tests must not change."""

    @cache
    def run(variant, dtype="fp32"):
        register_with_optimum()
        folder = tmp_path_factory.mktemp(variant)
        main_export(str(model_dir), folder, task="keypoint-detection", _variant=variant, dtype=dtype)
        return folder

    return run


@pytest.fixture
def command(monkeypatch, model_dir, tmp_path):
    """Runs `optimum-cli export onnx` in this process."""

    def run(*options):
        arguments = ["export", "onnx", "--model", str(model_dir), "--task", "keypoint-detection", *options]
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *arguments, str(tmp_path / "out")])
        main()

    return run


def run_graph(folder, **inputs):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: value.numpy() for name, value in inputs.items()}), strict=True))


def assert_same(found, expected, names=NETWORK_OUTPUTS, atol=1e-4):
    assert tuple(found) == names
    for name in names:
        torch.testing.assert_close(torch.as_tensor(found[name]), expected[name], atol=atol, rtol=0)


def axes(values):
    return {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in values}


class TestCommand:
    def test_export(self, model_dir, tmp_path):
        script = shutil.which("optimum-cli", path=Path(sys.executable).parent)
        options = ["--model", model_dir, "--task", "keypoint-detection", tmp_path / "out"]
        process = subprocess.run([script, "export", "onnx", *options], capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert "model.onnx computes what PyTorch computes, to: logits " in process.stderr
        assert "Warning" not in process.stderr
        files = {path.name for path in (tmp_path / "out").iterdir()}
        assert {"config.json", "preprocessor_config.json", "model.onnx"} <= files
        outputs = ORTDETRPoseForPoseEstimation.from_pretrained(tmp_path / "out")(torch.rand(1, 3, *SIZE.values()))
        assert outputs.logits.shape == (1, 7, 2)

    def test_help_imports_nothing_slow(self):
        program = (
            "import sys; from optimum.commands.optimum_cli import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print('optimum.commands.register.register_detrpose' in sys.modules)\n"
            "print({'torch', 'transformers', 'onnx', 'transformers_detrpose'} & set(sys.modules))"
        )
        options = [sys.executable, "-c", program, "export", "onnx", "--help"]
        process = subprocess.run(options, capture_output=True, text=True, check=True)
        assert process.stdout.endswith("True\nset()\n")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--variant", "fast"), "--variant must be one of default, tensorrt, any-size, poses, or several .*'fast'"),
            (("--height", "100"), "height and width must be multiples of 32, but got 100 x 96"),
            (("--dtype", "bf16"), "--dtype must be fp32 or fp16, but got bf16"),
        ],
    )
    def test_impossible_exports(self, command, options, message):
        with pytest.raises(SystemExit, match=f"^error: {message}"):
            command(*options)

    def test_a_wrong_graph_is_an_error(self, command, monkeypatch):
        def simplify_wrongly(file, *sizes):
            graph = onnx.load(file)
            weights = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
            array = onnx.numpy_helper.to_array(weights)
            weights.CopyFrom(onnx.numpy_helper.from_array(1.1 * array, weights.name))
            onnx.save(graph, file)

        monkeypatch.setattr("transformers_detrpose.deployment.optimum_onnx.simplify", simplify_wrongly)
        # A message as exit status makes Python print it and exit with 1.
        with pytest.raises(SystemExit, match="^error: .*model.onnx differs from PyTorch by more than 0.0001"):
            command()

    def test_other_models_are_left_alone(self, monkeypatch):
        register = importlib.import_module("optimum.commands.register.register_detrpose")
        arguments = type("Arguments", (), {"model": "no/such-model", "cache_dir": None})
        seen = []
        register.knowing_detrpose(lambda command: seen.append(command.args))(type("Command", (), {"args": arguments}))
        assert seen == [arguments]

    def test_optimum_without_its_onnx_exporter(self, monkeypatch):
        register = importlib.import_module("optimum.commands.register.register_detrpose")
        monkeypatch.setitem(sys.modules, "optimum.commands.export.onnx", None)
        assert importlib.reload(register).ONNXExportCommand is None


class TestGraphs:
    @pytest.mark.parametrize("batch_size", [1, 2, 3])
    @torch.no_grad()
    def test_dynamic_batch(self, export, model, images, batch_size):
        pixel_values = images(batch_size)
        assert_same(run_graph(export("default"), pixel_values=pixel_values), model(pixel_values))

    @pytest.mark.parametrize("size_hw", [(64, 96), (128, 64), (96, 160)])
    @torch.no_grad()
    def test_dynamic_size(self, export, model, images, size_hw):
        pixel_values = images(2, *size_hw)
        assert_same(run_graph(export("any-size"), pixel_values=pixel_values), model(pixel_values))

    @torch.no_grad()
    def test_all_features_together(self, export, model, processor, images):
        pixel_values, target_sizes = images(3, 96, 64), torch.tensor([[480, 640], [33, 7], [96, 64]])
        poses = run_graph(export("poses+any-size+tensorrt"), pixel_values=pixel_values, target_sizes=target_sizes)
        expected = processor.post_process_keypoint_detection(model(pixel_values), 0.0, target_sizes)
        expected = {name: torch.stack([image[name] for image in expected]) for name in POSE_OUTPUTS}
        assert_same(poses, expected, POSE_OUTPUTS, atol=1e-2)

    def test_axes(self, export):
        graph = onnx.load(export("default") / "model.onnx").graph
        assert axes(graph.input) == {"pixel_values": ["batch_size", 3, 64, 96]}
        assert axes(graph.output) == {
            "logits": ["batch_size", 7, 2],
            "pred_keypoints": ["batch_size", 7, 3, 2],
            "pred_keypoint_std": ["batch_size", 7, 3, 2],
        }
        graph = onnx.load(export("poses+any-size+tensorrt") / "model.onnx").graph
        assert axes(graph.input)["pixel_values"] == ["batch_size", 3, "height", "width"]
        assert axes(graph.input)["target_sizes"] == ["batch_size", 2]

    def test_nodes(self, export):
        graph = onnx.load(export("default") / "model.onnx").graph
        reshapes = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}
        assert not reshapes.keys() & set(reshapes.values())
        nodes = [node.op_type for node in graph.node]
        assert "GridSample" in nodes
        # The norms have been fused, and the graph has been simplified: one shape, that of the batch, is left.
        assert not set(nodes) & {"Constant", "Identity", "BatchNormalization"}
        assert nodes.count("Shape") <= 1
        nodes = {node.op_type for node in onnx.load(export("poses+any-size+tensorrt") / "model.onnx").graph.node}
        assert "GridSample" not in nodes

    @torch.no_grad()
    def test_float16(self, export, model, images):
        # Half precision rounds each operation to 5e-4 of its result, and may number queries otherwise.
        graph = onnx.load(export("default", "fp16") / "model.onnx").graph
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        differences = validate_onnx(export("default", "fp16") / "model.onnx", model, atol=2e-2)
        assert max(differences.values()) > 1e-5
        outputs = ORTDETRPoseForPoseEstimation.from_pretrained(export("default", "fp16"))(images(2))
        for expected in (model(images(2)), make_model().half()(images(2))):
            found = torch.as_tensor(outputs.logits).float().sigmoid().flatten(1).sort().values
            torch.testing.assert_close(
                found, expected.logits.float().sigmoid().flatten(1).sort().values, atol=1e-2, rtol=0
            )


class TestValidation:
    def test_ties_are_no_differences(self, tmp_path, export):
        """All locations score the same, so PyTorch and ONNX Runtime may number them as they like."""
        model = make_model()
        torch.nn.init.zeros_(model.model.query_selection.class_head.weight)
        model.save_pretrained(tmp_path / "model")
        main_export(str(tmp_path / "model"), tmp_path, task="keypoint-detection", height=96, width=96)

    def test_differences(self, export, model):
        differences = validate_onnx(export("default") / "model.onnx", model)
        assert tuple(differences) == (*NETWORK_OUTPUTS, "ranking")
        assert 0 < max(differences.values()) < 1e-5

    def test_other_weights(self, export, model):
        other = make_model()
        torch.nn.init.normal_(other.model.decoder.keypoint_heads[-1].layers[-1].bias)
        with pytest.raises(ExportError, match="differs from PyTorch by more than 0.0001, .*: logits"):
            validate_onnx(export("default") / "model.onnx", other)

    def test_wrong_ranking(self, export, model, tmp_path):
        graph = onnx.load(export("default") / "model.onnx")
        ranking = next(node for node in graph.graph.node if node.op_type == "TopK")
        attributes = [attribute for attribute in ranking.attribute if attribute.name != "largest"]
        del ranking.attribute[:]
        ranking.attribute.extend([*attributes, onnx.helper.make_attribute("largest", 0)])
        onnx.save(graph, tmp_path / "model.onnx")
        with pytest.raises(ExportError, match="ranking [1-9]"):
            validate_onnx(tmp_path / "model.onnx", model)

    def test_not_a_number(self, export, model, tmp_path):
        graph = onnx.load(export("default") / "model.onnx")
        weights = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        array = np.full_like(onnx.numpy_helper.to_array(weights), np.nan)
        weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
        onnx.save(graph, tmp_path / "model.onnx")
        with pytest.raises(ExportError, match="logits nan"):
            validate_onnx(tmp_path / "model.onnx", model)

    def test_a_graph_for_one_batch_size(self, export, model, tmp_path):
        graph = onnx.load(export("default") / "model.onnx")
        reshape = next(node for node in graph.graph.node if node.op_type == "Reshape")
        shape = next(tensor for tensor in graph.graph.initializer if tensor.name == reshape.input[1])
        array = onnx.numpy_helper.to_array(shape)
        shape.CopyFrom(onnx.numpy_helper.from_array(np.where(array == -1, 2, array), shape.name))
        onnx.save(graph, tmp_path / "model.onnx")
        with pytest.raises(ExportError, match="does not run on images of the shape \\(3, 3, "):
            validate_onnx(tmp_path / "model.onnx", model)

    def test_other_outputs(self, export, model):
        with pytest.raises(ExportError, match="must have the outputs scores, .*, but has logits, "):
            validate_onnx(export("default") / "model.onnx", model, post_process=True)

    def test_size(self, model):
        config = DETRPoseOnnxConfig(model.config, task="keypoint-detection")
        # 64 is what Optimum says when nothing was said.
        assert config.image_size(64, 64) == (640, 640)
        assert config.image_size(None, 320) == (640, 320)


class TestOnnxRuntime:
    @torch.no_grad()
    def test_outputs(self, export, model, images):
        onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default"), provider="CPUExecutionProvider")
        outputs = onnx_model(images(2))
        assert isinstance(outputs, DETRPoseForPoseEstimationOutput)
        assert_same(outputs, model(images(2)))
        arrays = onnx_model(pixel_values=images(2).numpy())
        assert isinstance(arrays.logits, np.ndarray)

    def test_poses(self, export, images):
        onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("poses+any-size+tensorrt"))
        poses = onnx_model(images(2), target_sizes=torch.tensor([[10, 20], [30, 40]]))
        assert poses.keypoints.shape == (2, 7, 3, 2)
        assert poses.labels.dtype == torch.int64
        with pytest.raises(ValueError, match="model.onnx needs `target_sizes`"):
            onnx_model(images(2))

    def test_superfluous_target_sizes(self, export, images):
        onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default"))
        with pytest.raises(ValueError, match="model.onnx takes no `target_sizes`"):
            onnx_model(images(1), target_sizes=torch.tensor([[10, 20]]))

    @pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
    def test_provider_is_what_was_asked_for(self, export, provider):
        if provider in onnxruntime.get_available_providers():
            assert (
                ORTDETRPoseForPoseEstimation.from_pretrained(export("default"), provider=provider).provider == provider
            )
        else:
            with pytest.raises(ValueError, match=provider):
                ORTDETRPoseForPoseEstimation.from_pretrained(export("default"), provider=provider)

    def test_export_on_the_fly(self, model_dir, images):
        onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(model_dir)
        with torch.no_grad():
            expected = DETRPoseForPoseEstimation.from_pretrained(model_dir).eval()(images(3))
        assert_same(onnx_model(images(3)), expected)

    def test_pipeline(self, export, model, processor):
        pictures = [
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, 50, 3), dtype=np.uint8))
            for height in (40, 60, 80)
        ]
        onnx_model = ORTDETRPoseForPoseEstimation.from_pretrained(export("default"))
        found = pipeline("keypoint-detection", model=onnx_model, image_processor=processor)(
            pictures, threshold=0.0, batch_size=2
        )
        expected = pipeline("keypoint-detection", model=model, image_processor=processor)(pictures, threshold=0.0)
        assert len(found) == 3 and len(found[0]) == 7
        for poses, expected_poses in zip(found, expected, strict=True):
            for pose, expected_pose in zip(poses, expected_poses, strict=True):
                assert pose["score"] == pytest.approx(expected_pose["score"], abs=1e-5)
                assert pose["label"] == expected_pose["label"]
                for keypoint, other in zip(pose["keypoints"], expected_pose["keypoints"], strict=True):
                    assert keypoint["name"] == other["name"]
                    assert [keypoint[key] for key in ("x", "y", "score")] == pytest.approx(
                        [other[key] for key in ("x", "y", "score")], abs=1e-2
                    )
