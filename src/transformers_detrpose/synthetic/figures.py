"""Articulated figures: a posed body and its clothes as flat shapes, ordered from far to near.

Depths and thicknesses are fractions of the figure's height, as in `poses.py`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageDraw

from ..keypoint_schemas import COCO_PERSON
from .heads import head_parts, is_turned_away
from .looks import Look
from .poses import SIDES, Body, Skeleton, keypoint_positions
from .shapes import Color, Part, Shapes, Style, View, hull, paint_shapes, shade

# The parts that a keypoint belongs to: it is hidden if another part is in front of it.
KEYPOINT_PARTS = {name: {"head"} for name in COCO_PERSON.names[:5]}
for _side in ("left", "right"):
    KEYPOINT_PARTS |= {
        f"{_side}_shoulder": {f"{_side}_upper_arm", "torso"},
        f"{_side}_elbow": {f"{_side}_upper_arm", f"{_side}_forearm"},
        f"{_side}_wrist": {f"{_side}_forearm", f"{_side}_hand"},
        f"{_side}_hip": {f"{_side}_thigh", "pelvis", "torso", "skirt"},
        f"{_side}_knee": {f"{_side}_thigh", f"{_side}_shank"},
        f"{_side}_ankle": {f"{_side}_shank", f"{_side}_foot"},
    }


@dataclass(frozen=True)
class Figure:
    """A figure ready to be drawn.

    Args:
        parts: From far to near.
        keypoints: x, y of COCO's 17 keypoints in pixels of the canvas, (17, 2).
        turned_away: Whether a keypoint is on the far side of the head, (17,).
        owners: For each keypoint, the indices in `parts` on which it is visible; anything else in front hides it.
    """

    parts: list[Part]
    keypoints: np.ndarray
    turned_away: np.ndarray
    owners: list[set[int]]


def build_figure(skeleton: Skeleton, body: Body, look: Look, height: float, style: Style) -> Figure:
    """Dresses a skeleton.

    Args:
        skeleton: From `find_joints`.
        body: The skeleton's proportions.
        look: Colors and clothes.
        height: Standing height of the body in pixels of the canvas.
        style: How shapes are drawn.

    Returns:
        The figure, with the middle of its hips at (0, 0).
    """
    view = View(height, style)
    parts = [*_trunk_parts(skeleton, body, look, view), *head_parts(skeleton, body, look, view)]
    parts = [_order_behind(part, parts, skeleton) for part in parts]
    for side, _ in SIDES:
        parts += _arm_parts(side, skeleton, body, look, view) + _leg_parts(side, skeleton, body, look, view)
    parts.sort(key=lambda part: -part.depth)
    positions = keypoint_positions(skeleton)
    return Figure(
        parts=parts,
        keypoints=view.project(positions),
        turned_away=np.array([is_turned_away(name, skeleton, look) for name in COCO_PERSON.names]),
        owners=_find_owners(parts, skeleton, body),
    )


def move_figure(figure: Figure, offset: np.ndarray) -> Figure:
    """Returns the figure moved by x, y in pixels."""
    parts = [
        Part(part.name, part.depth, [(polygon + offset, color) for polygon, color in part.layers])
        for part in figure.parts
    ]
    return Figure(parts, figure.keypoints + offset, figure.turned_away, figure.owners)


def paint_part_map(draw: ImageDraw.ImageDraw, figure: Figure):
    """Paints every part of a figure in the value of its index in `parts` plus 1, on a canvas of mode L."""
    for index, part in enumerate(figure.parts):
        paint_shapes(draw, [(polygon, index + 1) for polygon, _ in part.layers])


def paint_figure(draw: ImageDraw.ImageDraw, figure: Figure):
    """Paints a figure in its colors."""
    for part in figure.parts:
        paint_shapes(draw, part.layers)


def _find_owners(parts: list[Part], skeleton: Skeleton, body: Body) -> list[set[int]]:
    index_of = {part.name: index for index, part in enumerate(parts)}
    owners = []
    for name in COCO_PERSON.names:
        names = set(KEYPOINT_PARTS[name])
        # In profile, the far shoulder and hip are hidden by the trunk, on which the near ones are visible.
        for joint, center, half in (("shoulder", "neck", body.shoulder), ("hip", "hips", body.hip)):
            if name.endswith(joint) and skeleton.joints[name][2] - skeleton.joints[center][2] > 0.75 * half:
                names -= {"torso", "pelvis", "skirt"}
        owners.append({index_of[part] for part in names if part in index_of})
    return owners


def _order_behind(part: Part, others: list[Part], skeleton: Skeleton) -> Part:
    """Returns a part worn on the back with a depth in front of trunk and head if the back is visible, and behind them
    if the front is; other parts are unchanged."""
    rotations = {"hair": skeleton.skull, "backpack": skeleton.chest}
    if part.name not in rotations:
        return part
    away = (rotations[part.name] @ (0, 0, 1))[2]
    depths = [other.depth for other in others if other.name in ("head", "neck", "torso")]
    if away > 0.25:
        return replace(part, depth=max(*depths, part.depth) + 1e-3)
    return replace(part, depth=min(*depths, part.depth) - 1e-3) if away < -0.1 else part


def _stripes(start: np.ndarray, end: np.ndarray, radii: tuple[float, float], spans, color: Color) -> Shapes:
    """Returns bands across a limb; spans are fractions of its length, start and end are in pixels."""
    along = end - start
    length = math.hypot(*along)
    if length < 1:
        return []
    across = np.array([-along[1], along[0]]) / length

    def edge(t):  # from one side of the limb to the other
        half = (radii[0] + t * (radii[1] - radii[0])) * across
        return [start + t * along - half, start + t * along + half]

    return [(np.stack([*edge(low), *edge(high)[::-1]]), color) for low, high in spans]


def _limb(view: View, start, end, radii: tuple[float, float], look: Look, cover: float, cloth: Color, stripe) -> Shapes:
    """Returns a limb with clothes from its start to `cover`, a fraction of its length."""
    layers = view.capsule(start, end, *radii, look.skin) if cover < 1 else []
    if cover <= 0:
        return layers
    cover = min(1.0, cover)
    hem = start + cover * (end - start)
    radii = (1.12 * radii[0], 1.12 * (radii[0] + cover * (radii[1] - radii[0])))
    layers += view.capsule(start, hem, *radii, cloth)
    if stripe is not None:
        pixels = radii[0] * view.magnify(start), radii[1] * view.magnify(hem)
        spans = [(t, t + 0.1) for t in np.arange(0.15, 0.95, 0.25)]
        layers += _stripes(view.project(start), view.project(hem), pixels, spans, stripe)
    return layers


def _arm_parts(side: str, skeleton: Skeleton, body: Body, look: Look, view: View) -> list[Part]:
    shoulder, elbow, wrist, hand = (
        skeleton.joints[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hand")
    )
    thick = 0.5 + 0.5 * body.build
    upper = _limb(
        view, shoulder, elbow, (0.034 * thick, 0.025 * thick), look, look.sleeve, look.shirt, look.shirt_stripe
    )
    lower = _limb(
        view, elbow, wrist, (0.025 * thick, 0.018 * thick), look, look.sleeve - 1, look.shirt, look.shirt_stripe
    )
    # Arms hang beside the thickest parts of the body, so they are drawn in front of a trunk of the same depth.
    return [
        Part(f"{side}_upper_arm", 0.5 * (shoulder + elbow)[2] - 0.035, upper),
        Part(f"{side}_forearm", 0.5 * (elbow + wrist)[2] - 0.045, lower),
        Part(f"{side}_hand", hand[2] - 0.04, view.capsule(wrist, hand, 0.017, 0.024, look.skin)),
    ]


def _leg_parts(side: str, skeleton: Skeleton, body: Body, look: Look, view: View) -> list[Part]:
    hip, knee, ankle, heel, toe = (
        skeleton.joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle", "heel", "toe")
    )
    thick = 0.4 + 0.6 * body.build
    upper = _limb(
        view, hip, knee, (0.051 * thick, 0.036 * thick), look, look.leg_cover, look.trousers, look.trousers_stripe
    )
    lower = _limb(
        view, knee, ankle, (0.037 * thick, 0.022 * thick), look, look.leg_cover - 1, look.trousers, look.trousers_stripe
    )
    shoe = view.capsule(heel, toe, 0.024, 0.019, look.shoes)
    return [
        Part(f"{side}_thigh", 0.5 * (hip + knee)[2], upper),
        Part(f"{side}_shank", 0.5 * (knee + ankle)[2] - 0.005, lower),
        Part(f"{side}_foot", 0.5 * (ankle + toe)[2] + 0.004, shoe),
    ]


def _ring(center: np.ndarray, axes: np.ndarray, half_width: float, half_depth: float) -> np.ndarray:
    """Returns points (16, 3) on a horizontal ellipse around the trunk; the 13th is in the middle of the front."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    local = np.stack([half_width * np.cos(angles), np.zeros(16), half_depth * np.sin(angles)], axis=1)
    return center + local @ axes.T


