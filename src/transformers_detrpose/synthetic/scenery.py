"""Scenery: backgrounds, clutter behind figures, occluders in front of them, and camera effects.

Shapes are polygons with a color, as in `figures.py`. Sizes are (height, width).
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .looks import sample_skin
from .shapes import CIRCLE, Color, Shapes, Style, sample_color, shade, shaded_blob, shaded_capsule


def paint_background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Returns a random background: a color gradient, noise, stripes, tiles, a landscape or a room."""
    kinds = (_wash, _noise, _stripes, _tiles, _landscape, _room)
    image = kinds[rng.choice(len(kinds), p=[0.15, 0.2, 0.1, 0.1, 0.25, 0.2])](rng, size)
    if rng.random() < 0.6:
        image = _with_grain(rng, image)
    return image


def sample_clutter(rng: np.random.Generator, size: tuple[int, int], style: Style) -> Shapes:
    """Returns random objects behind the figures, some of them similar to limbs or heads."""
    height, width = size
    shapes = []
    for _ in range(rng.choice([0, rng.integers(1, 6), rng.integers(4, 16)], p=[0.15, 0.5, 0.35])):
        center = rng.uniform(0, 1, 2) * (width, height)
        extent = min(size) * math.exp(rng.uniform(math.log(0.03), math.log(0.35)))
        shapes += (_polygon, _box, _disc, _false_limb, _false_limb, _bars)[rng.integers(6)](rng, center, extent, style)
    return shapes


def sample_occluder(rng: np.random.Generator, box_xyxy: np.ndarray, style: Style) -> Shapes:
    """Returns a random object that hides part of a box."""
    x1, y1, x2, y2 = box_xyxy
    width, height = x2 - x1, y2 - y1
    center = np.array([rng.uniform(x1, x2), rng.uniform(y1 + 0.2 * height, y2)])
    extent = rng.uniform(0.12, 0.4) * max(width, height)
    kind = rng.integers(6)
    if kind == 0:  # a pole
        half = rng.uniform(0.02, 0.06) * max(width, height)
        ends = center + np.array([[rng.normal(0, half), -3 * height], [rng.normal(0, half), 3 * height]])
        return shaded_capsule(*ends, half, half, sample_color(rng, (0, 0.5)), style, 1.0)
    if kind == 1:  # a wall or a table
        top = rng.uniform(y1 + 0.45 * height, y2)
        left, right = center[0] - rng.uniform(0.5, 3) * extent, center[0] + rng.uniform(0.5, 3) * extent
        wall = np.array([[left, top], [right, top], [right, top + 2 * height], [left, top + 2 * height]])
        return _striped(rng, wall, sample_color(rng, (0, 0.7)))
    if kind == 2:  # a bush
        color = shade(sample_color(rng, (0.3, 0.8)), 0.8)
        offsets = rng.normal(0, 0.4 * extent, (8, 2))
        discs = [center + offset + rng.uniform(0.25, 0.5) * extent * CIRCLE for offset in offsets]
        return [(disc, shade(color, rng.uniform(0.7, 1.2))) for disc in discs]
    return (_polygon, _box, _disc)[kind - 3](rng, center, extent, style)


def finish(rng: np.random.Generator, canvas: Image.Image, factor: int) -> Image.Image:
    """Returns the canvas downscaled by a factor, with a camera's blur, noise and exposure."""
    image = canvas.reduce(factor)
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    pixels = np.asarray(image, dtype=np.float32)
    gain = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    pixels = pixels * gain.astype(np.float32) + np.float32(rng.normal(0, 10))
    if rng.random() < 0.7:
        pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1, 9))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _resize(values: np.ndarray, size: tuple[int, int], smooth: bool = True) -> Image.Image:
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return Image.fromarray(values.astype(np.uint8)).resize((size[1], size[0]), method)


