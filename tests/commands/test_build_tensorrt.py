"""The command that builds TensorRT engines: real engines ahead of time, and verification with stand-ins for a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from saved_model import SIZE, save_tiny_model
from transformers_detrpose import (
    DETRPoseConfig,
    DETRPoseForPoseEstimation,
    DETRPoseForPoseEstimationOutput,
    DETRPoseImageProcessor,
)

onnx = pytest.importorskip("onnx", reason="needs onnx")

from transformers_detrpose.commands import build_tensorrt  # noqa: E402
from transformers_detrpose.deployment import tensorrt  # noqa: E402
from transformers_detrpose.deployment.benchmarking.backends import Setting, write_model  # noqa: E402
from transformers_detrpose.deployment.comparison import least_similarity  # noqa: E402


def has_tensorrt_rtx() -> bool:
    try:
        tensorrt.load_tensorrt("tensorrt-rtx")
        return True
    except ValueError:
        return False


needs_tensorrt_rtx = pytest.mark.skipif(not has_tensorrt_rtx(), reason="needs TensorRT for RTX")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(model_dir):
    return DETRPoseForPoseEstimation.from_pretrained(model_dir).eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Returns a function that exports the tiny model, once in each way."""
    files = {}

    def export(precision="float32", target="tensorrt"):
        key = precision, target
        if key not in files:
            setting = Setting(precision, batch_size=2, size=SIZE, device=torch.device("cpu"))
            files[key] = write_model(model, setting, tmp_path_factory.mktemp("onnx"), target)
        return files[key]

    return export


@pytest.fixture
def command(tmp_path):
    """Runs the command on a file, and returns its exit code and the path of the engine."""

    def run(file, *options):
        output = tmp_path / "model.engine"
        return build_tensorrt.main(["--onnx", str(file), "--output", str(output), *map(str, options)]), output

    return run


def save_graph(path, nodes=None, shape=("batch", 3, "height", "width"), output_type=1, initializers=()):
    """Writes an ONNX file of one input; by default it doubles it."""
    nodes = nodes or [onnx.helper.make_node("Add", ["pixel_values", "pixel_values"], ["logits"])]
    inputs = [onnx.helper.make_tensor_value_info("pixel_values", 1, shape)]
    outputs = [onnx.helper.make_tensor_value_info("logits", output_type, None)]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    return path


# ---------------------------------------------------------------- building


@needs_tensorrt_rtx
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_engine_ahead_of_time(exported, command, capsys, monkeypatch, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    short = {"float32": "fp32", "float16": "fp16"}[precision]
    code, output = command(exported(precision), "--precision", short)
    assert code == 0 and output.stat().st_size > 10_000
    assert "for compute capability 8.9; not verified" in capsys.readouterr().out


@needs_tensorrt_rtx
def test_engine_of_the_smallest_published_size(tmp_path):
    """The model must not contain anything that TensorRT does not support."""
    model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant("n")).eval()
    setting = Setting("float32", batch_size=1, size=320, device=torch.device("cpu"))
    file = write_model(model, setting, tmp_path, "tensorrt")
    trt = tensorrt.load_tensorrt("tensorrt-rtx")
    assert len(tensorrt.build_engine(trt, file, compute_capabilities=[89])) > 10_000_000


@needs_tensorrt_rtx
def test_open_shapes_and_several_gpus(tmp_path, command, capsys):
    options = ["--min-batch", 1, "--opt-batch", 2, "--max-batch", 4, "--size", 64, "--compute-capabilities", 86, 120]
    code, output = command(save_graph(tmp_path / "a.onnx"), *options, "--unverified")
    assert code == 0 and output.exists()
    assert "for compute capability 8.6 and compute capability 12.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((-1, 3, 64, 96), (5, 3, 64, 96)),
        ((-1, 3, -1, -1), (5, 3, 640, 640)),
        ((-1, 2), (5, 2)),  # target_sizes
        ((2, 3, 64, 96), (2, 3, 64, 96)),
    ],
)
def test_open_shape(shape, expected):
    assert tensorrt.open_shape(shape, batch_size=5, size=640) == expected


# ---------------------------------------------------------------- refusing


def test_grid_sample_is_refused(exported, command, capsys):
    code, output = command(exported(target="onnxruntime"))
    assert code == 1 and not output.exists()
    assert "GridSample nodes, whose results are wrong since TensorRT 10.14" in capsys.readouterr().err


@needs_tensorrt_rtx
def test_grid_sample_when_allowed(exported, command):
    assert command(exported(target="onnxruntime"), "--allow-grid-sample", "--unverified")[0] == 0