def _trunk_parts(skeleton: Skeleton, body: Body, look: Look, view: View) -> list[Part]:
    joints, build = skeleton.joints, body.build
    up = skeleton.chest @ (0, -1, 0)
    waist_axes = 0.5 * (skeleton.chest + skeleton.hips)
    collar = _ring(joints["neck"] + 0.022 * up, skeleton.chest, 0.045, 0.035)
    shoulders = _ring(joints["neck"] - 0.015 * up, skeleton.chest, body.shoulder + 0.012, 0.05 * build)
    waist = _ring(joints["waist"], waist_axes, (0.5 * body.shoulder + 0.032) * build, 0.057 * build)
    hem = _ring(skeleton.hips @ (0, -0.02, 0), skeleton.hips, (body.hip + 0.036) * build, 0.062 * build)
    crotch = _ring(skeleton.hips @ (0, 0.035, 0), skeleton.hips, (body.hip + 0.032) * build, 0.056 * build)

    shirt = view.blob(np.concatenate([collar, shoulders, waist]), look.shirt)
    belly = view.blob(np.concatenate([waist, hem]), look.shirt)
    # Outlines first, then dark sides, then lit sides, to avoid a line across the waist.
    layers = [*belly[:-2], *shirt[:-2], belly[-2], shirt[-2], belly[-1], shirt[-1]]
    if look.shirt_stripe is not None:
        layers += _shirt_stripes((shoulders, waist, hem), look, view)
    layers += _shirt_front((collar, shoulders, waist, hem), skeleton, look, view)
    neck_end = joints["head"] + skeleton.skull @ (0, 0.2 * body.head, 0.03 * body.head)
    parts = [
        Part("torso", 0.5 * joints["neck"][2] - 0.02, layers),
        Part("pelvis", -0.015, view.blob(np.concatenate([hem, crotch]), look.trousers)),
        Part("neck", joints["neck"][2] + 0.005, view.capsule(joints["neck"], neck_end, 0.034 * build, 0.03, look.skin)),
    ]
    if look.skirt:
        parts.append(_skirt(skeleton, body, look, view, hem))
    if look.backpack is not None:
        center = 0.5 * (joints["neck"] + joints["waist"]) + skeleton.chest @ (0, 0.01, 0.085)
        corners = np.array([[x, y, z] for x in (-0.07, 0.07) for y in (-0.09, 0.09) for z in (-0.04, 0.04)])
        parts.append(Part("backpack", center[2], view.blob(center + corners @ skeleton.chest.T, look.backpack)))
    return parts


