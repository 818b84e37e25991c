"""Builds a TensorRT engine from an ONNX file, and lets it pass only if it finds the poses that PyTorch finds.

    optimum-cli export onnx --model detrpose-l --task keypoint-detection --variant tensorrt onnx
    python examples/build_tensorrt.py --onnx onnx/model.onnx --output detrpose-l.engine \\
        --verify-model detrpose-l --verify-images val2017

With a GPU, `tensorrt` builds an engine for that GPU. Without one, TensorRT for RTX builds ahead of time, for GPUs of
the given compute capabilities; such an engine cannot be verified here.

The network is strongly typed: every number has the type that the ONNX file gives it. So an engine in half precision
comes from a file in half precision (`optimum-cli ... --dtype fp16`), where the model itself keeps coordinates,
distributions and scores in float32. `--precision` only makes sure that the file is what you think it is.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForKeypointDetection

from .. import DETRPoseForPoseEstimationOutput, KeypointSchema
from ..images import load_rgb_image
from ..keypoint_schemas import PERSON_TO_BOX_AREA
from ..loss_detrpose import keypoint_similarity
from .command_line import IMAGE_SUFFIXES, CommandError, first_line

PRECISIONS = ("fp32", "fp16")
LIBRARIES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
# What a GPU-less machine builds for: 8.9 is Ada, such as L4, L40 and GeForce RTX 40.
DEFAULT_COMPUTE_CAPABILITY = 89
GPU = torch.device("cuda")


def load_tensorrt(library: str) -> Any:
    """Returns the Python module of TensorRT, or of TensorRT for RTX, which has the same interface."""
    for name in LIBRARIES[library]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError where its libraries are missing
            continue
    raise CommandError(f"{library} is not installed: no module {' or '.join(LIBRARIES[library])}")


def check_graph(file: Path, precision: str | None, allow_grid_sample: bool):
    """Makes sure that TensorRT will compute the poses of an ONNX file rightly.

    Args:
        file: the ONNX file.
        precision: "fp32" or "fp16", what the weights must be; anything if not given.
        allow_grid_sample: whether GridSample nodes are accepted.

    Raises:
        CommandError: if it is not an ONNX file or not what was wanted.
    """
    import onnx

    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as error:  # protobuf's own kinds
        raise CommandError(f"--onnx {file} is not an ONNX file") from error
    type_names = onnx.TensorProto.DataType.Name
    weights = {type_names(tensor.data_type) for tensor in graph.initializer if len(tensor.dims) == 4}
    found = "fp16" if "FLOAT16" in weights else "fp32"
    if precision not in (None, found):
        raise CommandError(f"--precision {precision}: the weights of {file} are {found}; export it as {precision}")
    outputs = {output.name: type_names(output.type.tensor_type.elem_type) for output in graph.output}
    halves = [name for name, kind in outputs.items() if kind == "FLOAT16"]
    if halves:
        raise CommandError(
            f"{file} computes {', '.join(halves)} in float16, too coarse for poses: export the model anew"
        )
    num_grid_samples = sum(node.op_type == "GridSample" for node in graph.node)
    if num_grid_samples and not allow_grid_sample:
        raise CommandError(
            f"{file} has {num_grid_samples} GridSample nodes, whose results are wrong since TensorRT 10.14 "
            "(NVIDIA/TensorRT#4813): export with --variant tensorrt, or give --allow-grid-sample"
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
        trt: `tensorrt`, or TensorRT for RTX.
        file: the ONNX file.
        batch_sizes: least, most common and greatest number of images, where the file leaves it open.
        size: height and width of the images in pixels, where the file leaves them open.
        compute_capabilities: such as 89 for 8.9, of the GPUs to build for, with TensorRT for RTX. Otherwise, and if
            there are none, the engine is for the GPU of this machine.

    Returns:
        The engine, as it is written to a file.

    Raises:
        CommandError: if TensorRT cannot build it.
    """
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # By path, because weights may be in a second file beside it.
    if not parser.parse_from_file(str(file)):
        problem = parser.get_error(0)
        raise CommandError(f"TensorRT cannot take {file}: {problem.node_name()}: {problem.desc()}")
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
        raise CommandError(f"TensorRT cannot build {file}: {logger.errors[0] if logger.errors else 'no reason given'}")
    return bytes(engine)