@pytest.mark.parametrize(("precision", "wanted"), [("float32", "fp16"), ("float16", "fp32")])
def test_another_precision_is_refused(exported, command, capsys, precision, wanted):
    assert command(exported(precision), "--precision", wanted)[0] == 1
    assert f", not {wanted}: export it as {wanted}" in capsys.readouterr().err


def test_coarse_outputs_are_refused(tmp_path, command, capsys):
    nodes = [onnx.helper.make_node("Cast", ["pixel_values"], ["logits"], to=10)]
    assert command(save_graph(tmp_path / "a.onnx", nodes, output_type=10), "--unverified")[0] == 1
    assert "computes logits in float16" in capsys.readouterr().err


@needs_tensorrt_rtx
def test_graph_that_tensorrt_cannot_take(tmp_path, command, capsys):
    nodes = [onnx.helper.make_node("StringNormalizer", ["pixel_values"], ["logits"], name="strange")]
    assert command(save_graph(tmp_path / "a.onnx", nodes), "--unverified")[0] == 1
    error = capsys.readouterr().err
    assert "TensorRT cannot take" in error and "strange" in error and error.count("\n") == 1


@needs_tensorrt_rtx
def test_unknown_gpu(tmp_path, command, capsys):
    assert command(save_graph(tmp_path / "a.onnx"), "--compute-capabilities", 12, "--unverified")[0] == 1
    assert "compute capability 12: " in capsys.readouterr().err


def test_broken_files(tmp_path, command, capsys):
    (tmp_path / "broken.onnx").write_text("not a graph")
    for file, message in (("missing.onnx", "no such file"), ("broken.onnx", "is not an ONNX file")):
        assert command(tmp_path / file, "--unverified")[0] == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_library_that_is_missing(tmp_path, command, capsys, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(tensorrt.importlib, "import_module", missing)
    assert command(save_graph(tmp_path / "a.onnx"), "--library", "tensorrt", "--unverified")[0] == 1
    assert "tensorrt is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-batch", "9"], "ascending order"),
        (["--verify-model", "m"], "must be given together"),
        (["--precision", "x"], "x"),
    ],
)
def test_wrong_arguments(command, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        command("a.onnx", *options)
    assert caught.value.code == 2 and message in capsys.readouterr().err


# ---------------------------------------------------------------- verification


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


def altered(model, **changes):
    """Runs the model and changes some of its outputs."""

    def run(pixel_values):
        outputs = {key: value for key, value in model(pixel_values).items() if torch.is_tensor(value)}
        return DETRPoseForPoseEstimationOutput(
            **{key: changes[key](value) if key in changes else value for key, value in outputs.items()}
        )

    return run


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({}, True),
        ({"pred_keypoints": lambda x: x + 1e-6}, True),
        ({"pred_keypoints": lambda x: x + 0.02}, False),
        ({"pred_keypoints": lambda x: x * torch.tensor([[[1.0]], [[1.0]], [[1.3]]])}, False),  # one of three poses
        ({"pred_keypoints": lambda x: x * float("nan")}, False),
        ({"logits": lambda x: x.flip(-1)}, False),  # other labels
        ({"logits": lambda x: x * float("nan")}, False),
    ],
)
def test_similarity_of_poses(model, model_dir, pictures, changes, is_same):
    processor = DETRPoseImageProcessor.from_pretrained(model_dir)
    least, count = least_similarity(model, processor, altered(model, **changes), pictures, 0.0)
    assert count >= 6
    assert (least >= 0.999) is is_same


def test_missing_and_additional_poses_are_seen(model, model_dir, pictures):
    """The other runtime has high scores for poses with low scores in the model, and vice versa."""
    processor = DETRPoseImageProcessor.from_pretrained(model_dir)
    sure = altered(model, logits=lambda x: x + 20, pred_keypoints=lambda x: x.flip(-1))
    unsure = altered(model, logits=lambda x: x - 20)
    for first, second in ((unsure, sure), (sure, unsure)):
        first.device, first.config = model.device, model.config
        least, count = least_similarity(first, processor, second, pictures, 0.5)
        assert count == 6 and least < 0.9


