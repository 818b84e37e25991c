"""Poses of an articulated figure: random joint angles within human ranges, and the resulting joint positions.

Lengths are fractions of the figure's height and angles are degrees. Space has x to the viewer's right, y down and z
away from the viewer. An upright figure that faces the viewer looks along -z, and its left is at positive x.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ..keypoint_schemas import COCO_PERSON

FEET_HEIGHT = 0.04  # from the ankles to the ground
SIDES = (("left", 1), ("right", -1))  # with the sign of x on the body's axes

# Degrees within the range of a healthy adult; less for the spine, to look relaxed.
ARM_RANGES = {"flexion": (-50, 180), "abduction": (-20, 175), "rotation": (-90, 85), "bend": (0, 148)}
LEG_RANGES = {"flexion": (-30, 128), "abduction": (-20, 60), "rotation": (-35, 50), "bend": (0, 150)}
TRUNK_RANGES = {
    "spine_bend": (-25, 50),
    "spine_side": (-30, 30),
    "spine_twist": (-40, 40),
    "head_turn": (-70, 70),
    "head_nod": (-45, 50),
    "head_tilt": (-35, 35),
}


@dataclass(frozen=True)
class Limb:
    """Angles of an arm or a leg; all are 0 if it hangs straight down.

    Args:
        flexion: Upper arm or thigh raised to the front.
        abduction: Raised to the outside.
        rotation: Turned about its axis, so that an arm bends further inward, a leg further outward.
        bend: Of the elbow or the knee.
    """

    flexion: float = 0.0
    abduction: float = 0.0
    rotation: float = 0.0
    bend: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Angles of a figure; all are 0 if it stands upright and faces the viewer.

    Args:
        arms: The left and the right arm.
        legs: The left and the right leg.
        turn: About the vertical: at 90 it looks to the viewer's left, at 180 it shows its back.
        tilt: Positive if seen from above.
        roll: Clockwise in the image.
        lean: Of the hips to the front, together with trunk, head and legs.
        spine_bend: Of the chest against the hips, to the front.
        spine_side: Of the chest against the hips, to its left.
        spine_twist: Of the chest against the hips, to its right.
        head_turn: Of the head against the chest, to its right.
        head_nod: Of the head, down.
        head_tilt: Of the head, to its left shoulder.
    """

    arms: tuple[Limb, Limb] = (Limb(), Limb())
    legs: tuple[Limb, Limb] = (Limb(), Limb())
    turn: float = 0.0
    tilt: float = 0.0
    roll: float = 0.0
    lean: float = 0.0
    spine_bend: float = 0.0
    spine_side: float = 0.0
    spine_twist: float = 0.0
    head_turn: float = 0.0
    head_nod: float = 0.0
    head_tilt: float = 0.0


@dataclass(frozen=True)
class Body:
    """Proportions as fractions of the height.

    Args:
        head: From the chin to the top.
        neck: From the line between the shoulders to the chin.
        torso: From the line between the shoulders to that between the hips.
        shoulder: From the middle to a shoulder joint.
        hip: From the middle to a hip joint.
        upper_arm, forearm, hand, thigh, shank, foot: Lengths.
        build: Thickness of everything; 1 is average.
    """

    head: float = 0.135
    neck: float = 0.05
    torso: float = 0.29
    shoulder: float = 0.105
    hip: float = 0.055
    upper_arm: float = 0.165
    forearm: float = 0.15
    hand: float = 0.05
    thigh: float = 0.24
    shank: float = 0.245
    foot: float = 0.12
    build: float = 1.0


@dataclass(frozen=True)
class Skeleton:
    """A posed body in space, with the middle of its hips at the origin.

    Args:
        joints: Position (3,) of each COCO keypoint and of `neck`, `waist`, `hips`, `head`, `left_hand`, `left_heel`,
            `left_toe` and their right counterparts.
        hips, chest, skull: Rotation (3, 3) from the axes of that part of the body to those of space.
    """

    joints: dict[str, np.ndarray]
    hips: np.ndarray
    chest: np.ndarray
    skull: np.ndarray


def rotation(axis: str, degrees: float) -> np.ndarray:
    """Returns the rotation matrix (3, 3) about an axis: x turns y to z, y turns z to x, z turns x to y."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    if axis == "y":
        return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def skull_points(body: Body) -> dict[str, np.ndarray]:
    """Returns the positions of the head's five keypoints relative to its center, on its axes."""
    half = 0.5 * body.head
    points = {"nose": np.array([0, 0.15, -1.0]) * half}
    for side, sign in SIDES:
        points[f"{side}_eye"] = np.array([0.32 * sign, -0.08, -0.77]) * half
        points[f"{side}_ear"] = np.array([0.80 * sign, 0.06, 0.07]) * half
    return points


