"""The ways to run a model that `benchmark.py` compares: each makes a function from pictures to outputs."""

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ... import DETRPoseForPoseEstimation, DETRPoseForPoseEstimationOutput
from ...commands.build_tensorrt import EngineRunner, build_engine, load_tensorrt
from ..graph import DETRPoseGraph, output_shapes

OPSET = 18
TORCH_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
NUMPY_TYPES = {torch.float32: "float32", torch.float16: "float16"}

# From `pixel_values` (batch, 3, height, width) to something with `logits`, `pred_keypoints`, ...
Run = Callable[[torch.Tensor], DETRPoseForPoseEstimationOutput]


class Unavailable(Exception):
    """A backend that cannot be measured here; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """What a backend shall be made for.

    Args:
        precision: "float32", "float16" or "bfloat16".
        batch_size: images at once.
        size: their height and width in pixels.
        device: what the model runs on.
    """

    precision: str
    batch_size: int
    size: int
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's numbers."""
        return getattr(torch, self.precision)


def pytorch(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """The model as it was trained."""
    return copy.deepcopy(model).eval().to(setting.device, setting.dtype)


def fused(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """`model.fuse()`."""
    return model.fuse().to(setting.device, setting.dtype)


def compiled(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """`torch.compile` on the fused model."""
    return torch.compile(fused(model, setting), fullgraph=True)


def cuda_graph(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """The fused model recorded once as a CUDA graph and replayed."""
    if setting.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    eager = fused(model, setting)
    pixel_values = torch.rand(setting.batch_size, 3, setting.size, setting.size, device=setting.device)
    # Libraries choose their algorithms and get their memory in the first runs, which must not be recorded.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            eager(pixel_values)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = eager(pixel_values)

    def replay(new_pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
        pixel_values.copy_(new_pixel_values)
        graph.replay()
        return outputs

    return replay


def onnx_runtime(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """ONNX Runtime with its provider for the device."""
    return OnnxRuntime(model, setting, "CUDAExecutionProvider" if setting.device.type == "cuda" else None)


def onnx_runtime_tensorrt(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """ONNX Runtime with its TensorRT provider."""
    if setting.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    return OnnxRuntime(model, setting, "TensorrtExecutionProvider", without_grid_sample=True)


class OnnxRuntime:
    """Runs a model in ONNX Runtime, which reads and writes PyTorch's memory without copies.

    Args:
        model: the model.
        setting: what for.
        provider: what executes the graph besides the CPU.
        without_grid_sample: see `export_onnx`.
    """

    def __init__(self, model, setting: Setting, provider: str | None, without_grid_sample: bool = False):
        try:
            import onnxruntime
        except ImportError as error:
            raise Unavailable("onnxruntime is not installed") from error
        available = onnxruntime.get_available_providers()
        if provider not in (None, *available):
            raise Unavailable(f"this onnxruntime has no {provider}, only {', '.join(available)}")
        self.device = setting.device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        providers = ["CPUExecutionProvider"] if provider is None else [provider, "CPUExecutionProvider"]
        with tempfile.TemporaryDirectory() as folder:
            file = export_onnx(model, setting, Path(folder), without_grid_sample)
            self.session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        if provider not in (None, self.session.get_providers()[0]):
            raise Unavailable(f"onnxruntime could not load its {provider}")

    def __call__(self, pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
        (description,) = self.session.get_inputs()
        pixel_values = pixel_values.to(TORCH_TYPES[description.type]).contiguous()
        outputs = {
            output.name: torch.empty(output.shape, dtype=TORCH_TYPES[output.type], device=self.device)
            for output in self.session.get_outputs()
        }
        binding = self.session.io_binding()
        binding.bind_input("pixel_values", *self.describe(pixel_values))
        for name, tensor in outputs.items():
            binding.bind_output(name, *self.describe(tensor))
        if self.device.type == "cuda":  # ONNX Runtime has a stream of its own
            torch.cuda.current_stream(self.device).synchronize()
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return DETRPoseForPoseEstimationOutput(**outputs)

    def describe(self, tensor: torch.Tensor) -> tuple:
        """Returns device, index, type, shape and address of a tensor."""
        import numpy as np

        kind = np.dtype(NUMPY_TYPES[tensor.dtype]).type
        return self.device.type, self.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()


def tensorrt(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """An engine of `build_tensorrt.py`."""
    if setting.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    trt = load_tensorrt("tensorrt")
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(trt, export_onnx(model, setting, Path(folder), without_grid_sample=True))
    return EngineRunner(trt, engine, setting.device)


def openvino(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """OpenVINO on the CPU."""
    if setting.device.type != "cpu":
        raise Unavailable("is measured on the CPU: give --device cpu")
    try:
        import openvino as ov
    except ImportError as error:
        raise Unavailable("openvino is not installed") from error
    core = ov.Core()
    # Left alone it computes in bfloat16 where the processor can, which is too coarse for poses.
    hint = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[setting.precision]
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    config["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    in_float32 = Setting("float32", setting.batch_size, setting.size, setting.device)
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(model, in_float32, Path(folder))
        try:
            network = core.compile_model(core.read_model(file), "CPU", config)
        except RuntimeError as error:  # a list of source lines, and what is wrong at its end
            raise Unavailable(f"OpenVINO cannot take the graph: {str(error).strip().splitlines()[-1]}") from error
    names = output_shapes(model.config)

    def run(pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
        results = network(pixel_values.float().numpy()).to_tuple()
        outputs = zip(names, map(torch.from_numpy, results), strict=True)
        return DETRPoseForPoseEstimationOutput(**dict(outputs))

    return run


def export_onnx(
    model: DETRPoseForPoseEstimation, setting: Setting, folder: Path, without_grid_sample: bool = False
) -> Path:
    """Writes the fused model as a simplified ONNX file of fixed batch and size.

    Args:
        model: the model.
        setting: batch, size and precision.
        folder: where to.
        without_grid_sample: whether the file shall do without GridSample nodes, which TensorRT gets wrong.

    Raises:
        Unavailable: if it cannot be exported here.
    """
    if setting.precision == "bfloat16":
        raise Unavailable("ONNX files are made in float32 and float16 only")
    graph = DETRPoseGraph(model, target="tensorrt" if without_grid_sample else "onnxruntime").to(setting.dtype)
    pixel_values = torch.rand(setting.batch_size, 3, setting.size, setting.size, dtype=setting.dtype)
    names = {"input_names": ["pixel_values"], "output_names": list(graph.output_names)}
    file, stride = folder / "model.onnx", model.config.feature_strides[-1]
    try:
        from ..simplify import simplify

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, for every Python number
            torch.onnx.export(graph, (pixel_values,), file, opset_version=OPSET, dynamo=False, **names)
        simplify(file, (setting.size, setting.size), stride)
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    return file


BACKENDS: dict[str, Callable[[DETRPoseForPoseEstimation, Setting], Run]] = {
    "pytorch": pytorch,
    "fused": fused,
    "compile": compiled,
    "cudagraph": cuda_graph,
    "onnxruntime": onnx_runtime,
    "onnxruntime-tensorrt": onnx_runtime_tensorrt,
    "tensorrt": tensorrt,
    "openvino": openvino,
}
