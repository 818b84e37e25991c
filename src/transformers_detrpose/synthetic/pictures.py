"""Generates an image of articulated figures with exact labels.

Annotations:

* v = 2: the keypoint is visible. v = 1: it is in the image, but hidden by an object, another figure, or a part of the
  figure that it does not belong to (an arm behind the back, the nose seen from behind). v = 0, with x = y = 0: it is
  outside the image.
* `bbox` and `area` are those of the part of the figure inside the image, ignoring occlusion.
* Every figure in an image is annotated, and has at least three visible keypoints.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..keypoint_schemas import COCO_PERSON
from .figures import Figure, build_figure, move_figure, paint_figure, paint_part_map
from .looks import sample_look
from .poses import find_joints, sample_body, sample_pose
from .scenery import finish, paint_background, sample_clutter, sample_occluder
from .shapes import Shapes, Style, paint_shapes, sample_color, sample_style

SUPERSAMPLING = 2  # pixels of the canvas per pixel of the image, in each direction
PEOPLE_PER_ID = 1000  # annotation ids start after this times the index of the image

EMPTY_SHARE = 0.06  # of the images
# Standing heights of figures as fractions of the image height.
MIN_HEIGHT, MAX_HEIGHT = 0.25, 0.9
PLACING_ATTEMPTS = 6
# Figures and objects are left out if they would leave less than this of a figure visible.
LEAST_SEEN_KEYPOINTS = 3
LEAST_SEEN_SHARE = 0.25
LEAST_AREA = 0.001  # of the image


@dataclass(frozen=True)
class PlacedFigure:
    """A figure in an image.

    Args:
        figure: The figure, in pixels of the canvas.
        part_map: For each pixel of the canvas (height, width), 1 plus the index of the figure's part there, or 0.
        covered: Whether a pixel is covered by something in front of the figure, (height, width).
    """

    figure: Figure
    part_map: np.ndarray
    covered: np.ndarray


def generate_picture(
    seed: int,
    index: int,
    size: int | tuple[int, int] = 320,
    max_people: int = 6,
    min_height: float = MIN_HEIGHT,
    plain: bool = False,
    upright: bool = False,
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draws one image; the same arguments give the same image.

    Args:
        seed: Random seed of the dataset, at least 0.
        index: Index of the image in the dataset, at least 0; its `image_id`.
        size: (height, width) in pixels, or one number for both.
        max_people: Maximum number of figures; fewer if they do not fit.
        min_height: Minimum standing height of a figure as a fraction of the image height; at most 0.9.
        plain: Whether there is nothing but the figures, on a single color and without camera effects.
        upright: Whether all figures stand or walk and face the viewer.

    Returns:
        The image, and the annotations of its figures in COCO's format, the farthest figure first.
    """
    rng = np.random.default_rng([seed, index])
    size = (size, size) if isinstance(size, int) else tuple(size)
    canvas_size = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    style = sample_style(rng)
    background = Image.new("RGB", size[::-1], sample_color(rng)) if plain else paint_background(rng, size)
    canvas = background.resize(canvas_size[::-1], Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    if not plain:
        paint_shapes(draw, sample_clutter(rng, canvas_size, style))
    people = []
    for height in sample_heights(rng, canvas_size, max_people, min_height):
        people = add_figure(rng, draw, people, height, canvas_size, style, upright)
    for _ in range(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]) if people and not plain else 0):
        people = add_occluder(rng, draw, people, canvas_size, style)
    annotations = [
        {"id": PEOPLE_PER_ID * index + number, "image_id": index, "category_id": 1, **annotate(person), "iscrowd": 0}
        for number, person in enumerate(people, start=1)
    ]
    picture = canvas.reduce(SUPERSAMPLING) if plain else finish(rng, canvas, SUPERSAMPLING)
    return picture, annotations


def sample_heights(
    rng: np.random.Generator, canvas_size: tuple[int, int], max_people: int, min_height: float
) -> list[float]:
    """Returns the heights of the figures in an image in pixels, the smallest, which is the farthest, first.

    Args:
        rng: Random number generator.
        canvas_size: (height, width) in pixels.
        max_people: Maximum number of figures.
        min_height: Minimum height as a fraction of the image height.
    """
    if max_people == 0 or rng.random() < EMPTY_SHARE:
        return []
    weights = 0.8 ** np.arange(max_people)
    count = 1 + rng.choice(max_people, p=weights / weights.sum())
    low, high = np.log((min_height, MAX_HEIGHT))
    # Figures in groups have less room, and stand at similar distances.
    middle = rng.uniform(low, max(low, high - 0.08 * (count - 1)))
    logarithms = np.clip(middle + rng.normal(0, 0.25, count), low, high)
    return sorted(float(height) for height in canvas_size[0] * np.exp(logarithms))


def add_figure(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    people: list[PlacedFigure],
    height: float,
    canvas_size: tuple[int, int],
    style: Style,
    upright: bool,
) -> list[PlacedFigure]:
    """Draws a random figure in front of the others, at a place that leaves enough of them visible.

    Args:
        rng: Random number generator.
        draw: The canvas.
        people: The figures drawn so far.
        height: Standing height of the figure in pixels of the canvas.
        canvas_size: (height, width) of the canvas in pixels.
        style: How shapes are drawn.
        upright: Whether it stands or walks and faces the viewer.

    Returns:
        The figures with the new one, or unchanged if there is no room for it.
    """
    body, look = sample_body(rng), sample_look(rng)
    figure = build_figure(find_joints(sample_pose(rng, upright), body), body, look, height, style)
    for _ in range(PLACING_ATTEMPTS):
        placed = place_figure(move_figure(figure, sample_offset(rng, figure, height, canvas_size)), canvas_size)
        hidden = cover(people, placed.part_map > 0)
        if all(is_recognisable(person) for person in [*hidden, placed]):
            paint_figure(draw, placed.figure)
            return [*hidden, placed]
    return people


