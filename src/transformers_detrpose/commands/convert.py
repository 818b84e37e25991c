"""Converts an official DETRPose checkpoint into a folder that `from_pretrained` loads.

    python conversion/convert_detrpose.py --variant l --dataset coco --output detrpose-l

Without --checkpoint the published file is downloaded. Nothing is written unless every tensor of the file is used or
known not to be needed, and every tensor of the model is filled.
"""

import argparse
from pathlib import Path

import torch

from .. import DETRPoseConfig, DETRPoseForPoseEstimation
from ..configuration_detrpose import VARIANTS
from ..conversion.checkpoints import (
    ConversionError,
    check_output,
    check_variant,
    fill,
    logger,
    read_state_dict,
    run,
    save,
)
from ..conversion.names import COMPUTED, OFFICIAL, translate
from ..keypoint_schemas import SCHEMAS

RELEASE = "https://github.com/SebastianJanampa/DETRPose/releases/download/model_weights"


def download_published(variant: str, dataset: str) -> str:
    """Downloads the published file of a variant into PyTorch's cache, unless it is there, and returns its path."""
    name = f"detrpose_hgnetv2_{variant}{'' if dataset == 'coco' else '_' + dataset}.pth"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(f"{RELEASE}/{name}", str(path))
        except OSError as error:
            raise ConversionError(f"{RELEASE}/{name}: download failed ({error}); give --checkpoint FILE.") from error
    return str(path)


def convert(args: argparse.Namespace):
    """Reads, checks and writes, in that order."""
    check_output(args.output)
    source = args.checkpoint or download_published(args.variant, args.dataset)
    official = read_state_dict(source, args.weights)
    computed = [name for name in official if COMPUTED.match(name)]
    tensors = translate({name: tensor for name, tensor in official.items() if name not in computed}, OFFICIAL)
    check_variant(tensors, source, args.variant, args.dataset)

    model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant(args.variant, skeleton=args.dataset))
    not_needed = computed + fill(model, tensors)
    logger.info("%s: %d tensors, of which not needed: %s", source, len(official), ", ".join(not_needed) or "none")

    origin = f"Converted from the official DETRPose-{args.variant.upper()} weights for {args.dataset}."
    save(model, origin, args.output, args.push_to_hub)


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--variant", required=True, choices=list(VARIANTS), help="size of the model")
    parser.add_argument("--dataset", default="coco", choices=list(SCHEMAS), help="skeleton of the checkpoint")
    parser.add_argument("--output", required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--checkpoint", help=".pth or safetensors file, folder or Hub id; downloaded if not given")
    parser.add_argument(
        "--weights",
        default="best",
        choices=["best", "averaged", "last"],
        help="which weights of a .pth file: averaged (ema), last, or averaged where there are any",
    )
    parser.add_argument("--push-to-hub", metavar="ID", help="Hub repository to upload the folder to")
    return run(convert, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