def find_joints(pose: Pose, body: Body) -> Skeleton:
    """Returns the joint positions of a body in a pose."""
    view = rotation("z", pose.roll) @ rotation("x", pose.tilt) @ rotation("y", pose.turn)
    hips = view @ rotation("x", pose.lean)
    chest = hips @ rotation("y", pose.spine_twist) @ rotation("z", pose.spine_side) @ rotation("x", pose.spine_bend)
    skull = chest @ rotation("y", pose.head_turn) @ rotation("z", pose.head_tilt) @ rotation("x", pose.head_nod)

    joints = {"hips": np.zeros(3), "waist": hips @ (0, -0.45 * body.torso, 0)}
    joints["neck"] = joints["waist"] + chest @ (0, -0.55 * body.torso, 0)
    chin = joints["neck"] + chest @ (0, -body.neck, 0)
    joints["head"] = chin + skull @ (0, -0.5 * body.head, -0.08 * body.head)
    for name, point in skull_points(body).items():
        joints[name] = joints["head"] + skull @ point
    for (side, sign), arm, leg in zip(SIDES, pose.arms, pose.legs, strict=True):
        joints |= _find_arm(side, sign, arm, body, joints["neck"], chest)
        joints |= _find_leg(side, sign, leg, body, hips)
    return Skeleton(joints=joints, hips=hips, chest=chest, skull=skull)


def _find_arm(side: str, sign: int, arm: Limb, body: Body, neck: np.ndarray, chest: np.ndarray) -> dict:
    upper = chest @ rotation("z", -sign * arm.abduction) @ rotation("x", -arm.flexion)
    raised = max(0.0, -(chest.T @ upper)[1, 1])  # the collarbone rises with an arm above the shoulder
    upper = upper @ rotation("y", sign * arm.rotation)
    lower = upper @ rotation("x", -arm.bend)
    shoulder = neck + chest @ (sign * (body.shoulder - 0.02 * raised), -0.04 * raised, 0)
    elbow = shoulder + upper @ (0, body.upper_arm, 0)
    wrist = elbow + lower @ (0, body.forearm, 0)
    hand = wrist + lower @ (0, body.hand, 0)
    return {f"{side}_shoulder": shoulder, f"{side}_elbow": elbow, f"{side}_wrist": wrist, f"{side}_hand": hand}


def _find_leg(side: str, sign: int, leg: Limb, body: Body, hips: np.ndarray) -> dict:
    upper = hips @ rotation("z", -sign * leg.abduction) @ rotation("x", -leg.flexion)
    upper = upper @ rotation("y", -sign * leg.rotation)
    lower = upper @ rotation("x", leg.bend)
    hip = hips @ (sign * body.hip, 0, 0)
    knee = hip + upper @ (0, body.thigh, 0)
    ankle = knee + lower @ (0, body.shank, 0)
    heel = ankle + lower @ (0, 0.022, 0.2 * body.foot)
    toe = ankle + lower @ (0.12 * sign * body.foot, 0.03, -0.75 * body.foot)
    return {
        f"{side}_hip": hip, f"{side}_knee": knee, f"{side}_ankle": ankle, f"{side}_heel": heel, f"{side}_toe": toe
    }  # fmt: skip


def keypoint_positions(skeleton: Skeleton) -> np.ndarray:
    """Returns the positions of COCO's keypoints, (17, 3), in COCO's order."""
    return np.stack([skeleton.joints[name] for name in COCO_PERSON.names])


def sample_body(rng: np.random.Generator) -> Body:
    """Returns the proportions of a random child or adult."""
    childlike = rng.uniform(0.5, 1) if rng.random() < 0.15 else rng.uniform(0, 0.15)
    body = Body(
        head=0.132 + 0.055 * childlike + rng.normal(0, 0.004),
        neck=0.05 - 0.01 * childlike,
        shoulder=rng.uniform(0.092, 0.118),
        hip=rng.uniform(0.048, 0.064),
        build=math.exp(rng.normal(0, 0.15)),
    )
    names = ("torso", "upper_arm", "forearm", "thigh", "shank")
    lengths = {name: getattr(body, name) * rng.uniform(0.93, 1.07) for name in names}
    # The total height is 1, so a large head leaves less for the rest.
    left = 1 - body.head - body.neck - FEET_HEIGHT
    factor = left / (lengths["torso"] + lengths["thigh"] + lengths["shank"])
    return replace(body, **{name: factor * length for name, length in lengths.items()})


