"""Scenes of walking people before a moving camera: where all keypoints are at any time.

The ground has x to the right and z away from the camera, in metres; headings are angles about the vertical in radians,
0 along z and pi / 2 along x. Paths are splines, so that joints move smoothly at any frame rate.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline

from ..keypoint_schemas import COCO_PERSON
from .looks import Look, sample_look
from .poses import FEET_HEIGHT, Body, Limb, Pose, Skeleton, find_joints, keypoint_positions, sample_body
from .shapes import View

NEAREST, FARTHEST = 3.0, 14.0  # metres from the camera
STEP = 0.1  # seconds between the knots of a path
LEAST_DEPTH = 1.0  # metres; nearer people are not drawn
STRIDE_LENGTH = 0.8  # of two steps, in heights
TURNING = 2.5  # radians per second, the fastest turn
# What a person hides: (start, end, half the width in heights) of parts of the body, as names of keypoints.
_BONES = (
    *(
        (f"{side}_{start}", f"{side}_{end}", width)
        for side in ("left", "right")
        for start, end, width in (
            ("shoulder", "elbow", 0.035), ("elbow", "wrist", 0.025), ("hip", "knee", 0.045), ("knee", "ankle", 0.035),
            ("shoulder", "hip", 0.06),
        )
    ),
    ("left_shoulder", "right_hip", 0.05), ("right_shoulder", "left_hip", 0.05), ("left_ear", "right_ear", 0.06),
)  # fmt: skip
_BONE_ENDS = np.array([[COCO_PERSON.names.index(name) for name in bone[:2]] for bone in _BONES])
_BONE_WIDTHS = np.array([bone[2] for bone in _BONES])


@dataclass(frozen=True)
class Walker:
    """A person who walks, stands and turns.

    Args:
        body, look: Proportions and clothes.
        height: In metres.
        path: Spline over time of x, z, heading and distance walked.
        swing: Angle of arms relative to that of the legs.
        gestures: Amplitude (degrees), frequency (Hz) and phase of movements of head and arms, (6, 3).
    """

    body: Body
    look: Look
    height: float
    path: CubicSpline
    swing: float
    gestures: np.ndarray

    def pose(self, time: float, turn: float, tilt: float) -> Pose:
        """Returns the pose at a time, seen from a direction, see `Pose`."""
        distance, speed = float(self.path(time)[3]), float(self.path(time, 1)[3])
        phase = 2 * math.pi * distance / (STRIDE_LENGTH * self.height)
        stride = 22 * speed / (self.height * 0.8)
        amplitudes, frequencies, phases = self.gestures.T
        gesture = amplitudes * np.sin(2 * math.pi * frequencies * time + phases)
        legs, arms = [], []
        for side, sign in enumerate((1, -1)):
            swing = sign * math.sin(phase)
            lifted = max(0.0, sign * math.cos(phase)) ** 2  # the knee bends as the leg swings forward
            legs.append(Limb(flexion=stride * swing, abduction=3, rotation=5, bend=4 + 1.8 * stride * lifted))
            raised = max(0.0, gesture[side]) ** 2 / 60
            arms.append(
                Limb(-self.swing * stride * swing + raised, 8 + 0.1 * abs(gesture[side + 2]), 15, 15 + 0.6 * raised)
            )
        return Pose(
            arms=tuple(arms),
            legs=tuple(legs),
            turn=turn,
            tilt=tilt,
            lean=3 + 0.1 * stride,
            spine_twist=0.2 * stride * math.sin(phase),
            head_turn=gesture[4],
            head_nod=0.3 * gesture[5],
        )

    def hip_height(self, time: float) -> float:
        """Returns the height of the hips above the ground in metres, which falls with each step."""
        phase = 2 * math.pi * float(self.path(time)[3]) / (STRIDE_LENGTH * self.height)
        legs = self.body.thigh + self.body.shank + FEET_HEIGHT
        return self.height * legs * (1 - 0.01 * (1 - math.cos(2 * phase)))


@dataclass(frozen=True)
class Camera:
    """A camera that pans, shakes and moves sideways.

    Args:
        size: (height, width) of the image in pixels.
        focal_length: In pixels.
        height: Above the ground in metres.
        pitch: Downward angle in radians.
        swings: Amplitude, frequency (Hz) and phase of sines that move the camera, (n, 3) for each of pan (radians),
            pitch (radians) and sideways position (metres).
    """

    size: tuple[int, int]
    focal_length: float
    height: float
    pitch: float
    swings: tuple[np.ndarray, np.ndarray, np.ndarray]

    def motion(self, time: float) -> tuple[float, float, float]:
        """Returns pan and pitch in radians, and the sideways position in metres."""
        pan, pitch, shift = (
            float((amplitude * np.sin(2 * math.pi * frequency * time + phase)).sum())
            for amplitude, frequency, phase in map(np.transpose, self.swings)
        )
        return pan, self.pitch + pitch, shift

    def project(self, x: float, z: float, above: float, time: float) -> tuple[np.ndarray, float, float, float]:
        """Projects a point.

        Args:
            x, z, above: Position on the ground and height above it, in metres.
            time: In seconds.

        Returns:
            x, y in pixels; the depth in metres; and the azimuth and the downward angle of the line of sight in radians.
        """
        pan, pitch, shift = self.motion(time)
        right = (x - shift) * math.cos(pan) - z * math.sin(pan)
        forward = (x - shift) * math.sin(pan) + z * math.cos(pan)
        down = self.height - above
        depth = forward * math.cos(pitch) + down * math.sin(pitch)
        lower = down * math.cos(pitch) - forward * math.sin(pitch)
        center = 0.5 * np.array(self.size[::-1])
        position = center + self.focal_length * np.array([right, lower]) / max(depth, 1e-3)
        return position, depth, pan + math.atan2(right, forward), math.atan2(down, math.hypot(right, forward))


@dataclass(frozen=True)
class PlacedPerson:
    """A person in a frame.

    Args:
        track_id: The same in all frames, from 0.
        skeleton: Joints in space.
        hips: x, y in pixels of the middle of the hips.
        height: Standing height in pixels.
        depth: Distance from the camera in metres.
    """

    track_id: int
    skeleton: Skeleton
    hips: np.ndarray
    height: float
    depth: float

    @cached_property
    def keypoints(self) -> np.ndarray:
        """`np.ndarray` of shape `(17, 2)`: x, y in pixels."""
        return View(self.height, None).project(keypoint_positions(self.skeleton)) + self.hips


@dataclass(frozen=True)
class FrameTruth:
    """The n people in a frame, the farthest first.

    Args:
        time: In seconds.
        track_ids (`np.ndarray` of shape `(n,)`): int64, from 0.
        keypoints (`np.ndarray` of shape `(n, 17, 2)`): x, y in pixels, also of keypoints outside the image.
        inside (`np.ndarray` of shape `(n, 17)`): whether a keypoint is inside the image.
        hidden_by (`np.ndarray` of shape `(n, 17)`): index of the nearest person in front of a keypoint, or -1.
        heights (`np.ndarray` of shape `(n,)`): standing heights in pixels.
    """

    time: float
    track_ids: np.ndarray
    keypoints: np.ndarray
    inside: np.ndarray
    hidden_by: np.ndarray
    heights: np.ndarray

    @property
    def visible(self) -> np.ndarray:
        """`np.ndarray` of shape `(n, 17)`: whether a keypoint is inside the image and not hidden by another person."""
        return self.inside & (self.hidden_by < 0)


@dataclass(frozen=True)
class Scene:
    """People and a camera.

    Args:
        walkers: The people; the index is the `track_id`.
        camera: The camera.
    """

    walkers: list[Walker]
    camera: Camera

    def people(self, time: float) -> list[PlacedPerson]:
        """Returns the people of whom a keypoint is inside the image, the farthest first."""
        placed = [self._place(track_id, walker, time) for track_id, walker in enumerate(self.walkers)]
        placed = [person for person in placed if person and inside(person.keypoints, self.camera.size).any()]
        return sorted(placed, key=lambda person: -person.depth)

    def truth(self, time: float) -> FrameTruth:
        """Returns the keypoints of all people at a time, and who hides them."""
        people = self.people(time)
        keypoints = np.stack([person.keypoints for person in people]) if people else np.empty((0, 17, 2))
        heights = np.array([person.height for person in people])
        return FrameTruth(
            time=time,
            track_ids=np.array([person.track_id for person in people], dtype=np.int64),
            keypoints=keypoints,
            inside=inside(keypoints, self.camera.size),
            hidden_by=_find_hidden(keypoints, heights),
            heights=heights,
        )

    def _place(self, track_id: int, walker: Walker, time: float) -> PlacedPerson | None:
        x, z, heading, _ = walker.path(time).tolist()
        hips, depth, azimuth, elevation = self.camera.project(x, z, walker.hip_height(time), time)
        if depth < LEAST_DEPTH:
            return None
        turn = math.degrees(heading - azimuth) + 180  # at 0 the figure looks at the camera
        skeleton = find_joints(walker.pose(time, turn, math.degrees(elevation)), walker.body)
        return PlacedPerson(track_id, skeleton, hips, self.camera.focal_length * walker.height / depth, depth)


def inside(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns which keypoints (..., 2) are inside an image of a size (height, width)."""
    return ((keypoints >= 0) & (keypoints < np.array(size[::-1]))).all(axis=-1)


