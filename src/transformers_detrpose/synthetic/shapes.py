"""Flat shapes that look round: shaded polygons, and the perspective projection of points in space.

Polygons are arrays (n, 2) of x, y in pixels of the canvas.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

Color = tuple[int, int, int]
Shapes = list[tuple[np.ndarray, Color]]  # polygons in drawing order

CAMERA_DISTANCE = 5.0  # in heights of the figure
CIRCLE = np.array([[math.cos(math.pi / 12 * step), math.sin(math.pi / 12 * step)] for step in range(24)])
ARC = np.linspace(-1, 1, 8)  # steps along an arc, relative to its half angle


@dataclass(frozen=True)
class Style:
    """How shapes are drawn; the same throughout an image.

    Args:
        light: Direction of the light source, x and y of a vector in the image plane, of length at most 1.
        shading: Contrast between lit and dark sides, from 0 to 1.
        outline: Width of the dark outlines as a fraction of the figure's height.
    """

    light: tuple[float, float] = (-0.5, -0.7)
    shading: float = 0.5
    outline: float = 0.004


@dataclass(frozen=True)
class Part:
    """A part of a figure.

    Args:
        name: Name, such as "torso" or "left_hand".
        depth: Distance, in heights of the figure; smaller is nearer.
        layers: Polygons and colors, in drawing order.
    """

    name: str
    depth: float
    layers: Shapes


@dataclass(frozen=True)
class View:
    """Projects points in space to pixels.

    Args:
        height: Height of the standing figure in pixels.
        style: How shapes are drawn.
    """

    height: float
    style: Style

    def magnify(self, point: np.ndarray) -> float:
        """Returns the pixels per unit at a point's depth."""
        return self.height * CAMERA_DISTANCE / (CAMERA_DISTANCE + point[2])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Projects points (..., 3) to pixels (..., 2); the origin is mapped to the origin."""
        return points[..., :2] * (self.height * CAMERA_DISTANCE / (CAMERA_DISTANCE + points[..., 2:]))

    def capsule(self, start, end, start_radius: float, end_radius: float, color: Color) -> Shapes:
        """Returns the layers of a shaded capsule between two points in space."""
        radii = start_radius * self.magnify(start), end_radius * self.magnify(end)
        outline = self.style.outline * self.height
        return shaded_capsule(self.project(start), self.project(end), *radii, color, self.style, outline)

    def blob(self, points: np.ndarray, color: Color) -> Shapes:
        """Returns the layers of a shaded hull of points in space."""
        return shaded_blob(hull(self.project(points)), color, self.style, self.style.outline * self.height)


def shade(color: Color, factor: float) -> Color:
    """Returns a darker (factor below 1) or lighter (above 1) color."""
    return tuple(int(min(255.0, max(0.0, channel * factor))) for channel in color)


def sample_color(rng: np.random.Generator, saturation: tuple[float, float] = (0.0, 0.95)) -> Color:
    """Returns a random color that is not very dark; pale colors are more likely than vivid ones."""
    low, high = saturation
    rgb = colorsys.hsv_to_rgb(rng.random(), low + (high - low) * rng.random() ** 1.5, rng.uniform(0.2, 1.0))
    return tuple(int(255 * channel) for channel in rgb)


def sample_style(rng: np.random.Generator) -> Style:
    """Returns a random style for an image."""
    angle = rng.uniform(-math.pi, 0)  # from above
    light = (0.8 * math.cos(angle), 0.8 * math.sin(angle))
    return Style(light=light, shading=rng.uniform(0.2, 0.8), outline=max(0.0, rng.uniform(-0.004, 0.007)))


def capsule(start: np.ndarray, end: np.ndarray, start_radius: float, end_radius: float) -> np.ndarray:
    """Returns the convex outline of two discs, (n, 2)."""
    x, y = end - start
    distance = math.hypot(x, y)
    if distance <= abs(start_radius - end_radius) + 1e-6:
        return start + start_radius * CIRCLE if start_radius >= end_radius else end + end_radius * CIRCLE
    axis, half = math.atan2(y, x), math.acos((start_radius - end_radius) / distance)
    angles = np.concatenate([axis + half * ARC, axis + math.pi + (math.pi - half) * ARC])
    radii = np.repeat([end_radius, start_radius], len(ARC))[:, None]
    centers = np.repeat([end, start], len(ARC), axis=0)
    return centers + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def shaded_capsule(
    start: np.ndarray,
    end: np.ndarray,
    start_radius: float,
    end_radius: float,
    color: Color,
    style: Style,
    outline: float,
) -> Shapes:
    """Returns a capsule with an outline (its width in pixels), a dark side and a lit side."""
    layers = [(capsule(start, end, start_radius, end_radius), shade(color, 1 - 0.4 * style.shading))]
    if outline:
        layers.insert(0, (capsule(start, end, start_radius + outline, end_radius + outline), shade(color, 0.35)))
    for size, shift, brightness in ((0.72, 0.25, 1.0), (0.32, 0.42, 1 + 0.25 * style.shading)):
        move = shift * np.array(style.light)
        ends = (start + start_radius * move, end + end_radius * move)
        layers.append((capsule(*ends, size * start_radius, size * end_radius), shade(color, brightness)))
    return layers


def hull(points: np.ndarray) -> np.ndarray:
    """Returns the convex hull of points (n, 2), as a polygon (Andrew's monotone chain)."""
    ordered = sorted(map(tuple, points.tolist()))
    chains = []
    for sequence in (ordered, ordered[::-1]):
        chain = []
        for x, y in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        chains += chain[:-1]
    return np.array(chains)


def shaded_blob(polygon: np.ndarray, color: Color, style: Style, outline: float) -> Shapes:
    """Returns a convex polygon with an outline (its width in pixels), a dark side and a lit side."""
    center = polygon.mean(axis=0)
    arms = polygon - center
    lengths = np.hypot(*arms.T)[:, None]
    move = 0.12 * float(np.median(lengths)) * np.array(style.light)
    layers = [(polygon, shade(color, 1 - 0.4 * style.shading)), (center + 0.84 * arms + move, color)]
    if outline:
        layers.insert(0, (polygon + arms * (outline / np.maximum(lengths, 1e-6)), shade(color, 0.35)))
    return layers


def paint_shapes(draw: ImageDraw.ImageDraw, shapes: list[tuple[np.ndarray, Color | int]]):
    """Paints polygons in order, the last on top."""
    for polygon, color in shapes:
        draw.polygon(polygon.ravel().tolist(), fill=color)