def sample_pose(rng: np.random.Generator, upright: bool = False) -> Pose:
    """Returns a random pose: an activity, the posture of trunk and head, and the viewpoint.

    Args:
        rng: Random number generator.
        upright: Whether the figure stands or walks and roughly faces the viewer.
    """
    activities = {_stand: 0.27, _walk: 0.2, _run: 0.1, _sit: 0.12, _crouch: 0.08, _kneel: 0.05, _bow: 0.05, _lie: 0.06}
    activities[_move_freely] = 1 - sum(activities.values())
    if upright:
        activities = {_stand: 0.6, _walk: 0.4}
    activity = rng.choice(list(activities), p=list(activities.values()))
    trunk = {
        "spine_bend": rng.normal(5, 10),
        "spine_side": rng.normal(0, 8),
        "spine_twist": rng.normal(0, 10),
        "head_turn": rng.normal(0, 22),
        "head_nod": rng.normal(4, 12),
        "head_tilt": rng.normal(0, 7),
    }
    if rng.random() < 0.15:  # swings the other way round
        trunk["head_turn"] *= 2
    if upright:
        view = {"turn": rng.normal(0, 25), "roll": rng.normal(0, 5), "tilt": rng.normal(6, 7)}
    else:
        view = {"turn": _sample_turn(rng), "tilt": rng.normal(6, 7), "roll": _sample_roll(rng)}
    pose = activity(rng, Pose(**view, **trunk))
    if rng.random() < 0.5:  # the leading side of activities is the left
        pose = mirrored(pose)
    return _within_ranges(pose)


def mirrored(pose: Pose) -> Pose:
    """Returns the mirrored pose, with left and right swapped."""
    turned = ("turn", "roll", "spine_side", "spine_twist", "head_turn", "head_tilt")
    return replace(pose, arms=pose.arms[::-1], legs=pose.legs[::-1], **{name: -getattr(pose, name) for name in turned})


def _within_ranges(pose: Pose) -> Pose:
    def clip(limb, ranges):
        return type(limb)(**{name: float(np.clip(getattr(limb, name), *ends)) for name, ends in ranges.items()})

    trunk = {name: float(np.clip(getattr(pose, name), *ends)) for name, ends in TRUNK_RANGES.items()}
    arms, legs = (tuple(clip(x, r) for x in limbs) for limbs, r in ((pose.arms, ARM_RANGES), (pose.legs, LEG_RANGES)))
    return replace(pose, arms=arms, legs=legs, **trunk)


def _sample_turn(rng: np.random.Generator) -> float:
    """Returns a random turn of a figure: often to the front, the back or a side, sometimes any angle."""
    center, spread = [(0, 25), (180, 25), (90, 18), (-90, 18), (0, 180)][rng.choice(5, p=[0.36, 0.2, 0.13, 0.13, 0.18])]
    return rng.uniform(-spread, spread) if spread == 180 else rng.normal(center, spread)


def _sample_roll(rng: np.random.Generator) -> float:
    chance = rng.random()
    if chance < 0.02:
        return rng.uniform(-180, 180)
    return rng.uniform(-60, 60) if chance < 0.09 else rng.normal(0, 5)


def _sample_arm(rng: np.random.Generator) -> Limb:
    """Returns a random arm: hanging, raised, with the hand on the hip, or bent in front of the body."""
    uniform = rng.uniform
    kind = rng.choice(5, p=[0.42, 0.18, 0.14, 0.1, 0.16])
    if kind == 0:  # hanging
        return Limb(rng.normal(3, 16), uniform(3, 22), uniform(-10, 50), uniform(3, 40))
    if kind == 1:  # raised sideways
        return Limb(rng.normal(0, 10), uniform(60, 172), uniform(-90, 10), uniform(0, 90))
    if kind == 2:  # raised to the front
        return Limb(uniform(45, 175), uniform(-5, 30), uniform(-20, 40), uniform(0, 100))
    if kind == 3:  # hand on the hip
        return Limb(uniform(-25, -5), uniform(35, 52), uniform(60, 82), uniform(85, 112))
    return Limb(uniform(5, 45), uniform(0, 20), uniform(10, 75), uniform(60, 130))  # bent, as if holding something


def _sample_arms(rng: np.random.Generator) -> tuple[Limb, Limb]:
    left = _sample_arm(rng)
    return left, (replace(left, bend=left.bend + rng.normal(0, 5)) if rng.random() < 0.25 else _sample_arm(rng))


def _sample_leg(rng: np.random.Generator) -> Limb:
    return Limb(rng.normal(0, 7), rng.uniform(0, 14), rng.uniform(0, 25), abs(rng.normal(0, 8)))


def _stand(rng: np.random.Generator, pose: Pose) -> Pose:
    return replace(pose, arms=_sample_arms(rng), legs=(_sample_leg(rng), _sample_leg(rng)), lean=rng.normal(0, 3))