def sample_scene(
    rng: np.random.Generator, size: tuple[int, int], num_people: int, duration: float, crossing: bool = False
) -> Scene:
    """Returns a random scene.

    Args:
        rng: Random number generator.
        size: (height, width) of the image in pixels.
        num_people: Number of people.
        duration: In seconds.
        crossing: Whether people walk to and fro across the image, close to each other and always in the image; else
            they walk about, and leave the image and come back.
    """
    camera = _sample_camera(rng, size, crossing)
    return Scene([_sample_walker(each, camera, duration, crossing) for each in rng.spawn(num_people)], camera)


def _sample_camera(rng: np.random.Generator, size: tuple[int, int], crossing: bool) -> Camera:
    height = rng.uniform(1.2, 3.0)
    calm = 0.3 if crossing else 1.0

    def swings(slow, shake):  # a slow movement, and the trembling of a hand
        amplitudes = [calm * slow * rng.uniform(0.2, 1), *(shake * rng.uniform(0.2, 1, 2))]
        frequencies = [rng.uniform(0.04, 0.12), *rng.uniform(0.5, 2.5, 2)]
        return np.stack([amplitudes, frequencies, rng.uniform(0, 2 * math.pi, 3)], axis=1)

    return Camera(
        size=size,
        focal_length=1.2 * size[0],
        height=height,
        pitch=math.atan2(height - 0.9, 7.0),
        swings=(swings(0.2, 0.003), swings(0.01, 0.003), swings(1.0, 0.01)),
    )


