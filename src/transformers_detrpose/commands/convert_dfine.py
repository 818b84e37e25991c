"""Starts a DETRPose model from a D-FINE detector: its backbone and encoder, with a fresh pose decoder.

    python conversion/convert_dfine.py --variant l --checkpoint dfine_l_obj365.pth --output detrpose-l-init

The checkpoint is an official `.pth` file, or a folder or Hub id saved by transformers. D-FINE trained on Objects365 is
what the published DETRPose models started from.
"""

import argparse

import torch

from .. import DETRPoseConfig, DETRPoseForPoseEstimation
from ..configuration_detrpose import VARIANTS
from ..conversion.checkpoints import check_output, check_variant, fill, logger, read_state_dict, run, save
from ..conversion.names import OFFICIAL_DFINE, TRANSFORMERS_DFINE, translate
from ..keypoint_schemas import SCHEMAS

PARTS = ("backbone.", "encoder.")


def convert(args: argparse.Namespace):
    """Reads, checks and writes, in that order."""
    check_output(args.output)
    detector = read_state_dict(args.checkpoint, args.weights)
    from_transformers = any(".embedder." in name for name in detector)
    translated = translate(detector, TRANSFORMERS_DFINE if from_transformers else OFFICIAL_DFINE)
    tensors = {name: tensor for name, tensor in translated.items() if name.startswith(PARTS)}
    check_variant(tensors, args.checkpoint, args.variant, parts=PARTS)

    torch.manual_seed(args.seed)
    model = DETRPoseForPoseEstimation(DETRPoseConfig.from_variant(args.variant, skeleton=args.dataset))
    counters = fill(model, tensors)
    logger.info(
        "%s: %d tensors of backbone and encoder used, %d of the detector's decoder and %d counters not needed",
        args.checkpoint,
        len(tensors) - len(counters),
        len(translated) - len(tensors),
        len(counters),
    )

    origin = f"Backbone and encoder come from D-FINE ({args.checkpoint}); the pose decoder is untrained."
    save(model, origin, args.output, args.push_to_hub)


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--variant", required=True, choices=list(VARIANTS), help="size of both models")
    parser.add_argument("--checkpoint", required=True, help=".pth or safetensors file, folder or Hub id of D-FINE")
    parser.add_argument("--output", required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--dataset", default="coco", choices=list(SCHEMAS), help="skeleton of the new model")
    parser.add_argument(
        "--weights",
        default="best",
        choices=["best", "averaged", "last"],
        help="which weights of a .pth file: averaged (ema), last, or averaged where there are any",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the fresh decoder's initial values")
    parser.add_argument("--push-to-hub", metavar="ID", help="Hub repository to upload the folder to")
    return run(convert, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
