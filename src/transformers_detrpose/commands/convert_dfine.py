"""Initializes a DETRPose model from a D-FINE detector: its backbone and encoder, with an untrained pose decoder.

    detrpose convert-dfine --variant l --checkpoint dfine_l_obj365.pth --output detrpose-l-init

The checkpoint is an official `.pth` file, or a folder or Hub id saved by transformers. The published DETRPose models
were initialized from D-FINE trained on Objects365.
"""

import argparse

from ..conversion.dfine import convert_dfine
from ..conversion.saving import Origin, save_converted
from ..files import check_new_folder
from ..keypoint_schemas import SCHEMAS
from ..variants import DETRPOSE_VARIANTS
from .command_line import run_command, show_log


def convert(arguments: argparse.Namespace):
    """Converts the backbone and the encoder of the detector."""
    check_new_folder(arguments.output)
    model = convert_dfine(arguments.checkpoint, arguments.variant, arguments.dataset, arguments.weights, arguments.seed)
    origin = f"Backbone and encoder come from D-FINE ({arguments.checkpoint}); the pose decoder is untrained."
    save_converted(model, arguments.output, Origin(origin), arguments.push_to_hub)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose convert-dfine",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--variant", required=True, choices=DETRPOSE_VARIANTS, help="size of both models")
    parser.add_argument("--checkpoint", required=True, help=".pth or safetensors file, folder or Hub id of D-FINE")
    parser.add_argument("--output", required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--dataset", default="coco", choices=list(SCHEMAS), help="skeleton of the new model")
    parser.add_argument(
        "--weights",
        default="best",
        choices=["best", "averaged", "last"],
        help="weights of a .pth file to use: averaged (EMA), last, or best, which is averaged if present",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the untrained decoder")
    parser.add_argument("--push-to-hub", metavar="ID", help="Hub repository to upload the folder to")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = parse_arguments(argv)
    show_log()
    return run_command("detrpose convert-dfine", convert, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