def _stride(rng: np.random.Generator, pose: Pose, stride: float, bend: float) -> Pose:
    """Returns a pose with legs and arms swinging in opposition by `stride`, and elbows bent by `bend`."""
    front = Limb(stride, rng.uniform(0, 6), 5, rng.uniform(0.1, 1.1) * stride)
    back = Limb(-0.5 * stride, rng.uniform(0, 6), 5, rng.uniform(0.3, 1.8) * stride)
    swing = stride * rng.uniform(0.6, 1.2)
    arms = tuple(Limb(sign * swing, rng.uniform(4, 14), rng.uniform(0, 30), bend) for sign in (-1, 1))
    if rng.random() < 0.3:
        arms = (arms[0], _sample_arm(rng))
    return replace(pose, arms=arms, legs=(front, back))


def _walk(rng: np.random.Generator, pose: Pose) -> Pose:
    return replace(_stride(rng, pose, rng.uniform(10, 32), rng.uniform(5, 45)), lean=rng.normal(3, 3))


def _run(rng: np.random.Generator, pose: Pose) -> Pose:
    return replace(_stride(rng, pose, rng.uniform(35, 65), rng.uniform(60, 110)), lean=rng.uniform(0, 20))


def _sit(rng: np.random.Generator, pose: Pose) -> Pose:
    flexion, bend, spread = rng.uniform(75, 100), rng.uniform(60, 105), rng.uniform(0, 25)
    legs = [Limb(flexion + rng.normal(0, 5), spread, rng.uniform(-5, 15), bend + rng.normal(0, 8)) for _ in range(2)]
    if rng.random() < 0.25:  # on the floor with a leg stretched out
        legs[1] = replace(legs[1], bend=rng.uniform(0, 20))
    arms = _sample_arms(rng)
    if rng.random() < 0.5:  # hands on the thighs
        arms = tuple(
            Limb(rng.uniform(10, 35), rng.uniform(0, 15), rng.uniform(0, 40), rng.uniform(35, 75)) for _ in "lr"
        )
    return replace(pose, arms=arms, legs=tuple(legs), lean=rng.uniform(-12, 12))


def _crouch(rng: np.random.Generator, pose: Pose) -> Pose:
    lean = rng.uniform(15, 45)
    legs = tuple(
        Limb(rng.uniform(95, 125), rng.uniform(3, 30), rng.uniform(0, 20), rng.uniform(115, 145)) for _ in "lr"
    )
    arms = tuple(Limb(rng.uniform(20, 90), rng.uniform(0, 20), rng.uniform(0, 30), rng.uniform(10, 90)) for _ in "lr")
    return replace(pose, arms=arms, legs=legs, lean=lean)


def _kneel(rng: np.random.Generator, pose: Pose) -> Pose:
    on_floor = Limb(rng.uniform(-5, 15), rng.uniform(0, 10), 0, rng.uniform(85, 110))
    other = Limb(rng.uniform(80, 100), rng.uniform(0, 15), 5, rng.uniform(80, 100)) if rng.random() < 0.6 else on_floor
    return replace(pose, arms=_sample_arms(rng), legs=(other, on_floor), lean=rng.uniform(-3, 10))


def _bow(rng: np.random.Generator, pose: Pose) -> Pose:
    lean = rng.uniform(25, 75)
    legs = tuple(Limb(lean + rng.normal(0, 4), rng.uniform(0, 12), 8, rng.uniform(0, 30)) for _ in "lr")
    arms = tuple(Limb(lean + rng.normal(0, 25), rng.uniform(0, 15), 10, rng.uniform(0, 40)) for _ in "lr")
    return replace(pose, arms=arms, legs=legs, lean=lean, spine_bend=rng.uniform(0, 35))


def _lie(rng: np.random.Generator, pose: Pose) -> Pose:
    pose = rng.choice([_stand, _walk, _sit, _move_freely])(rng, pose)
    return replace(pose, roll=rng.choice([-90, 90]) + rng.normal(0, 8), tilt=rng.normal(0, 10))


def _move_freely(rng: np.random.Generator, pose: Pose) -> Pose:
    """Returns a random pose, from dancing to gymnastics."""
    arms = tuple(Limb(*(rng.uniform(0.7 * low, 0.9 * high) for low, high in ARM_RANGES.values())) for _ in "lr")
    legs = tuple(Limb(*(rng.uniform(0.6 * low, 0.6 * high) for low, high in LEG_RANGES.values())) for _ in "lr")
    return replace(pose, arms=arms, legs=legs, lean=rng.normal(10, 15), spine_side=rng.normal(0, 14))
