"""Heads: a ball of hair with a face, which shows where a figure looks."""

import math

import numpy as np

from .looks import Look
from .poses import SIDES, Body, Skeleton
from .shapes import CIRCLE, Part, Shapes, View, shade, shaded_blob


def head_parts(skeleton: Skeleton, body: Body, look: Look, view: View) -> list[Part]:
    """Returns the head, its face if visible, and the hair that hangs down behind it."""
    center, skull, half = skeleton.joints["head"], skeleton.skull, 0.5 * body.head
    radii = half * np.array([0.78, 1.0, 0.9])

    def surface(points):  # points on a unit ball, on the axes of the head -> pixels
        return view.project(center + (points * radii) @ skull.T)

    def cap(direction, degrees, color):  # the visible part of a spherical cap
        points = _visible_cap(np.array(direction, dtype=float), degrees, skull)
        return [] if points is None else [(surface(points), color)]

    # The outline of the ball: the circle perpendicular to the line of sight.
    limb = np.concatenate([CIRCLE, np.zeros((24, 1))], axis=1) @ skull
    covering = look.skin if look.hair_style == "bald" else look.hair
    swell = 1.0 if look.hair_style == "bald" else 1.07
    layers = shaded_blob(surface(swell * limb), covering, view.style, view.style.outline * view.height)
    layers += cap((0, 0.30, -1), 72 if look.hair_style == "hat" else 78, look.skin)
    if look.hair_style != "bald":
        layers += cap((0, -1, -0.3), 42, shade(covering, 1.08))
    if look.beard:
        layers += cap((0, 0.85, -0.75), 30, shade(look.hair, 0.9))
    layers += _face(skeleton, body, look, view, surface)
    parts = [Part("head", center[2] - 0.03, layers)]

    behind = {"long": (0.15, 0.45, 0.8, 0.75), "tail": (-0.2, 1.0, 0.3, 0.22)}.get(look.hair_style)
    if behind is not None:
        start_y, start_z, start_radius, end_radius = behind
        start = center + skull @ (0, start_y * half, start_z * half)
        end = start + skull @ (0, 0.3 * half, 0.25 * half) + skeleton.chest @ (0, 1.3 * half, 0)
        hair = view.capsule(start, end, start_radius * half, end_radius * half, look.hair)
        parts.append(Part("hair", 0.5 * (start + end)[2], hair))
    return parts


def _visible_cap(direction: np.ndarray, degrees: float, skull: np.ndarray) -> np.ndarray | None:
    """Returns the outline (n, 3) of the visible part of a cap of the unit ball, or `None` if it is hidden.

    Args:
        direction: Its center, on the axes of the head.
        degrees: Its angular radius.
        skull: Rotation of the head.
    """
    direction = skull @ (direction / np.linalg.norm(direction))
    helper = np.array([0.0, 1.0, 0.0]) if abs(direction[1]) < 0.8 else np.array([1.0, 0.0, 0.0])
    first = np.cross(direction, helper)
    first /= np.linalg.norm(first)
    second = np.cross(direction, first)
    radius = math.radians(degrees)
    circle = math.cos(radius) * direction + math.sin(radius) * (CIRCLE[:, :1] * first + CIRCLE[:, 1:] * second)
    seen = circle[:, 2] <= 0
    if not seen.any():
        return None
    if not seen.all():
        # The rest of the border is the part of the ball's outline within the cap.
        last = int(np.flatnonzero(seen & ~np.roll(seen, -1))[0])
        arc = np.roll(circle, -last - 1, axis=0)[-np.count_nonzero(seen) :]
        start, end = (math.atan2(point[1], point[0]) for point in (arc[-1], arc[0]))
        sweep = (end - start) % (2 * math.pi)
        middle = start + 0.5 * sweep
        if np.dot(direction[:2], (math.cos(middle), math.sin(middle))) < 0:
            sweep -= 2 * math.pi
        angles = start + sweep * np.linspace(0, 1, 14)
        circle = np.concatenate([arc, np.stack([np.cos(angles), np.sin(angles), np.zeros(14)], axis=1)])
    return circle @ skull


def _face(skeleton: Skeleton, body: Body, look: Look, view: View, surface) -> Shapes:
    """Returns the visible ears, eyes, mouth and nose."""
    joints, skull, half = skeleton.joints, skeleton.skull, 0.5 * body.head
    layers = []
    for side, _ in SIDES:
        if not is_turned_away(f"{side}_ear", skeleton, look):
            top, bottom = (joints[f"{side}_ear"] + skull @ (0, y * half, 0) for y in (-0.12, 0.12))
            layers += view.capsule(top, bottom, 0.13 * half, 0.1 * half, look.skin)
    for side, sign in SIDES:
        if not is_turned_away(f"{side}_eye", skeleton, look):
            eye = np.array([0.42 * sign, -0.08, -0.9])
            along = np.array([[0.9, 0, 0.42 * sign], [0, 1, 0]])  # two directions in the surface
            layers.append((surface(eye + CIRCLE * (0.15, 0.1) @ along), (250, 250, 250)))
            layers.append((surface(eye + CIRCLE * 0.075 @ along), (30, 24, 20)))
            brow = np.array([[-0.18, -0.2], [0.18, -0.2], [0.18, -0.27], [-0.18, -0.27]])
            layers.append((surface(eye + brow @ along), shade(look.hair, 0.7)))
    if not is_turned_away("nose", skeleton, look):
        mouth = np.array([[-0.22, 0.52, -0.83], [0, 0.5, -0.9], [0.22, 0.52, -0.83], [0, 0.6, -0.82]])
        if (skull @ (0, 0.5, -0.85))[2] < -0.2:
            layers.append((surface(mouth), (150, 50, 50)))
        bridge = joints["head"] + skull @ (0, -0.12 * half, -0.85 * half)
        layers += view.capsule(bridge, joints["nose"], 0.05 * half, 0.1 * half, shade(look.skin, 0.9))
    return layers


def is_turned_away(name: str, skeleton: Skeleton, look: Look) -> bool:
    """Returns whether a keypoint is on the far side of the head, or is an ear under long hair."""
    if name == "nose":
        return (skeleton.skull @ (0, 0.1, -1))[2] > 0.1
    side = 1 if name.startswith("left") else -1
    if name.endswith("eye"):
        return (skeleton.skull @ (0.4 * side, 0, -0.92))[2] > -0.05
    if name.endswith("ear"):
        return look.hair_style == "long" or (skeleton.skull @ (side, 0, -0.1))[2] > 0.35
    return False