def _wash(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    rows, columns = rng.integers(1, 6, 2)
    colors = rng.integers(20, 250, (rows, columns, 3))
    gray = colors.mean(axis=2, keepdims=True)
    return _resize(gray + rng.uniform(0.1, 0.9) * (colors - gray), size)


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Returns clouds of two colors, from coarse to fine."""
    first, second = (np.array(sample_color(rng), dtype=np.float32) for _ in range(2))
    total = np.zeros(size, dtype=np.float32)
    cells, amplitude = rng.integers(2, 6), 1.0
    persistence = rng.uniform(0.4, 0.9)
    while cells < max(size):
        total += amplitude * (np.asarray(_resize(rng.integers(0, 256, (cells, cells)), size), np.float32) / 255 - 0.5)
        cells, amplitude = 2 * cells, amplitude * persistence
    mix = np.clip(0.5 + total, 0, 1)[..., None]
    return Image.fromarray((first + mix * (second - first)).astype(np.uint8))


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    rows, columns = np.arange(size[0], dtype=np.float32)[:, None], np.arange(size[1], dtype=np.float32)[None]
    angle, period = rng.uniform(0, math.pi), max(size) * rng.uniform(0.02, 0.2)
    wave = np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * np.float32(2 * math.pi / period))
    mix = np.clip(0.5 + rng.choice([0.5, 4.0]) * wave, 0, 1)[..., None].astype(np.float32)
    first, second = (np.array(sample_color(rng), dtype=np.float32) for _ in range(2))
    return Image.fromarray((first + mix * (second - first)).astype(np.uint8))


def _tiles(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    rows = rng.integers(3, 14)
    columns = max(1, round(rows * size[1] / size[0] * rng.uniform(0.5, 2)))
    colors = np.array([sample_color(rng) for _ in range(rng.integers(2, 5))])
    return _resize(colors[rng.integers(len(colors), size=(rows, columns))], size, smooth=False)


def _landscape(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Returns sky and ground, with houses, hills or trees on the horizon."""
    height, width = size
    horizon = int(height * rng.uniform(0.25, 0.7))
    bright = rng.uniform(130, 250)
    sky = np.clip(np.stack([[bright * 0.7, bright * 0.85, bright], [bright] * 3]) + rng.normal(0, 15, (2, 3)), 0, 255)
    ground = np.array(sample_color(rng, (0.1, 0.6))) * np.array([[0.8], [1.0]])
    image = Image.new("RGB", (width, height))
    image.paste(_resize(sky[:, None], (horizon, width)), (0, 0))
    image.paste(_resize(ground[:, None], (height - horizon, width)), (0, horizon))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 9)):
        x, w, h = rng.uniform(0, width), width * rng.uniform(0.05, 0.25), height * rng.uniform(0.05, 0.4)
        color = shade(sample_color(rng, (0, 0.5)), rng.uniform(0.5, 1))
        if rng.random() < 0.5:
            draw.rectangle((x - w / 2, horizon - h, x + w / 2, horizon), fill=color)
            for floor in np.arange(horizon - h + 4, horizon - 4, 9):
                draw.line((x - 0.4 * w, floor, x + 0.4 * w, floor), fill=shade(color, 0.6), width=2)
        else:
            draw.ellipse((x - w, horizon - h / 2, x + w, horizon + h / 2), fill=color)
    return image


