"""Converts an official DETRPose or ECPose checkpoint into a folder that `from_pretrained` loads.

    detrpose convert --variant l --dataset coco --output detrpose-l

Without --checkpoint, the published weights are downloaded. Nothing is written unless every tensor of the checkpoint is
used or known to be unnecessary, and every tensor of the model is filled. A checkpoint of ECViT alone, the backbone
of ECPose, becomes an otherwise untrained model, from which training starts.
"""

import argparse

from ..conversion.detrpose import convert_file, describe_origin
from ..conversion.published import download_model
from ..conversion.saving import save_converted
from ..files import check_new_folder
from ..keypoint_schemas import SCHEMAS
from ..variants import VARIANTS
from .command_line import CommandError, run_command, show_log


def convert(arguments: argparse.Namespace):
    """Converts the checkpoint, or the published weights."""
    check_new_folder(arguments.output)
    variant, dataset = arguments.variant, arguments.dataset
    if arguments.checkpoint is None:
        try:
            model, origin = download_model(variant, dataset), describe_origin(variant, dataset)
        except OSError as error:
            raise CommandError(f"{error}; give --checkpoint FILE") from error
    else:
        model, origin = convert_file(arguments.checkpoint, variant, dataset, arguments.weights, arguments.seed)
    save_converted(model, arguments.output, origin, arguments.push_to_hub)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose convert",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--variant", required=True, choices=list(VARIANTS), help="size of the model")
    parser.add_argument("--dataset", default="coco", choices=list(SCHEMAS), help="skeleton of the checkpoint")
    parser.add_argument("--output", required=True, help="folder to write; must not exist or be empty")
    parser.add_argument(
        "--checkpoint", help=".pth or safetensors file, folder or Hub id; the published weights if not given"
    )
    parser.add_argument(
        "--weights",
        default="best",
        choices=["best", "averaged", "last"],
        help="weights of a .pth file to use: averaged (EMA), last, or best, which is averaged if present",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of what an ECViT checkpoint does not contain")
    parser.add_argument("--push-to-hub", metavar="ID", help="Hub repository to upload the folder to")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = parse_arguments(argv)
    show_log()
    return run_command("detrpose convert", convert, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
