"""Draws samples as a model gets them in training, so that you can see whether images and labels agree.

    detrpose show-samples --images train2017 --annotations person_keypoints_train2017.json --output samples

Every person has lines of one colour. Points on their left side are red, on their right side green, and others white;
those that are labelled but hidden are hollow. Faces show best whether mirroring is right: where a person looks at you,
their left eye, the red one, is on your right, mirrored or not.

Written are one picture per sample, named after its place in the epoch and its image id, and all of them together as
`overview.jpg`. `--epoch 0` shows the first epoch of a training of `--num-epochs`, and so on: mosaics begin after a
tenth of the epochs at the latest and end half-way, and the last epochs are without augmentation.
"""

import argparse
import logging
import math
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2 import functional as tvF
from tqdm import tqdm

# What supervision says about a missing OpenCV concerns videos only.
warnings.filterwarnings("ignore", message="OpenCV .* is not installed")
logging.getLogger("supervision").setLevel(logging.ERROR)

from .. import KeypointSchema  # noqa: E402
from ..data import CocoPoseDataset, check_dataset, paper_phases, train_dataloader  # noqa: E402
from ..visualization import draw_poses  # noqa: E402

LEFT, RIGHT, MIDDLE = "#FF3030", "#30E040", "#FFFFFF"
THUMBNAIL = 320  # pixels


def draw_sample(pixel_values: torch.Tensor, labels: dict[str, torch.Tensor], schema: KeypointSchema) -> Image.Image:
    """Draws the labels of one image.

    Args:
        pixel_values: (3, height, width), from 0 to 1.
        labels: labels of the image, as the model takes them.
        schema: the keypoints.
    """
    image = tvF.to_pil_image(pixel_values)
    keypoints, visibility = labels["keypoints"].split([2, 1], dim=-1)
    keypoints = keypoints * torch.tensor([image.width, image.height])
    centers, sizes = (labels["boxes"] * torch.tensor(2 * [image.width, image.height])).split(2, dim=-1)
    result = {
        "scores": torch.ones(len(keypoints)),
        "labels": labels["class_labels"],
        "keypoints": keypoints,
        "keypoint_scores": (visibility[..., 0] > 0).float(),
        "boxes": torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1),
    }
    image = draw_poses(image, result, schema, keypoint_threshold=0.5)
    draw = ImageDraw.Draw(image)
    for box in result["boxes"].tolist():
        draw.rectangle(box, outline=MIDDLE)
    for person, seen in zip(keypoints.tolist(), visibility[..., 0].tolist(), strict=True):
        draw_sides(draw, person, seen, schema)
    return image


def draw_sides(draw: ImageDraw.ImageDraw, keypoints: list, visibility: list, schema: KeypointSchema):
    """Draws the keypoints x, y of one person in the colours of their sides, hollow where hidden."""
    sides = {index: color for pair in schema.flip_pairs for index, color in zip(pair, (LEFT, RIGHT), strict=True)}
    for index, ((x, y), seen) in enumerate(zip(keypoints, visibility, strict=True)):
        color = sides.get(index, MIDDLE)
        if seen:
            draw.circle((x, y), 3, fill=color if seen == 2 else None, outline=color, width=1)


def overview(pictures: list[Image.Image]) -> Image.Image:
    """Puts small copies of all pictures on one sheet."""
    columns = math.ceil(math.sqrt(len(pictures)))
    sheet = Image.new("RGB", (columns * THUMBNAIL, math.ceil(len(pictures) / columns) * THUMBNAIL))
    for index, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        sheet.paste(small, (index % columns * THUMBNAIL, index // columns * THUMBNAIL))
    return sheet


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose show-samples",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--images", metavar="DIR", help="folder of images", **required)
    parser.add_argument("--annotations", metavar="FILE", help="annotations in COCO's format", **required)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to", **required)
    parser.add_argument("--num", type=int, default=16, help="samples to draw")
    parser.add_argument("--epoch", type=int, default=10, help="epoch to show, from 0")
    parser.add_argument("--num-epochs", type=int, default=52, help="epochs of the whole training")
    parser.add_argument("--size", type=int, default=640, help="height and width of the samples in pixels")
    parser.add_argument(
        "--base-repeats", type=int, default=0, help="multi-scale: weight of --size, 0 for no other sizes"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="samples of one size, if there are several sizes")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    return parser.parse_args(argv)


def show(arguments: argparse.Namespace) -> int:
    """Draws and writes the samples that the command line asks for; returns how many."""
    if not 0 <= arguments.epoch < arguments.num_epochs or arguments.num < 1:
        raise ValueError(f"--epoch must be from 0 to {arguments.num_epochs - 1} and --num at least 1")
    dataset = CocoPoseDataset(arguments.images, arguments.annotations)
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
    arguments.output.mkdir(parents=True, exist_ok=True)
    pictures = []
    with tqdm(total=min(arguments.num, len(loader) * loader.batch_sampler.batch_size), unit="sample") as progress:
        for batch in loader:
            for pixel_values, labels in zip(batch["pixel_values"], batch["labels"], strict=True):
                if len(pictures) < arguments.num:
                    pictures.append(draw_sample(pixel_values, labels, dataset.schema))
                    name = f"{len(pictures) - 1:04d}_{labels['image_id'].item()}.jpg"
                    pictures[-1].save(arguments.output / name, quality=95)
                    progress.update()
            if len(pictures) == arguments.num:
                break
    overview(pictures).save(arguments.output / "overview.jpg", quality=90)
    return len(pictures)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        count = show(arguments)
    except (OSError, ValueError) as error:
        print(f"show_samples.py: error: {error}", file=sys.stderr)
        return 1
    print(f"{count} samples written to {arguments.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
