"""Generates large images of many small figures that do not touch, as a camera high above a square would see them."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .figures import Figure, build_figure, move_figure, paint_figure
from .looks import sample_look
from .pictures import PEOPLE_PER_ID, SUPERSAMPLING, annotate, place_figure
from .poses import find_joints, sample_body, sample_pose
from .shapes import sample_color, sample_style

PLACING_ATTEMPTS = 50
GAP = 0.1  # between figures, as a fraction of their height


def generate_scattered(
    seed: int, index: int, size: int | tuple[int, int], max_people: int, heights: tuple[float, float]
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draws upright figures that face the viewer, all of them whole and apart from each other, on a single color.

    Args:
        seed: Random seed of the dataset, at least 0.
        index: Index of the image in the dataset, at least 0; its `image_id`.
        size: (height, width) in pixels, or one number for both.
        max_people: Number of figures; fewer if they do not fit.
        heights: Minimum and maximum standing height of a figure in pixels; their logarithms are uniform.

    Returns:
        The image, and the annotations of its figures in COCO's format.
    """
    rng = np.random.default_rng([seed, index])
    size = (size, size) if isinstance(size, int) else tuple(size)
    style = sample_style(rng)
    canvas = Image.new("RGB", (size[1] * SUPERSAMPLING, size[0] * SUPERSAMPLING), sample_color(rng))
    draw = ImageDraw.Draw(canvas)
    taken = np.empty((0, 4))
    annotations = []
    for height in np.exp(rng.uniform(*np.log(heights), max_people)) * SUPERSAMPLING:
        body, look = sample_body(rng), sample_look(rng)
        figure = build_figure(find_joints(sample_pose(rng, upright=True), body), body, look, height, style)
        figure, window_hw = _into_window(figure, round(GAP * height))
        corner = _find_room(rng, taken, window_hw, canvas.size)
        if corner is None:
            continue
        taken = np.vstack([taken, [*corner, *(corner + window_hw[::-1])]])
        paint_figure(draw, move_figure(figure, corner))
        number = PEOPLE_PER_ID * index + len(annotations) + 1
        labels = _move_labels(annotate(place_figure(figure, window_hw)), corner / SUPERSAMPLING)
        annotations.append({"id": number, "image_id": index, "category_id": 1, **labels, "iscrowd": 0})
    return canvas.reduce(SUPERSAMPLING), annotations


def _into_window(figure: Figure, margin: int) -> tuple[Figure, tuple[int, int]]:
    """Returns a figure with a margin around it, and (height, width) of both; part maps of the canvas would be large."""
    outline = np.concatenate([polygon for part in figure.parts for polygon, _ in part.layers])
    low, high = outline.min(axis=0), outline.max(axis=0)
    width, height = np.ceil(high - low + 2 * margin).astype(int).tolist()
    return move_figure(figure, margin - low), (height, width)


def _find_room(
    rng: np.random.Generator, taken: np.ndarray, window_hw: tuple[int, int], canvas_wh: tuple[int, int]
) -> np.ndarray | None:
    """Returns x, y of a window that overlaps none of the taken ones (n, 4), x1, y1, x2, y2; `None` if none is found."""
    room = (np.array(canvas_wh) - window_hw[::-1]) // SUPERSAMPLING
    for _ in range(PLACING_ATTEMPTS if (room >= 0).all() else 0):
        corner = rng.integers(0, room + 1) * SUPERSAMPLING  # whole pixels of the image
        end = corner + window_hw[::-1]
        if not ((taken[:, :2] < end) & (taken[:, 2:] > corner)).all(axis=1).any():
            return corner
    return None


def _move_labels(labels: dict[str, Any], offset: np.ndarray) -> dict[str, Any]:
    """Returns keypoints and box moved by x, y in pixels of the image; keypoints that are not labeled stay at 0, 0."""
    x, y = offset.tolist()
    keypoints = np.reshape(labels["keypoints"], (-1, 3))
    keypoints[:, :2] += offset * (keypoints[:, 2:] > 0)
    left, top, width, height = labels["bbox"]
    points = [value for px, py, v in keypoints.round(2).tolist() for value in (px, py, int(v))]
    return {**labels, "keypoints": points, "bbox": [left + x, top + y, width, height]}
