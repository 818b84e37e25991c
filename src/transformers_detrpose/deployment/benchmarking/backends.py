"""The backends of `detrpose benchmark`: each returns a function from images to outputs."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...modeling_detrpose import DETRPoseForPoseEstimation, DETRPoseForPoseEstimationOutput
from ..comparison import Run
from ..graph import MODEL_FILE, DETRPoseGraph, output_shapes
from ..tensorrt import EngineRunner, build_engine, load_tensorrt


class Unavailable(Exception):
    """The backend cannot be measured here; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """The setting that a backend is prepared for.

    Args:
        precision: "float32", "float16" or "bfloat16".
        batch_size: images per batch.
        size: height and width of the images in pixels.
        device: device that the model runs on.
    """

    precision: str
    batch_size: int
    size: int
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model."""
        return getattr(torch, self.precision)


def pytorch(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """The model as it was trained."""
    return copy.deepcopy(model).eval().to(setting.device, setting.dtype)


def fused(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """`model.fuse()`."""
    # On its device, because that determines how some modules are written.
    return copy.deepcopy(model).to(setting.device).fuse().to(setting.dtype)


def compiled(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """`torch.compile` on the fused model."""
    # Otherwise a second batch size would be compiled for any size, and after eight settings nothing more.
    torch.compiler.reset()
    return torch.compile(fused(model, setting), fullgraph=True)


def cuda_graph(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """The fused model recorded once as a CUDA graph and replayed."""
    if setting.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    eager = fused(model, setting)
    shape = (setting.batch_size, 3, setting.size, setting.size)
    pixel_values = torch.rand(shape, device=setting.device, dtype=setting.dtype)
    # The first runs, in which libraries select algorithms and allocate memory, must not be recorded.
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
    """ONNX Runtime with its CPU or CUDA provider."""
    provider = "CUDAExecutionProvider" if setting.device.type == "cuda" else "CPUExecutionProvider"
    return run_in_onnx_runtime(model, setting, provider, "onnxruntime")


def onnx_runtime_tensorrt(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """ONNX Runtime with its TensorRT provider."""
    if setting.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    return run_in_onnx_runtime(model, setting, "TensorrtExecutionProvider", "tensorrt")


def run_in_onnx_runtime(model: DETRPoseForPoseEstimation, setting: Setting, provider: str, target: str) -> Run:
    """Exports a model and loads it in ONNX Runtime, with as many threads as PyTorch."""
    try:
        import onnxruntime

        from ..onnx_runtime import ORTDETRPoseForPoseEstimation
    except ImportError as error:
        raise Unavailable("onnxruntime is not installed") from error
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise Unavailable(f"this onnxruntime has no {provider}, only {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    provider_options = {"device_id": setting.device.index or 0} if setting.device.type == "cuda" else {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, setting, Path(folder), target)
        model.config.save_pretrained(folder)
        return ORTDETRPoseForPoseEstimation.from_pretrained(folder, provider, provider_options, options)


def tensorrt(model: DETRPoseForPoseEstimation, setting: Setting) -> Run:
    """A TensorRT engine."""
    if setting.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    trt = load_tensorrt("tensorrt")
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(trt, write_model(model, setting, Path(folder), "tensorrt"))
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
    # By default it computes in bfloat16 if the CPU can, which is too coarse for poses.
    hint = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[setting.precision]
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    config["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    in_float32 = Setting("float32", setting.batch_size, setting.size, setting.device)
    with tempfile.TemporaryDirectory() as folder:
        file = write_model(model, in_float32, Path(folder), "onnxruntime")
        try:
            network = core.compile_model(core.read_model(file), "CPU", config)
        except RuntimeError as error:  # a list of source lines, with the reason at the end
            raise Unavailable(f"OpenVINO cannot take the graph: {str(error).strip().splitlines()[-1]}") from error
    names = output_shapes(model.config)

    def run(pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
        results = network(pixel_values.float().numpy()).to_tuple()
        outputs = zip(names, map(torch.from_numpy, results), strict=True)
        return DETRPoseForPoseEstimationOutput(**dict(outputs))

    return run


def write_model(model: DETRPoseForPoseEstimation, setting: Setting, folder: Path, target: str) -> Path:
    """Writes a model as a simplified ONNX file with fixed batch and image size, on the CPU.

    Args:
        model: the model.
        setting: batch, size and precision.
        folder: the folder to write to.
        target: runtime of the file, "onnxruntime" or "tensorrt".

    Returns:
        The path of the file.

    Raises:
        Unavailable: if the model cannot be exported here.
    """
    if setting.precision == "bfloat16":
        raise Unavailable("ONNX files are made in float32 and float16 only")
    try:
        from ..onnx_export import Variant, write_graph
        from ..simplify import simplify
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    file, size_hw = folder / MODEL_FILE, (setting.size, setting.size)
    graph = DETRPoseGraph(model, target=target).to(setting.dtype)
    write_graph(graph, file, Variant(target).sample_inputs(setting.batch_size, size_hw, setting.dtype))
    simplify(file, size_hw, model.config.feature_strides[-1])
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