def _room(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Returns a wall with frames and a floor with boards."""
    height, width = size
    image = _wash(rng, size) if rng.random() < 0.4 else Image.new("RGB", (width, height), sample_color(rng, (0, 0.5)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 5)):
        x, y, w, h = rng.uniform(0, 0.8, 4) * (width, 0.7 * height, 0.4 * width, 0.6 * height)
        draw.rectangle((x, y, x + w, y + h), fill=sample_color(rng), outline=sample_color(rng), width=3)
    floor = height * rng.uniform(0.5, 0.95)
    color = sample_color(rng, (0.1, 0.6))
    draw.rectangle((0, floor, width, height), fill=color)
    if rng.random() < 0.7:
        vanishing = rng.uniform(0, width)
        for x in np.linspace(-2 * width, 3 * width, rng.integers(8, 40)):
            draw.line((vanishing + (x - vanishing) * 0.4, floor, x, height), fill=shade(color, 0.75), width=1)
    return image


def _with_grain(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Returns the background with a grainy texture."""
    size = (image.height, image.width)
    cells = [max(1, int(side / rng.uniform(1, 8))) for side in size]
    grain = np.asarray(_resize(rng.integers(0, 256, cells), size), dtype=np.float32)[..., None] / 255 - 0.5
    pixels = np.asarray(image, dtype=np.float32) * (1 + np.float32(rng.uniform(0.1, 0.5)) * grain)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _turn(points: np.ndarray, degrees: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ np.array([[cos, sin], [-sin, cos]])


def _polygon(rng: np.random.Generator, center: np.ndarray, extent: float, style: Style) -> Shapes:
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.5, 1, (len(angles), 1))
    return [(center + extent * corners, sample_color(rng))]


def _box(rng: np.random.Generator, center: np.ndarray, extent: float, style: Style) -> Shapes:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * rng.uniform(0.3, 1, 2) * extent
    tilt = 0 if rng.random() < 0.5 else rng.uniform(-45, 45)
    return _striped(rng, center + _turn(corners, tilt), sample_color(rng))


def _disc(rng: np.random.Generator, center: np.ndarray, extent: float, style: Style) -> Shapes:
    ellipse = _turn(CIRCLE * rng.uniform(0.4, 1, 2), rng.uniform(0, 180))
    color = sample_skin(rng) if rng.random() < 0.25 else sample_color(rng)
    return shaded_blob(center + 0.7 * extent * ellipse, color, style, 1.0)


def _bars(rng: np.random.Generator, center: np.ndarray, extent: float, style: Style) -> Shapes:
    color, bars, tilt = sample_color(rng), int(rng.integers(3, 9)), rng.choice([0, 90, rng.uniform(0, 180)])
    shapes = []
    for offset in np.linspace(-1, 1, bars):
        corners = np.array([[-0.4 / bars, -1], [0.4 / bars, -1], [0.4 / bars, 1], [-0.4 / bars, 1]]) + (offset, 0)
        shapes.append((center + _turn(1.5 * extent * corners, tilt), color))
    return shapes


def _false_limb(rng: np.random.Generator, center: np.ndarray, extent: float, style: Style) -> Shapes:
    """Returns a chain of capsules that looks like an arm or a leg, but belongs to no figure."""
    color = sample_skin(rng) if rng.random() < 0.4 else sample_color(rng)
    radius, heading, shapes = rng.uniform(0.08, 0.25) * extent, rng.uniform(0, 2 * math.pi), []
    for _ in range(rng.integers(1, 4)):
        end = center + rng.uniform(0.5, 1) * extent * np.array([math.cos(heading), math.sin(heading)])
        shapes += shaded_capsule(center, end, radius, 0.75 * radius, color, style, rng.choice([0.0, 1.0]))
        center, radius, heading = end, 0.75 * radius, heading + rng.normal(0, 0.8)
    return shapes


def _striped(rng: np.random.Generator, corners: np.ndarray, color: Color) -> Shapes:
    """Returns a quadrilateral (4, 2), at random with stripes from its first side to its third."""
    shapes = [(corners, color)]
    if rng.random() < 0.5:
        other = shade(color, rng.uniform(0.5, 1.4))
        edges = np.linspace(0, 1, 2 * rng.integers(2, 8) + 1)
        first, second, third, fourth = corners
        for low, high in zip(edges[:-1:2], edges[1::2], strict=True):
            band = [first + t * (second - first) for t in (low, high)] + [
                fourth + t * (third - fourth) for t in (high, low)
            ]
            shapes.append((np.stack(band), other))
    return shapes
