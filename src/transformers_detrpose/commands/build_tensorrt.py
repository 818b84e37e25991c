"""Builds a TensorRT engine from an ONNX file, and writes it only if it finds the same poses as PyTorch.

    detrpose export onnx --model detrpose-l --variant tensorrt onnx
    detrpose build-tensorrt --onnx onnx/model.onnx --output detrpose-l.engine \\
        --verify-model detrpose-l --verify-images val2017

With a GPU, `tensorrt` builds an engine for it. Without one, TensorRT for RTX builds ahead of time for GPUs of the given
compute capabilities; such an engine cannot be verified here.

The network is strongly typed: every tensor has its type in the ONNX file. For an engine in half precision, export a
file in half precision (`detrpose export onnx --dtype fp16`), in which coordinates, distributions and scores stay in
float32. `--precision` only checks the precision of the file.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from ..deployment.comparison import Run, least_similarity
from ..deployment.tensorrt import LIBRARIES, EngineRunner, build_engine, check_graph, load_tensorrt
from ..files import check_outputs, whole_file
from ..loading import load_image_processor, load_pose_estimator, model_files
from .command_line import CommandError, add_max_pixels, count, find_images, run_command

PRECISIONS = ("fp32", "fp16")
# The target on a machine without a GPU: 8.9 is Ada, such as L4, L40 and GeForce RTX 40.
DEFAULT_COMPUTE_CAPABILITY = 89
GPU = torch.device("cuda")


def verify(args: argparse.Namespace, run: Run):
    """Raises `CommandError` unless an engine finds the same poses as PyTorch."""
    images = find_images(args.verify_images, "--verify-images")[: args.max_images]
    processor, model = load_image_processor(args.verify_model), load_pose_estimator(args.verify_model, GPU)
    progress = tqdm(images, desc="verifying", unit="image", leave=False)
    least, num_poses = least_similarity(model, processor, run, progress, args.threshold)
    if not num_poses:
        raise CommandError(f"engine refused: no pose above --threshold {args.threshold} to verify it with")
    verdict = f"{num_poses} comparisons of poses in {len(images)} images, least keypoint similarity {least:.5f}"
    if least < args.least_similarity:
        raise CommandError(f"engine refused: {verdict}, less than {args.least_similarity}")
    print(f"verified: {verdict}")


def check_arguments(args: argparse.Namespace, has_gpu: bool):
    """Raises `CommandError` for errors that can be found without building an engine."""
    if not args.onnx.is_file():
        raise CommandError(f"--onnx {args.onnx}: no such file")
    if args.output.is_dir():
        raise CommandError(f"--output {args.output} is a folder")
    check_outputs([args.output], [args.onnx, *(args.verify_images or []), *model_files(args.verify_model or "")])
    if args.verify_model and not has_gpu:
        raise CommandError("--verify-model needs a GPU to run the engine on")
    if has_gpu and not (args.verify_model or args.unverified):
        raise CommandError("give --verify-model and --verify-images, or --unverified for an engine that is not checked")
    check_graph(args.onnx, args.precision, args.allow_grid_sample)


def build(args: argparse.Namespace):
    """Builds, verifies and writes the engine."""
    has_gpu = torch.cuda.is_available()
    check_arguments(args, has_gpu)
    trt = load_tensorrt(args.library or ("tensorrt" if has_gpu else "tensorrt-rtx"))
    capabilities = args.compute_capabilities or ([] if has_gpu else [DEFAULT_COMPUTE_CAPABILITY])
    print(f"building with {trt.__name__} {trt.__version__}, which takes seconds to minutes")
    engine = build_engine(trt, args.onnx, (args.min_batch, args.opt_batch, args.max_batch), args.size, capabilities)
    if args.verify_model:
        verify(args, EngineRunner(trt, engine, GPU))
    with whole_file(args.output) as file:
        file.write_bytes(engine)
    targets = " and ".join(f"compute capability {number / 10}" for number in capabilities) or "this GPU"
    note = "" if args.verify_model else "; not verified"
    print(f"{args.output}: {len(engine) / 2**20:.1f} MiB for {targets}{note}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose build-tensorrt",
        description="Builds a TensorRT engine from an ONNX file and verifies it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    # Hides the default of required arguments in the help text.
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--onnx", type=Path, **required, metavar="FILE", help="the exported model")
    parser.add_argument("--output", type=Path, **required, metavar="FILE", help="engine file to write")
    parser.add_argument("--precision", choices=PRECISIONS, help="required precision of the ONNX file; any if not given")
    parser.add_argument("--min-batch", type=count, default=1, help="minimum batch size, if it is dynamic in the file")
    parser.add_argument("--opt-batch", type=count, default=1, help="batch size to optimize for")
    parser.add_argument("--max-batch", type=count, default=8, help="maximum batch size")
    parser.add_argument(
        "--size", type=count, default=640, help="height and width in pixels, if they are dynamic in the file"
    )
    parser.add_argument("--allow-grid-sample", action="store_true", help="accept GridSample nodes in the file")
    parser.add_argument("--library", choices=LIBRARIES, help="by default tensorrt with a GPU, else tensorrt-rtx")
    parser.add_argument(
        "--compute-capabilities",
        type=int,
        nargs="+",
        metavar="NUMBER",
        help="times ten, of the GPUs that tensorrt-rtx builds for; this machine's, or 89 without a GPU",
    )
    verification = parser.add_argument_group("verification, with a GPU")
    verification.add_argument("--verify-model", metavar="DIR", help="folder or Hub id of the model in PyTorch")
    verification.add_argument("--verify-images", type=Path, nargs="+", metavar="PATH", help="image files and folders")
    add_max_pixels(parser)
    verification.add_argument("--max-images", type=count, default=100, help="maximum number of images to compare")
    verification.add_argument("--threshold", type=float, default=0.5, help="minimum score of poses to compare, 0 to 1")
    verification.add_argument(
        "--least-similarity", type=float, default=0.999, help="minimum keypoint similarity of every pose, 0 to 1"
    )
    verification.add_argument("--unverified", action="store_true", help="write the engine without verification")
    args = parser.parse_args(argv)
    if not 1 <= args.min_batch <= args.opt_batch <= args.max_batch:
        parser.error("--min-batch, --opt-batch and --max-batch must be in ascending order, from at least 1")
    if bool(args.verify_model) != bool(args.verify_images):
        parser.error("--verify-model and --verify-images must be given together")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose build-tensorrt", build, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
