"""The console command `detrpose` and its subcommands.

This module is outside the package `transformers_detrpose`, because importing anything from that package registers the
model with transformers and so imports torch, which takes several seconds: too long for `detrpose --help`.
"""

import importlib
import sys

# name → (module of `transformers_detrpose.commands`, what it does)
COMMANDS = {
    "predict": ("predict", "predict and draw poses in images, videos and camera streams"),
    "annotate": ("annotate", "predict poses in any number of images, on one machine or many, as Parquet"),
    "convert": ("convert", "convert official weights into a folder for `from_pretrained`"),
    "convert-dfine": ("convert_dfine", "initialize a model for training from a D-FINE detector"),
    "train": ("train", "train or fine-tune a model on a COCO keypoint dataset"),
    "evaluate": ("evaluate", "compute average precision and recall as defined by COCO or CrowdPose"),
    "calibrate": ("calibrate", "calibrate the scores of poses and keypoints on annotated images"),
    "export": ("export", "export a model to ONNX"),
    "quantize": ("quantize", "quantize an exported model to 8 bits"),
    "build-tensorrt": ("build_tensorrt", "build a TensorRT engine from an exported model"),
    "benchmark": ("benchmark", "measure latency and throughput"),
    "benchmark-training": ("benchmark_training", "measure the time and memory of a training step"),
    "sizes": ("sizes", "print parameters and GFLOPs of every variant"),
    "show-samples": ("show_samples", "draw training samples with their labels"),
    "convert-dataset": ("convert_dataset", "convert a dataset between COCO's format and YOLO's"),
    "sigmas": ("sigmas", "estimate the sigmas of keypoints from images annotated twice"),
    "generate-people": ("generate_people", "generate a COCO dataset of articulated figures with exact labels"),
}

# Optional packages → the extra that installs them.
EXTRAS = {
    **dict.fromkeys(
        ["accelerate", "datasets", "evaluate", "faster_coco_eval", "matplotlib", "pyarrow", "pycocotools"], "train"
    ),
    **dict.fromkeys(["onnx", "onnxruntime", "onnxslim"], "onnx"),
    "optimum": "optimum",
    **dict.fromkeys(["tensorrt", "tensorrt_rtx"], "tensorrt"),
    "cv2": "video",
    "ray": "ray",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand, which parses the rest of the command line.

    Args:
        argv: The command line without the program's name; `sys.argv[1:]` if not given.

    Returns:
        The exit code: 2 for an unknown subcommand, 1 if a package is not installed, else that of the subcommand.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name not in COMMANDS:
        print(f"detrpose: error: there is no command {name!r}, only {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"transformers_detrpose.commands.{COMMANDS[name][0]}").main(rest)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        install = f'pip install "transformers-detrpose[{EXTRAS[package]}]"'
        print(f"detrpose {name}: error: {package} is not installed: {install}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: detrpose COMMAND [OPTIONS]",
            "",
            "DETRPose: real-time, end-to-end multi-person pose estimation.",
            "",
            "commands:",
            *rows,
            "",
            "`detrpose COMMAND --help` describes the options of a command.",
        ]
    )
