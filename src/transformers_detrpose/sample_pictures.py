"""Drawings of training samples, to check that images and labels match."""

import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2 import functional as tvF

from .files import whole_folder
from .keypoint_schemas import KeypointSchema
from .visualization import draw_poses

LEFT, RIGHT, MIDDLE = "#FF3030", "#30E040", "#FFFFFF"
_THUMBNAIL_PIXELS = 320


def write_samples(
    batches: Iterable[dict[str, Any]], schema: KeypointSchema, folder: str | os.PathLike, num_samples: int
) -> int:
    """Writes one image per sample, named by its index and image id, and an overview of all of them, `overview.jpg`.

    Args:
        batches: `pixel_values` (B, 3, height, width) from 0 to 1, and `labels`, as made by `collate_poses`.
        schema: the keypoint schema.
        folder: folder to create; it appears once all images are written.
        num_samples: maximum number of samples.

    Returns:
        The number of samples drawn.

    Raises:
        FileExistsError: if the folder exists and is not empty.
    """
    pictures = []
    with whole_folder(folder) as unfinished:
        for pixel_values, labels in islice(_samples(batches), num_samples):
            pictures.append(draw_labels(pixel_values, labels, schema))
            name = f"{len(pictures) - 1:04d}_{labels['image_id'].item()}.jpg"
            pictures[-1].save(unfinished / name, quality=95)
        draw_overview(pictures).save(unfinished / "overview.jpg", quality=90)
    return len(pictures)


def _samples(batches: Iterable[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    for batch in batches:
        yield from zip(batch["pixel_values"], batch["labels"], strict=True)


def draw_labels(pixel_values: torch.Tensor, labels: dict[str, torch.Tensor], schema: KeypointSchema) -> Image.Image:
    """Draws the labels of one image.

    Each person has lines of one color. Keypoints on the left are red, on the right green, others white; hidden ones are
    hollow.

    Args:
        pixel_values: (3, height, width), from 0 to 1.
        labels: labels of the image, as the model takes them, with `boxes`.
        schema: the keypoint schema.
    """
    image = tvF.to_pil_image(pixel_values)
    size_wh = torch.tensor([image.width, image.height])
    keypoints, visibility = labels["keypoints"].split([2, 1], dim=-1)
    keypoints, visibility = keypoints * size_wh, visibility[..., 0]
    centers, sizes = (labels["boxes"] * size_wh.repeat(2)).split(2, dim=-1)
    result = {
        "scores": torch.ones(len(keypoints)),
        "labels": labels["class_labels"],
        "keypoints": keypoints,
        "keypoint_scores": (visibility > 0).float(),
        "boxes": torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1),
    }
    image = draw_poses(image, result, schema, keypoint_threshold=0.5)
    draw = ImageDraw.Draw(image)
    for box in result["boxes"].tolist():
        draw.rectangle(box, outline=MIDDLE)
    for person, seen in zip(keypoints.tolist(), visibility.tolist(), strict=True):
        _draw_sides(draw, person, seen, schema)
    return image


def _draw_sides(draw: ImageDraw.ImageDraw, keypoints: list, visibility: list, schema: KeypointSchema):
    """Draws the keypoints (x, y) of one person in the colors of their sides, hollow if hidden."""
    sides = {index: color for pair in schema.flip_pairs for index, color in zip(pair, (LEFT, RIGHT), strict=True)}
    for index, ((x, y), seen) in enumerate(zip(keypoints, visibility, strict=True)):
        color = sides.get(index, MIDDLE)
        if seen:
            draw.circle((x, y), 3, fill=color if seen == 2 else None, outline=color, width=1)


def draw_overview(pictures: list[Image.Image]) -> Image.Image:
    """Returns a contact sheet of one or more images."""
    columns = math.ceil(math.sqrt(len(pictures)))
    size_wh = (columns * _THUMBNAIL_PIXELS, math.ceil(len(pictures) / columns) * _THUMBNAIL_PIXELS)
    sheet = Image.new("RGB", size_wh)
    for index, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        sheet.paste(small, (index % columns * _THUMBNAIL_PIXELS, index // columns * _THUMBNAIL_PIXELS))
    return sheet