def _sample_walker(rng: np.random.Generator, camera: Camera, duration: float, crossing: bool) -> Walker:
    frequencies = np.concatenate([rng.uniform(0.1, 0.4, 4), rng.uniform(0.05, 0.3, 2)])
    amplitudes = np.array([60, 60, 30, 30, 30, 30]) * rng.uniform(0, 1, 6)
    return Walker(
        body=replace(sample_body(rng), build=1.0),
        look=sample_look(rng),
        height=rng.uniform(1.5, 1.9),
        path=_sample_path(rng, camera, duration, crossing),
        swing=rng.uniform(0.5, 1.1),
        gestures=np.stack([amplitudes, frequencies, rng.uniform(0, 2 * math.pi, 6)], axis=1),
    )


def _sample_path(rng: np.random.Generator, camera: Camera, duration: float, crossing: bool) -> CubicSpline:
    """Returns the path of a person who walks from goal to goal, and stands for a while at some of them."""
    half_width = 0.5 * camera.size[1] / camera.focal_length  # per metre of distance
    lane, side = rng.uniform(4.5, 7.5), rng.choice((-1, 1))

    def sample_goal():
        nonlocal side
        if crossing:
            side = -side
            return np.array([side * rng.uniform(0.3, 0.75) * half_width * lane, lane + rng.normal(0, 0.3)])
        z = rng.uniform(NEAREST, FARTHEST)
        return np.array([rng.uniform(-1.5, 1.5) * half_width * z, z])

    position, goal, pause = sample_goal(), sample_goal(), 0.0
    heading, speed, distance = rng.uniform(-math.pi, math.pi), 0.0, 0.0
    pace = rng.uniform(0.8, 1.8)
    knots = []
    for _ in range(math.ceil(duration / STEP) + 2):
        knots.append([*position, heading, distance])
        way = goal - position
        turn = math.remainder(math.atan2(*way) - heading, 2 * math.pi)
        wanted = pace * max(0.2, math.cos(turn)) if pause <= 0 else 0.0
        speed += 0.25 * (wanted - speed)
        if pause <= 0:
            heading += max(-TURNING * STEP, min(TURNING * STEP, 0.4 * turn))
        pause -= STEP
        position = position + speed * STEP * np.array([math.sin(heading), math.cos(heading)])
        distance += speed * STEP
        if np.hypot(*way) < 0.5:
            goal = sample_goal()
            pause = rng.uniform(0.5, 2.5) if rng.random() < 0.3 else 0.0
    return CubicSpline(STEP * np.arange(len(knots)), np.array(knots))


def _find_hidden(keypoints: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Returns for keypoints (n, 17, 2) of people, the farthest first, the index of who hides them, (n, 17), or -1."""
    hidden_by = np.full(keypoints.shape[:2], -1)
    if not len(keypoints):
        return hidden_by
    margin = 0.06 * heights[:, None]
    low, high = keypoints.min(axis=1) - margin, keypoints.max(axis=1) + margin
    overlapping = ((low[:, None] < high[None]) & (low[None] < high[:, None])).all(axis=-1)
    for behind, front in zip(*np.triu(overlapping, 1).nonzero(), strict=True):  # the last in front is the nearest
        bones = keypoints[front][_BONE_ENDS]
        hidden = (_distances(keypoints[behind], bones) < _BONE_WIDTHS * heights[front]).any(axis=1)
        hidden_by[behind, hidden] = front
    return hidden_by


def _distances(points: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Returns the distances (n, m) of points (n, 2) from line segments (m, 2, 2)."""
    starts, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    offsets = points[:, None] - starts
    fraction = (offsets * along).sum(axis=-1) / np.maximum((along**2).sum(axis=-1), 1e-9)
    return np.linalg.norm(offsets - np.clip(fraction, 0, 1)[..., None] * along, axis=-1)