def collecting_logger(trt: Any) -> Any:
    """Returns a logger for TensorRT that keeps errors in its list `errors` and forgets the rest."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.partition("\n")[0])

    return Logger()


def set_compute_capabilities(trt: Any, config: Any, compute_capabilities: Iterable[int]):
    """Tells TensorRT for RTX which GPUs to build for."""
    names = [f"SM{number}" for number in compute_capabilities]
    known = [name for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM")]
    for name in names:
        if name not in known:
            numbers = ", ".join(name[2:] for name in known) or "the GPU of this machine alone"
            raise CommandError(f"--compute-capabilities {name[2:]}: {trt.__name__} builds for {numbers}")
    if names:
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def open_shape(shape: Iterable[int], batch_size: int, size: int) -> tuple[int, ...]:
    """Returns the shape of an input, (batch, ...) or (batch, 3, height, width), with numbers where it was left open."""
    fillings = (batch_size, 3, size, size)
    return tuple(fillings[axis] if length == -1 else length for axis, length in enumerate(shape))


class EngineRunner:
    """Runs an engine on tensors of the GPU.

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
            raise CommandError("the engine does not load on this machine's GPU")
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        is_input = {name: self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        kinds = trt.DataType
        types = {kinds.FLOAT: torch.float32, kinds.HALF: torch.float16, kinds.INT64: torch.int64}
        self.types = {name: types[self.engine.get_tensor_dtype(name)] for name in names}
        self.output_names = [name for name in names if not is_input[name]]
        if not {"logits", "pred_keypoints"} <= set(self.output_names) or sum(is_input.values()) != 1:
            raise CommandError(f"only engines that end with logits and pred_keypoints can be run, not {names}")

    def __call__(self, pixel_values: torch.Tensor) -> DETRPoseForPoseEstimationOutput:
        """Returns the outputs for images (batch, 3, height, width), on the engine's device."""
        inputs = pixel_values.to(self.device, self.types["pixel_values"]).contiguous()
        if not self.context.set_input_shape("pixel_values", tuple(inputs.shape)):
            raise CommandError(f"the engine does not take images of the shape {tuple(inputs.shape)}")
        outputs = {
            name: torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=self.types[name], device=self.device)
            for name in self.output_names
        }
        for name, tensor in {"pixel_values": inputs, **outputs}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise CommandError("the engine failed to run")
        stream.synchronize()  # before the inputs are freed
        return DETRPoseForPoseEstimationOutput(**outputs)


@torch.inference_mode()
def least_similarity(
    model: Any, processor: Any, run: Callable[[torch.Tensor], Any], images: Iterable[Path], threshold: float
) -> tuple[float, int]:
    """Compares the poses of two executions of a model.

    Args:
        model: the model in PyTorch.
        processor: its image processor.
        run: takes `pixel_values` and returns outputs as the model does.
        images: paths of pictures.
        threshold: poses count if either execution scores them higher than this.

    Returns:
        The keypoint similarity of the pose that differs most (1 where there is none), and how many were compared.
    """
    least, count = 1.0, 0
    for path in images:
        image = load_rgb_image(path)
        pixel_values = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
        poses, other_poses = (
            processor.post_process_keypoint_detection(outputs, 0.0, [(image.height, image.width)])[0]
            for outputs in (model(pixel_values), run(pixel_values))
        )
        schema = model.config.keypoint_schema
        # Both ways, so that neither a missing nor an additional pose goes unseen.
        for first, second in ((poses, other_poses), (other_poses, poses)):
            similarities = best_similarities(first, second, schema, threshold)
            least = min([least, *similarities.tolist()])
            count += len(similarities)
    return least, count


def best_similarities(
    poses: dict[str, torch.Tensor], candidates: dict[str, torch.Tensor], schema: KeypointSchema, threshold: float
) -> torch.Tensor:
    """Returns how similar the most similar candidate of the same label is to each pose above the threshold, (n,).

    Args:
        poses: as `post_process_keypoint_detection` returns them.
        candidates: likewise.
        schema: the keypoints.
        threshold: the least score of a pose.
    """
    # What is not finite is as different as can be; comparisons and maxima would lose it.
    keep = ~(poses["scores"] <= threshold)
    keypoints, labels, boxes = (poses[key][keep].float() for key in ("keypoints", "labels", "boxes"))
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    visibility = torch.ones(schema.num_keypoints, device=keypoints.device)
    similarity = keypoint_similarity(
        candidates["keypoints"],
        keypoints[:, None],
        visibility,
        PERSON_TO_BOX_AREA * sides.prod(-1)[:, None],
        torch.tensor(schema.sigmas, device=keypoints.device),
    )
    similarity = torch.where(candidates["labels"] == labels[:, None], similarity, 0)
    return similarity.nan_to_num(0).amax(1) if len(candidates["scores"]) else torch.zeros(len(keypoints))


def find_images(paths: list[Path]) -> list[Path]:
    """Returns the pictures among paths and in folders."""
    for path in paths:
        if not path.exists():
            raise CommandError(f"--verify-images {path}: no such file or folder")
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise CommandError(f"--verify-images {' '.join(map(str, paths))}: no pictures")
    return images