@pytest.fixture
def with_gpu(monkeypatch, model):
    """Simulates a GPU whose engine computes PyTorch's outputs, off by `shift`."""
    shift = SimpleNamespace(value=0.0)
    fused = model.fuse()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(build_tensorrt, "GPU", torch.device("cpu"))
    monkeypatch.setattr(
        build_tensorrt, "load_tensorrt", lambda library: SimpleNamespace(__name__=library, __version__="")
    )
    monkeypatch.setattr(build_tensorrt, "build_engine", lambda *args: b"engine")
    monkeypatch.setattr(
        build_tensorrt, "EngineRunner", lambda *args: altered(fused, pred_keypoints=lambda x: x + shift.value)
    )
    return shift


@pytest.fixture
def options(model_dir, pictures):
    return ["--verify-model", model_dir, "--verify-images", pictures[0].parent, "--threshold", 0]


def test_engine_that_agrees_is_written(with_gpu, exported, command, options, capsys):
    code, output = command(exported(), *options)
    assert code == 0 and output.read_bytes() == b"engine"
    assert "least keypoint similarity 1.00000" in capsys.readouterr().out


def test_engine_that_disagrees_is_not_written(with_gpu, exported, command, options, capsys):
    with_gpu.value = 0.02
    code, output = command(exported(), *options)
    assert code == 1 and not output.exists()
    assert "engine refused: " in capsys.readouterr().err


def test_engine_cannot_be_verified_without_poses(with_gpu, exported, command, options, capsys):
    code, output = command(exported(), *options[:-1], 1)
    assert code == 1 and not output.exists()
    assert "engine refused: no pose above --threshold 1.0" in capsys.readouterr().err


def test_with_a_gpu_verification_is_the_rule(with_gpu, exported, command, capsys):
    assert command(exported())[0] == 1
    assert "give --verify-model and --verify-images, or --unverified" in capsys.readouterr().err
    code, output = command(exported(), "--unverified")
    assert code == 0 and output.exists() and "not verified" in capsys.readouterr().out


def test_what_verification_needs(with_gpu, exported, command, tmp_path, pictures, capsys):
    for model, images, message in (
        ("missing", pictures[0], "there is no model missing"),
        ("m", "missing.png", "no such file"),
    ):
        assert command(exported(), "--verify-model", model, "--verify-images", images)[0] == 1
        assert message in capsys.readouterr().err


# ---------------------------------------------------------------- running an engine


class FakeTensorRT:
    """The part of TensorRT's interface that running an engine needs; the engine has fixed outputs."""

    float_type, half_type = "float", "half"
    DataType = SimpleNamespace(FLOAT=float_type, HALF=half_type, INT64="int64")
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    num_io_tensors = 3
    shapes = {"pixel_values": None, "logits": (2, 3, 2), "pred_keypoints": (2, 3, 17, 2)}

    def __init__(self):
        self.addresses = {}

    class Logger:
        ERROR = 0

        def __init__(self, severity):
            pass

    def Runtime(self, logger):
        return self

    def deserialize_cuda_engine(self, engine):
        return self if engine == b"engine" else None

    def create_execution_context(self):
        return self

    def get_tensor_name(self, index):
        return list(self.shapes)[index]

    def get_tensor_mode(self, name):
        return "in" if name == "pixel_values" else "out"

    def get_tensor_dtype(self, name):
        return self.half_type if name == "pixel_values" else self.float_type

    def set_input_shape(self, name, shape):
        return name == "pixel_values" and shape[0] == 2

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        return stream == 7


@pytest.fixture
def runner(monkeypatch):
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return tensorrt.EngineRunner(FakeTensorRT(), b"engine", torch.device("cpu"))


def test_engine_writes_into_its_outputs(runner):
    outputs = runner(torch.zeros(2, 3, 64, 64))
    assert outputs.logits.shape == (2, 3, 2) and outputs.pred_keypoints.dtype == torch.float32
    assert runner.context.addresses["logits"] == outputs.logits.data_ptr()
    assert runner.context.addresses["pred_keypoints"] == outputs.pred_keypoints.data_ptr()


def test_engine_of_another_batch(runner):
    with pytest.raises(ValueError, match="does not take images of the shape"):
        runner(torch.zeros(3, 3, 64, 64))


def test_engine_that_does_not_load():
    with pytest.raises(ValueError, match="does not load"):
        tensorrt.EngineRunner(FakeTensorRT(), b"other", torch.device("cpu"))


def test_engine_with_other_outputs(monkeypatch):
    monkeypatch.setattr(FakeTensorRT, "shapes", {"pixel_values": None, "scores": (2, 3), "labels": (2, 3)})
    with pytest.raises(ValueError, match="logits and pred_keypoints"):
        tensorrt.EngineRunner(FakeTensorRT(), b"engine", torch.device("cpu"))
