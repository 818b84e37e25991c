"""TensorRT engines: checking the ONNX file, building and running."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..modeling_detrpose import DETRPoseForPoseEstimationOutput

LIBRARIES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}


def load_tensorrt(library: str) -> Any:
    """Returns the Python module of TensorRT, or of TensorRT for RTX, which has the same interface.

    Args:
        library: "tensorrt" or "tensorrt-rtx".

    Raises:
        ValueError: if it is not installed.
    """
    for name in LIBRARIES[library]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError if its shared libraries are missing
            continue
    raise ValueError(f"{library} is not installed: no module {' or '.join(LIBRARIES[library])}")


def check_graph(file: Path, precision: str | None = None, allow_grid_sample: bool = False):
    """Checks that TensorRT computes the poses of an ONNX file correctly.

    Args:
        file: the ONNX file.
        precision: "fp32" or "fp16", the required precision of the weights; any if not given.
        allow_grid_sample: whether GridSample nodes are accepted.

    Raises:
        ValueError: if it is not an ONNX file or does not meet the requirements.
    """
    import onnx

    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as error:  # protobuf raises various types
        raise ValueError(f"{file} is not an ONNX file") from error
    type_names = onnx.TensorProto.DataType.Name
    weights = {type_names(tensor.data_type) for tensor in graph.initializer if len(tensor.dims) == 4}
    found = "fp16" if "FLOAT16" in weights else "fp32"
    if precision not in (None, found):
        raise ValueError(f"the weights of {file} are {found}, not {precision}: export it as {precision}")
    outputs = {output.name: type_names(output.type.tensor_type.elem_type) for output in graph.output}
    halves = [name for name, kind in outputs.items() if kind == "FLOAT16"]
    if halves:
        raise ValueError(f"{file} computes {', '.join(halves)} in float16, too coarse for poses: export the model anew")
    num_grid_samples = sum(node.op_type == "GridSample" for node in graph.node)
    if num_grid_samples and not allow_grid_sample:
        raise ValueError(
            f"{file} has {num_grid_samples} GridSample nodes, whose results are wrong since TensorRT 10.14 "
            "(NVIDIA/TensorRT#4813): export with --variant tensorrt, or allow GridSample"
        )


def build_engine(
    trt: Any,
    file: Path,
    batch_sizes: tuple[int, int, int] = (1, 1, 1),
    size: int = 640,
    compute_capabilities: Iterable[int] = (),
) -> bytes:
    """Builds an engine from an ONNX file.

    Args:
        trt: the module of TensorRT or TensorRT for RTX.
        file: the ONNX file.
        batch_sizes: minimum, optimal and maximum batch size, if it is dynamic in the file.
        size: height and width of the images in pixels, if they are dynamic in the file.
        compute_capabilities: of the GPUs to build for with TensorRT for RTX, such as 89 for 8.9; if empty, the engine
            is built for this machine's GPU.

    Returns:
        The serialized engine.

    Raises:
        ValueError: if TensorRT cannot build it.
    """
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # By path, because weights may be in a second file next to it.
    if not parser.parse_from_file(str(file)):
        problem = parser.get_error(0)
        raise ValueError(f"TensorRT cannot take {file}: {problem.node_name()}: {problem.desc()}")
    config = builder.create_builder_config()
    set_compute_capabilities(trt, config, compute_capabilities)
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in inputs:
        shapes = [open_shape(tensor.shape, batch_size, size) for batch_size in batch_sizes]
        profile.set_shape(tensor.name, *shapes)
    if any(-1 in tuple(tensor.shape) for tensor in inputs):
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(f"TensorRT cannot build {file}: {logger.errors[0] if logger.errors else 'no reason given'}")
    return bytes(engine)


def collecting_logger(trt: Any) -> Any:
    """Returns a TensorRT logger that collects errors in its list `errors` and ignores other messages."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.partition("\n")[0])

    return Logger()


def set_compute_capabilities(trt: Any, config: Any, compute_capabilities: Iterable[int]):
    """Sets the GPUs that TensorRT for RTX builds for."""
    names = [f"SM{number}" for number in compute_capabilities]
    known = [name for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM")]
    for name in names:
        if name not in known:
            numbers = ", ".join(name[2:] for name in known) or "the GPU of this machine alone"
            raise ValueError(f"compute capability {name[2:]}: {trt.__name__} builds for {numbers}")
    if names:
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def open_shape(shape: Iterable[int], batch_size: int, size: int) -> tuple[int, ...]:
    """Fills in the dynamic dimensions of an input's shape, (batch, ...) or (batch, 3, height, width)."""
    fillings = (batch_size, 3, size, size)
    return tuple(fillings[axis] if length == -1 else length for axis, length in enumerate(shape))


class EngineRunner:
    """Runs an engine on GPU tensors.

    Args:
        trt: the module that built the engine.
        engine: the engine.
        device: a GPU.
    """

    def __init__(self, trt: Any, engine: bytes, device: torch.device):
        self.device = device
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(engine)
        if self.engine is None:
            raise ValueError("the engine does not load on this machine's GPU")
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        is_input = {name: self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        kinds = trt.DataType
        types = {kinds.FLOAT: torch.float32, kinds.HALF: torch.float16, kinds.INT64: torch.int64}
        self.types = {name: types[self.engine.get_tensor_dtype(name)] for name in names}
        self.output_names = [name for name in names if not is_input[name]]
        if not {"logits", "pred_keypoints"} <= set(self.output_names) or sum(is_input.values()) != 1:
            raise ValueError(f"only engines that end with logits and pred_keypoints can be run, not {names}")

    def __call__(self, pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
        """Returns the outputs for images (batch, 3, height, width), on the engine's device."""
        inputs = pixel_values.to(self.device, self.types["pixel_values"]).contiguous()
        if not self.context.set_input_shape("pixel_values", tuple(inputs.shape)):
            raise ValueError(f"the engine does not take images of the shape {tuple(inputs.shape)}")
        outputs = {
            name: torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=self.types[name], device=self.device)
            for name in self.output_names
        }
        for name, tensor in {"pixel_values": inputs, **outputs}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise ValueError("the engine failed to run")
        stream.synchronize()  # before the inputs are freed
        return DETRPoseForPoseEstimationOutput(**outputs)
