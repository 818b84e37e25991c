"""`optimum-cli export onnx`, on transformers 4.57."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from small_models import NETWORK_OUTPUTS, SIZE, assert_same
from tiny import noisy, tiny_ecpose_config

for name in ("optimum.exporters.onnx", "onnxslim", "onnxruntime"):
    pytest.importorskip(name, reason=f'{name} is missing: pip install "transformers-detrpose[optimum]"')

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from optimum.commands.optimum_cli import main  # noqa: E402
from optimum.exporters.onnx import convert, main_export  # noqa: E402
from optimum.exporters.tasks import TasksManager  # noqa: E402

from transformers_detrpose import DETRPoseForPoseEstimation, DETRPoseImageProcessor  # noqa: E402
from transformers_detrpose.deployment import (  # noqa: E402
    DETRPoseOnnxConfig,
    ORTDETRPoseForPoseEstimation,
    known_to_optimum,
)


@pytest.fixture
def command(monkeypatch, model_dir, tmp_path):
    """Runs `optimum-cli export onnx` in this process."""

    def run(*options):
        arguments = ["export", "onnx", "--model", str(model_dir), "--task", "keypoint-detection", *options]
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *arguments, str(tmp_path / "out")])
        main()

    return run


def test_export(model_dir, tmp_path):
    script = shutil.which("optimum-cli", path=Path(sys.executable).parent)
    options = ["--model", model_dir, "--task", "keypoint-detection", tmp_path / "out"]
    process = subprocess.run([script, "export", "onnx", *options], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "model.onnx agrees with PyTorch; largest differences: logits " in process.stderr
    assert "Warning" not in process.stderr and "slow image processor" not in process.stderr
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "preprocessor_config.json", "model.onnx"} <= files
    outputs = ORTDETRPoseForPoseEstimation.from_pretrained(tmp_path / "out")(torch.rand(1, 3, *SIZE.values()))
    assert outputs.logits.shape == (1, 7, 2)


def test_ecpose(command, tmp_path):
    torch.manual_seed(0)
    model = noisy(DETRPoseForPoseEstimation(tiny_ecpose_config())).eval()
    size = {"height": 64, "width": 96}
    for part in (model, DETRPoseImageProcessor.for_model(model.config, size=size)):
        part.save_pretrained(tmp_path / "ecpose")
    command("--model", str(tmp_path / "ecpose"))
    assert DETRPoseImageProcessor.from_pretrained(tmp_path / "out").do_normalize
    loaded, images = ORTDETRPoseForPoseEstimation.from_pretrained(tmp_path / "out"), torch.rand(3, 3, *size.values())
    with torch.no_grad():
        found, expected = loaded(images), model(images)
    assert_same({name: found[name] for name in NETWORK_OUTPUTS}, expected)


def describe(folder):
    """Returns inputs and outputs of a graph, and how many nodes of each kind it has."""
    graph = onnx.load(folder / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    return list(graph.input), list(graph.output), {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize("variant", ["default", "any-size+tensorrt"])
def test_writes_what_export_onnx_writes(model_dir, export, images, tmp_path, variant):
    with known_to_optimum():
        main_export(str(model_dir), tmp_path, task="keypoint-detection", _variant=variant)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in export(variant).iterdir()}
    assert describe(tmp_path) == describe(export(variant))
    outputs, expected = (
        ORTDETRPoseForPoseEstimation.from_pretrained(folder)(images(3)) for folder in (tmp_path, export(variant))
    )
    assert_same(outputs, expected, atol=1e-5)


def test_with_poses_in_half_precision(model_dir, export, tmp_path):
    with known_to_optimum():
        main_export(str(model_dir), tmp_path, task="keypoint-detection", _variant="poses", dtype="fp16")
    assert describe(tmp_path) == describe(export("poses", torch.float16))


def content_of(value):
    """Copies nested dictionaries."""
    return (
        {key: content_of(item) for key, item in value.items()} if isinstance(value, (dict, MappingProxyType)) else value
    )


def content_of_optimum():
    """Returns what `known_to_optimum` changes, and its surroundings."""
    return content_of(vars(TasksManager)), dict(vars(convert))


def test_optimum_is_as_before_afterwards(command, tmp_path):
    before = content_of_optimum()
    command()
    assert (tmp_path / "out" / "model.onnx").exists()
    assert content_of_optimum() == before
    with pytest.raises(KeyError), known_to_optimum():
        assert content_of_optimum() != before
        raise KeyError
    assert content_of_optimum() == before


def test_help_imports_nothing_slow():
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
def test_impossible_exports(command, tmp_path, options, message):
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        command(*options)
    assert not list(tmp_path.iterdir())


def test_a_wrong_graph_is_an_error(command, monkeypatch, tmp_path):
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
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(SystemExit, match="^error: .*out exists already"):
        command()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_other_models_are_left_alone():
    register = importlib.import_module("optimum.commands.register.register_detrpose")
    arguments = type("Arguments", (), {"model": "no/such-model", "cache_dir": None})
    seen = []
    register.knowing_detrpose(lambda command: seen.append(command.args))(type("Command", (), {"args": arguments}))
    assert seen == [arguments]


def test_optimum_without_its_onnx_exporter(monkeypatch):
    register = importlib.import_module("optimum.commands.register.register_detrpose")
    monkeypatch.setitem(sys.modules, "optimum.commands.export.onnx", None)
    assert importlib.reload(register).ONNXExportCommand is None


def test_size(model):
    config = DETRPoseOnnxConfig(model.config, task="keypoint-detection")
    # 64 is Optimum's default.
    assert config.image_size(64, 64) == (640, 640)
    assert config.image_size(None, 320) == (640, 320)