def add_occluder(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    people: list[PlacedFigure],
    canvas_size: tuple[int, int],
    style: Style,
) -> list[PlacedFigure]:
    """Draws a random object over one of the figures, unless it would hide too much; see `add_figure`."""
    chosen = people[rng.integers(len(people))]
    x, y, width, height = SUPERSAMPLING * np.array(annotate(chosen)["bbox"])
    shapes = sample_occluder(rng, np.array([x, y, x + width, y + height]), style)
    hidden = cover(people, shapes_mask(shapes, canvas_size))
    if not all(is_recognisable(person) for person in hidden):
        return people
    paint_shapes(draw, shapes)
    return hidden


def sample_offset(rng: np.random.Generator, figure: Figure, height: float, canvas_size: tuple[int, int]) -> np.ndarray:
    """Returns a random offset of a figure, x and y in pixels: into the canvas, or sometimes across its border."""
    outline = np.concatenate([polygon for part in figure.parts for polygon, _ in part.layers])
    low, high = outline.min(axis=0), outline.max(axis=0)
    room = np.array(canvas_size[::-1]) - (high - low)
    if rng.random() < 0.25 or (room < 0).any():
        center = rng.uniform(0.02, 0.98, 2) * canvas_size[::-1]
        return center - 0.5 * (low + high)
    offset = rng.uniform(0, 1, 2) * room
    if rng.random() < 0.6:  # the nearer a figure, the lower it stands in the image
        ground = canvas_size[0] * (0.6 + 0.38 * height / canvas_size[0] + rng.normal(0, 0.04))
        offset[1] = np.clip(ground - (high - low)[1], 0, room[1])
    return offset - low


def place_figure(figure: Figure, canvas_size: tuple[int, int]) -> PlacedFigure:
    """Returns a figure with its part map, not yet covered.

    Args:
        figure: The figure, in pixels of the canvas.
        canvas_size: (height, width) of the canvas in pixels.
    """
    image = Image.new("L", canvas_size[::-1])
    paint_part_map(ImageDraw.Draw(image), figure)
    return PlacedFigure(figure, np.asarray(image), np.zeros(canvas_size, dtype=bool))


def cover(people: list[PlacedFigure], mask: np.ndarray) -> list[PlacedFigure]:
    """Returns figures covered by a mask (height, width)."""
    return [PlacedFigure(person.figure, person.part_map, person.covered | mask) for person in people]


def shapes_mask(shapes: Shapes, canvas_size: tuple[int, int]) -> np.ndarray:
    """Returns where shapes are drawn on a canvas, (height, width)."""
    image = Image.new("L", canvas_size[::-1])
    paint_shapes(ImageDraw.Draw(image), [(polygon, 1) for polygon, _ in shapes])
    return np.asarray(image) > 0


def is_recognisable(person: PlacedFigure) -> bool:
    """Returns whether enough of a figure is visible for it to be detected."""
    silhouette = person.part_map > 0
    area = np.count_nonzero(silhouette)
    if area < max(1, LEAST_AREA * silhouette.size):
        return False
    if np.count_nonzero(silhouette & ~person.covered) < LEAST_SEEN_SHARE * area:
        return False
    return np.count_nonzero(label_keypoints(person)[:, 2] == 2) >= LEAST_SEEN_KEYPOINTS


def label_keypoints(person: PlacedFigure) -> np.ndarray:
    """Returns x, y in pixels of the image and visibility (0, 1, 2) of a figure's keypoints, (17, 3)."""
    height, width = person.part_map.shape
    labels = np.zeros((COCO_PERSON.num_keypoints, 3))
    for index, (x, y) in enumerate(person.figure.keypoints):
        column, row = math.floor(x + 0.5), math.floor(y + 0.5)  # in drawing, pixel centers are at integers
        if not (0 <= column < width and 0 <= row < height):
            continue
        part = int(person.part_map[row, column]) - 1
        seen = part in person.figure.owners[index] and not person.figure.turned_away[index]
        labels[index] = x, y, 2 if seen and not person.covered[row, column] else 1
    labels[:, :2] = np.where(labels[:, 2:] > 0, to_picture(labels[:, :2]), 0)
    return labels


def to_picture(points: np.ndarray) -> np.ndarray:
    """Converts positions on the canvas, with pixel centers at integers, to positions in the image, with pixel edges at
    integers; rounded down to hundredths so that they stay inside."""
    return np.floor(100 * (points + 0.5) / SUPERSAMPLING) / 100


def annotate(person: PlacedFigure) -> dict[str, Any]:
    """Returns the keypoints, bounding box and area of a figure in COCO's format, in pixels of the image."""
    labels = label_keypoints(person)
    silhouette = person.part_map > 0
    rows, columns = (np.flatnonzero(silhouette.any(axis=axis)) for axis in (1, 0))
    x1, y1, x2, y2 = (float(edge) / SUPERSAMPLING for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return {
        "keypoints": [value for x, y, v in labels.tolist() for value in (x, y, int(v))],
        "num_keypoints": int(np.count_nonzero(labels[:, 2])),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": np.count_nonzero(silhouette) / SUPERSAMPLING**2,
    }