def verify(args: argparse.Namespace, make_runner: Callable[[torch.device], Callable], device: torch.device):
    """Raises `CommandError` unless an engine finds the poses that PyTorch finds.

    Args:
        args: the command line.
        make_runner: loads the engine onto a device and returns what `least_similarity` calls.
        device: a GPU.
    """
    images = find_images(args.verify_images)[: args.max_images]
    try:
        processor = AutoImageProcessor.from_pretrained(args.verify_model)
        model = AutoModelForKeypointDetection.from_pretrained(args.verify_model).fuse().to(device)
    except Exception as error:  # transformers, safetensors and the Hub all raise their own kinds
        raise CommandError(f"cannot load --verify-model {args.verify_model}: {first_line(error)}") from error
    progress = tqdm(images, desc="verifying", unit="image", leave=False)
    least, count = least_similarity(model, processor, make_runner(device), progress, args.threshold)
    if not count:
        raise CommandError(f"engine refused: no pose above --threshold {args.threshold} to verify it with")
    verdict = f"{count} comparisons of poses in {len(images)} pictures, least keypoint similarity {least:.5f}"
    if least < args.least_similarity:
        raise CommandError(f"engine refused: {verdict}, less than {args.least_similarity}")
    print(f"verified: {verdict}")


def build(args: argparse.Namespace):
    """Does what the command line asks."""
    if not args.onnx.is_file():
        raise CommandError(f"--onnx {args.onnx}: no such file")
    if args.output.is_dir() or not args.output.absolute().parent.is_dir():
        raise CommandError(f"--output {args.output} must be a file in an existing folder")
    has_gpu = torch.cuda.is_available()
    library = args.library or ("tensorrt" if has_gpu else "tensorrt-rtx")
    capabilities = args.compute_capabilities or ([] if has_gpu else [DEFAULT_COMPUTE_CAPABILITY])
    is_verified = bool(args.verify_model and args.verify_images)
    if args.verify_model and not has_gpu:
        raise CommandError("--verify-model needs a GPU to run the engine on")
    if has_gpu and not (is_verified or args.unverified):
        raise CommandError("give --verify-model and --verify-images, or --unverified for an engine that nobody checked")
    check_graph(args.onnx, args.precision, args.allow_grid_sample)
    trt = load_tensorrt(library)
    print(f"building with {trt.__name__} {trt.__version__}, which takes seconds to minutes")
    engine = build_engine(trt, args.onnx, (args.min_batch, args.opt_batch, args.max_batch), args.size, capabilities)
    if is_verified:
        verify(args, lambda device: EngineRunner(trt, engine, device), GPU)
    args.output.write_bytes(engine)
    targets = " and ".join(f"compute capability {number / 10}" for number in capabilities) or "this GPU"
    note = "" if is_verified else "; not verified"
    print(f"{args.output}: {len(engine) / 2**20:.1f} MiB for {targets}{note}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Builds a TensorRT engine from an ONNX file and verifies it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    # A required argument has no default to show in the help text.
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--onnx", type=Path, **required, metavar="FILE", help="the exported model")
    parser.add_argument("--output", type=Path, **required, metavar="FILE", help="where the engine goes")
    parser.add_argument("--precision", choices=PRECISIONS, help="what the ONNX file must be; as it is if not given")
    parser.add_argument("--min-batch", type=int, default=1, help="fewest images at once, of a file that leaves it open")
    parser.add_argument("--opt-batch", type=int, default=1, help="number of images at once to be fastest for")
    parser.add_argument("--max-batch", type=int, default=8, help="most images at once")
    parser.add_argument(
        "--size", type=int, default=640, help="height and width in pixels, of a file that leaves them open"
    )
    parser.add_argument("--allow-grid-sample", action="store_true", help="accept GridSample nodes in the file")
    parser.add_argument(
        "--library", choices=LIBRARIES, help="what builds; tensorrt with a GPU, tensorrt-rtx without, unless given"
    )
    parser.add_argument(
        "--compute-capabilities",
        type=int,
        nargs="+",
        metavar="NUMBER",
        help="times ten, of the GPUs that tensorrt-rtx builds for; this machine's, or 89 where it has none",
    )
    verification = parser.add_argument_group("verification, with a GPU")
    verification.add_argument("--verify-model", metavar="DIR", help="folder or Hub id of the model in PyTorch")
    verification.add_argument("--verify-images", type=Path, nargs="+", metavar="PATH", help="pictures and folders")
    verification.add_argument("--max-images", type=int, default=100, help="most pictures to compare")
    verification.add_argument("--threshold", type=float, default=0.5, help="least score of poses to compare, 0 to 1")
    verification.add_argument(
        "--least-similarity", type=float, default=0.999, help="keypoint similarity that every pose must have, 0 to 1"
    )
    verification.add_argument("--unverified", action="store_true", help="write the engine without verification")
    args = parser.parse_args(argv)
    if not 1 <= args.min_batch <= args.opt_batch <= args.max_batch:
        parser.error("--min-batch, --opt-batch and --max-batch must rise, from at least 1")
    if bool(args.verify_model) != bool(args.verify_images):
        parser.error("--verify-model and --verify-images belong together")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_arguments(argv)
    try:
        build(args)
        return 0
    except (CommandError, ValueError, OSError, ImportError) as error:
        message = first_line(error)
    except KeyboardInterrupt:
        return 130
    print(f"build_tensorrt.py: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
