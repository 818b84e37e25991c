"""The command line of `detrpose train`."""

import argparse
from pathlib import Path

from ..evaluation import METRICS
from ..training import FINE_TUNING, RECIPES
from .command_line import add_max_pixels, add_num_workers, add_schema, add_set, count, number

RESUME_HELP = """go on from the state in --output, with the same options; learning rates may change. On a CPU the result
    is exactly that of a training that never stopped; on a GPU, which sums some gradients in any order, nearly"""
ACCUMULATION_HELP = """smaller batches that a process divides its share of --batch-size into: the same gradients
    with less memory, in a third more time"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose train",
        description="Trains DETRPose on a dataset in COCO's or YOLO's keypoint format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    whole = number(0, kind=int)
    required = {"required": True, "default": argparse.SUPPRESS}
    folder = {"type": Path, "metavar": "DIR", **required}
    data = parser.add_argument_group("data, of which --train-data stands for the other four")
    parser.add_argument("--model", **required, help="folder or Hub id to go on from, or n, s, m, l, x to start fresh")
    data.add_argument("--train-data", type=Path, metavar="FILE", help="data.yaml of a YOLO dataset: its train and val")
    data.add_argument("--train-images", type=Path, metavar="DIR", help="folder of the training images")
    data.add_argument(
        "--train-annotations", type=Path, metavar="FILE", help="their COCO-format JSON file, or data.yaml"
    )
    data.add_argument("--val-images", type=Path, metavar="DIR", help="folder of the validation images")
    data.add_argument("--val-annotations", type=Path, metavar="FILE", help="their COCO-format JSON file, or data.yaml")
    add_schema(data)
    parser.add_argument("--output", **folder, help="folder for checkpoints and metrics")
    parser.add_argument("--resume", action="store_true", help=RESUME_HELP)
    parser.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help="train as the published model of this size and dataset was trained; leaves out images without people",
    )
    parser.add_argument("--metric", choices=list(METRICS), default="coco", help="whose definition of the scores")

    default = FINE_TUNING
    recipe = parser.add_argument_group("set by --recipe unless given")
    recipe.add_argument("--epochs", type=count, help=f"passes over the images; {default.epochs} without a recipe")
    recipe.add_argument(
        "--batch-size", type=count, help=f"images per step, of all processes; {default.batch_size} without a recipe"
    )
    recipe.add_argument("--lr", type=number(0), help=f"learning rate; {default.lr} without a recipe")
    recipe.add_argument("--backbone-lr", type=number(0), help=f"the backbone's; {default.backbone_lr} without a recipe")
    recipe.add_argument("--lr-drop-epoch", type=count, help="first epoch at a tenth of the learning rates")
    recipe.add_argument(
        "--multi-scale-repeats",
        type=whole,
        help="how often --size is among the sizes of batches; 0 for no other size",
    )
    recipe.add_argument("--weight-decay", type=number(0), help=f"of AdamW; {default.weight_decay} without a recipe")
    share = number(0, 1)
    recipe.add_argument("--mixup", type=share, help="probability of blending an image with another, in both at once")
    recipe.add_argument("--copy-paste", type=share, help="probability of blending people of other images in instead")
    recipe.add_argument(
        "--warmup-steps",
        type=whole,
        help=f"steps of linear warm-up; without a recipe a tenth of all, at most {default.max_warmup_steps}",
    )

    parser.add_argument("--size", type=count, default=640, help="height and width of the images in pixels")
    parser.add_argument("--max-grad-norm", type=number(0), default=0.1, help="gradients are clipped to it; 0: never")
    parser.add_argument("--ema-decay", type=number(0, 1), default=0.9999, help="decay of the averaged weights per step")
    parser.add_argument(
        "--no-share-keypoints",
        action="store_true",
        help="keep keypoints of the same name apart in categories with different keypoints; else they are one",
    )
    parser.add_argument("--no-augment", action="store_true", help="only resize the training images")
    parser.add_argument(
        "--unfreeze-backbone-norms", action="store_true", help="train the backbone's norms, as random weights need"
    )
    add_set(parser)
    parser.add_argument("--seed", type=whole, default=0, help="of weights, order, augmentation and noise")
    add_num_workers(parser, "processes that load images, for each that trains")
    parser.add_argument("--eval-batch-size", type=count, default=16, help="images per process in evaluation")
    parser.add_argument("--eval-epochs", type=count, default=1, help="epochs between evaluations, and saved states")
    parser.add_argument("--gradient-accumulation-steps", type=count, default=1, help=ACCUMULATION_HELP)
    parser.add_argument(
        "--mixed-precision",
        choices=["no", "fp16", "bf16"],
        help="of training; as `accelerate launch` says if not given",
    )
    parser.add_argument("--save-steps", type=whole, default=0, help="steps between saved states; 0: with evaluations")
    parser.add_argument("--report-to", help="tracker that accelerate knows, such as tensorboard or wandb")
    add_max_pixels(parser)
    parser.add_argument("--decode-images", action="store_true", help="decode all images once to find broken ones first")
    args = parser.parse_args(argv)
    args.set = dict(args.set)
    _check_data(parser, args)
    return args


def _check_data(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Checks that the data are given in one way, and puts `--train-data` in the place of the other options."""
    options = ("train_images", "train_annotations", "val_images", "val_annotations")
    given = ["--" + name.replace("_", "-") for name in options if getattr(args, name)]
    if args.train_data and given:
        parser.error(f"--train-data says where all images are, so it cannot be given with {', '.join(given)}")
    if args.train_data:
        args.train_annotations = args.val_annotations = args.train_data
    missing = [f"--{part}-annotations" for part in ("train", "val") if not getattr(args, f"{part}_annotations")]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}, or --train-data")