def _skirt(skeleton: Skeleton, body: Body, look: Look, view: View, hem: np.ndarray) -> Part:
    """Returns a skirt that follows both thighs."""
    hips, knees = ([skeleton.joints[f"{side}_{name}"] for side, _ in SIDES] for name in ("hip", "knee"))
    ends = [hip + look.skirt * (knee - hip) for hip, knee in zip(hips, knees, strict=True)]
    lower = np.concatenate([_ring(end, skeleton.hips, 0.062 * body.build, 0.06 * body.build) for end in ends])
    depth = min(-0.017, 0.25 * (ends[0] + ends[1])[2] - 0.03)  # in front of the thighs, and never behind the pelvis
    return Part("skirt", depth, view.blob(np.concatenate([hem, lower]), look.trousers))


def _shirt_stripes(rings, look: Look, view: View) -> Shapes:
    shoulders, waist, hem = rings
    layers = []
    edges = np.linspace(0.05, 0.95, 2 * look.num_stripes + 1)
    for low, high in zip(edges[:-1:2], edges[1::2], strict=True):
        ends = [
            shoulders * (1 - 2 * t) + waist * 2 * t if t < 0.5 else waist * (2 - 2 * t) + hem * (2 * t - 1)
            for t in (low, high)
        ]
        layers.append((hull(view.project(np.concatenate(ends))), look.shirt_stripe))
    return layers


def _shirt_front(rings, skeleton: Skeleton, look: Look, view: View) -> Shapes:
    """Returns the neckline and other details of a shirt's front, if visible."""
    if (skeleton.chest @ (0, 0, -1))[2] > -0.25:
        return []
    collar, shoulders, waist, hem = rings
    front = 12  # index of the middle of the front in a ring

    def across(ring, width):  # two points on the front, `width` sixteenths of a turn apart
        return [ring[front] + 0.5 * width * (ring[front + sign] - ring[front]) for sign in (1, -1)]

    neckline = [*across(collar, 3), 0.75 * shoulders[front] + 0.25 * waist[front]]
    layers = [(view.project(np.stack(neckline)), shade(look.skin, 0.92))]
    if look.front == "buttons":
        line = np.stack([*across(shoulders, 0.12), *across(waist, 0.12)[::-1]])
        lower = np.stack([*across(waist, 0.12), *across(hem, 0.12)[::-1]])
        layers += [(view.project(points), shade(look.shirt, 0.5)) for points in (line, lower)]
    elif look.front == "logo":
        top, bottom = (shoulders * (1 - t) + waist * t for t in (0.35, 0.8))
        layers.append((view.project(np.stack([*across(top, 1.6), *across(bottom, 1.6)[::-1]])), look.shoes))
    elif look.front == "vest":
        for upper, lower in ((shoulders, waist), (waist, hem)):
            layers.append((view.project(np.stack([*across(upper, 1.2), *across(lower, 1.2)[::-1]])), look.shoes))
        layers.append((view.project(np.stack(neckline)), shade(look.skin, 0.92)))
    return layers
