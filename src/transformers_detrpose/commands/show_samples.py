"""Draws samples as a model gets them in training, so that you can see whether images and labels agree.

    detrpose show-samples --images train2017 --annotations person_keypoints_train2017.json --output samples

Every person has lines of one color. Points on their left side are red, on their right side green, and others white;
those that are labeled but hidden are hollow. Faces show best whether mirroring is right: where a person looks at you,
their left eye, the red one, is on your right, mirrored or not.

Written are one picture per sample, named after its place in the epoch and its image id, and all of them together as
`overview.jpg`. `--epoch 0` shows the first epoch of a training of `--num-epochs`, and so on: mosaics begin after a
tenth of the epochs at the latest and end half-way, and the last epochs are without augmentation.
"""

import argparse
import logging
import warnings
from pathlib import Path

from tqdm import tqdm

# What supervision says about a missing OpenCV concerns videos only.
warnings.filterwarnings("ignore", message="OpenCV .* is not installed")
logging.getLogger("supervision").setLevel(logging.ERROR)

from ..data import CocoPoseDataset, check_dataset, paper_phases, train_dataloader  # noqa: E402
from ..files import check_new_folder  # noqa: E402
from ..sample_pictures import write_samples  # noqa: E402
from .command_line import CommandError, count, number, run_command  # noqa: E402


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose show-samples",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required, whole = {"required": True, "default": argparse.SUPPRESS}, number(0, kind=int)
    parser.add_argument("--images", metavar="DIR", help="folder of images", **required)
    parser.add_argument("--annotations", metavar="FILE", help="annotations in COCO's format", **required)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to", **required)
    parser.add_argument("--num", type=count, default=16, help="samples to draw")
    parser.add_argument("--epoch", type=whole, default=10, help="epoch to show, from 0")
    parser.add_argument("--num-epochs", type=count, default=52, help="epochs of the whole training")
    parser.add_argument("--size", type=count, default=640, help="height and width of the samples in pixels")
    parser.add_argument(
        "--base-repeats",
        type=whole,
        default=0,
        help="multi-scale: weight of --size, 0 for no other sizes",
    )
    parser.add_argument("--batch-size", type=count, default=4, help="samples of one size, if there are several sizes")
    parser.add_argument("--seed", type=whole, default=0, help="of all random numbers")
    return parser.parse_args(argv)


def show(arguments: argparse.Namespace):
    """Draws and writes the samples that the command line asks for."""
    if arguments.epoch >= arguments.num_epochs:
        raise CommandError(f"--epoch must be from 0 to {arguments.num_epochs - 1}, but got {arguments.epoch}")
    check_new_folder(arguments.output)
    dataset = CocoPoseDataset(arguments.images, arguments.annotations)
    if not len(dataset):
        raise CommandError(f"--annotations {arguments.annotations} lists no images")
    check_dataset(dataset)
    loader = train_dataloader(
        dataset,
        batch_size=min(arguments.batch_size, len(dataset)),
        size=arguments.size,
        phases=paper_phases(arguments.num_epochs),
        base_repeats=arguments.base_repeats,
        seed=arguments.seed,
    )
    loader.dataset.set_epoch(arguments.epoch)
    num_samples = write_samples(tqdm(loader, unit="batch"), dataset.schema, arguments.output, arguments.num)
    print(f"{num_samples} samples written to {arguments.output}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command("detrpose show-samples", show, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
