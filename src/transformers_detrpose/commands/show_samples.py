"""Draws augmented training samples, to check that images and labels match.

    detrpose show-samples --images train2017 --annotations person_keypoints_train2017.json --output samples
    detrpose show-samples --annotations birds/data.yaml --output samples

Each person has lines of one color. Keypoints on their left are red, on their right green, others white; those that are
labeled but not visible are hollow. Faces show best whether flipping is correct: if a person faces the viewer, their
left eye, the red one, is on the right, whether flipped or not.

Writes one image per sample, named by its index in the epoch and its image id, and all of them together as
`overview.jpg`. `--epoch` selects one of `--num-epochs` epochs, counted from 0: mosaics start after at most a tenth of
the epochs and end halfway, and the last epochs have no augmentation.
"""

import argparse
import logging
import warnings
from pathlib import Path

from tqdm import tqdm

# supervision's warning about a missing OpenCV concerns only videos.
warnings.filterwarnings("ignore", message="OpenCV .* is not installed")
logging.getLogger("supervision").setLevel(logging.ERROR)

from ..data import (  # noqa: E402
    Augmentation,
    CocoPoseDataset,
    check_dataset,
    paper_phases,
    read_annotations,
    read_schema,
    train_dataloader,
)
from ..files import check_new_folder  # noqa: E402
from ..sample_pictures import write_samples  # noqa: E402
from .command_line import (  # noqa: E402
    CommandError,
    add_max_pixels,
    add_schema,
    add_split,
    count,
    number,
    run_command,
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose show-samples",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required, whole = {"required": True, "default": argparse.SUPPRESS}, number(0, kind=int)
    parser.add_argument("--images", metavar="DIR", help="folder of images; not for a YOLO dataset")
    parser.add_argument(
        "--annotations", metavar="FILE", help="annotations in COCO's format, or data.yaml of YOLO", **required
    )
    add_split(parser, "train")
    add_schema(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to", **required)
    parser.add_argument("--num", type=count, default=16, help="number of samples")
    parser.add_argument("--epoch", type=whole, default=10, help="epoch to show, from 0")
    parser.add_argument("--num-epochs", type=count, default=52, help="total number of epochs")
    parser.add_argument("--size", type=count, default=640, help="height and width of the samples in pixels")
    parser.add_argument(
        "--base-repeats",
        type=whole,
        default=0,
        help="multi-scale training: weight of --size; 0 for no other sizes",
    )
    parser.add_argument("--batch-size", type=count, default=4, help="samples per size in multi-scale training")
    parser.add_argument("--mixup", type=number(0, 1), default=0.0, help="probability of MixUp")
    parser.add_argument("--copy-paste", type=number(0, 1), default=0.0, help="probability of CopyPaste instead")
    add_max_pixels(parser)
    parser.add_argument("--seed", type=whole, default=0, help="random seed")
    return parser.parse_args(argv)


def show(arguments: argparse.Namespace):
    """Draws and writes the samples."""
    if arguments.epoch >= arguments.num_epochs:
        raise CommandError(f"--epoch must be from 0 to {arguments.num_epochs - 1}, but got {arguments.epoch}")
    augmentation = Augmentation(mixup=arguments.mixup, copy_paste=arguments.copy_paste)
    check_new_folder(arguments.output)
    annotations = read_annotations(arguments.annotations, read_schema(arguments.schema), arguments.split)
    dataset = CocoPoseDataset(arguments.images, annotations)
    if not len(dataset):
        raise CommandError(f"--annotations {arguments.annotations} lists no images")
    check_dataset(dataset)
    loader = train_dataloader(
        dataset,
        batch_size=min(arguments.batch_size, len(dataset)),
        size=arguments.size,
        phases=paper_phases(arguments.num_epochs, augmentation=augmentation),
        base_repeats=arguments.base_repeats,
        seed=arguments.seed,
    )
    loader.dataset.set_epoch(arguments.epoch)
    num_samples = write_samples(tqdm(loader, unit="batch"), dataset.schema, arguments.output, arguments.num)
    print(f"{num_samples} samples written to {arguments.output}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose show-samples", show, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
