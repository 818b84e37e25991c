"""Keypoint schemas: what a skeleton is called, how it is drawn, flipped and scored.

A schema travels inside `config.json`; the loss, the augmentation, the metric, the drawing and the pipeline read it from
there. Nothing in the package recognises a skeleton by the number of its keypoints.
"""

import json
import math
from dataclasses import dataclass
from os import PathLike
from typing import Any

# The fall-off of a keypoint nobody has measured: close to the mean of COCO's (0.062), so that scores stay comparable.
DEFAULT_SIGMA = 0.05


@dataclass(frozen=True)
class KeypointSchema:
    """The keypoints of one kind of object, in the order in which datasets and models store them.

    Args:
        names: One distinct name per keypoint.
        edges: Pairs of keypoint indices (from 0) joined by a line when a pose is drawn.
        flip_pairs: Pairs of keypoint indices (left, right) that trade places when an image is mirrored.
        sigmas: Fall-off of each keypoint's similarity, as in COCO's OKS: KS = exp(-d² / (2 · area · (2σ)²)). All
            `DEFAULT_SIGMA` when not given.

    Raises:
        ValueError: if an index, a name or a sigma is not usable; the message names it.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self):
        names = tuple(str(name) for name in self.names)
        sigmas = (DEFAULT_SIGMA,) * len(names) if self.sigmas is None else tuple(float(s) for s in self.sigmas)
        # Lists come from JSON; tuples compare, hash and cannot be edited in place.
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "edges", _index_pairs("edges", self.edges, len(names)))
        object.__setattr__(self, "flip_pairs", _index_pairs("flip_pairs", self.flip_pairs, len(names)))
        object.__setattr__(self, "sigmas", sigmas)

        if not names:
            raise ValueError("`names` is empty: a keypoint schema needs at least one keypoint.")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"`names` must be distinct, but {repeated} appear more than once.")
        if len(sigmas) != len(names):
            raise ValueError(f"`sigmas` has {len(sigmas)} values, but there are {len(names)} keypoints.")
        for name, sigma in zip(names, sigmas, strict=True):
            if not (math.isfinite(sigma) and sigma > 0):
                raise ValueError(f"`sigmas` must be positive and finite, but {name!r} has {sigma}.")
        flipped = [index for pair in self.flip_pairs for index in pair]
        if len(set(flipped)) != len(flipped):
            raise ValueError(f"`flip_pairs` may hold each keypoint once, but got {list(self.flip_pairs)}.")

    @property
    def num_keypoints(self) -> int:
        """`int`: number of keypoints, K."""
        return len(self.names)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """`tuple[int]`: for each keypoint of a mirrored image, the index it had before mirroring."""
        permutation = list(range(self.num_keypoints))
        for left, right in self.flip_pairs:
            permutation[left], permutation[right] = right, left
        return tuple(permutation)

    def to_dict(self) -> dict[str, Any]:
        """Returns the schema as lists, ready for JSON."""
        return {
            "names": list(self.names),
            "edges": [list(edge) for edge in self.edges],
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": list(self.sigmas),
        }

    @classmethod
    def from_coco_category(cls, category: dict[str, Any]) -> "KeypointSchema":
        """Reads the schema of one entry of a COCO file's `categories`.

        COCO files hold names and edges (`skeleton`, counted from 1) but neither pairs nor sigmas. Pairs are found by
        name: two names that differ only in `left` and `right` (or a leading or trailing `l` and `r`). Sigmas are taken
        from the known schema with the same names, else `DEFAULT_SIGMA`.

        Args:
            category: a dictionary with `keypoints` (names) and optionally `skeleton`.

        Raises:
            ValueError: if the category has no keypoints.
        """
        names = tuple(str(name) for name in category.get("keypoints") or ())
        if not names:
            raise ValueError(f"category {category.get('name')!r} has no `keypoints`: it does not describe poses.")
        for known in SCHEMAS.values():
            if known.names == names:
                return known
        edges = tuple((int(start) - 1, int(end) - 1) for start, end in category.get("skeleton") or ())
        return cls(names=names, edges=edges, flip_pairs=find_flip_pairs(names))


def _index_pairs(field: str, pairs, num_keypoints: int) -> tuple[tuple[int, int], ...]:
    pairs = tuple(tuple(int(index) for index in pair) for pair in pairs)
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= index < num_keypoints for index in pair):
            raise ValueError(
                f"`{field}` must hold pairs of two different keypoint indices from 0 to {num_keypoints - 1}, "
                f"but got {pair}."
            )
    return pairs


def _mirrored_name(name: str) -> str | None:
    lowered = name.lower()
    if "left" in lowered:
        return lowered.replace("left", "right")
    for separator in ("_", "-", " ", "."):
        if lowered.startswith("l" + separator):
            return "r" + lowered[1:]
        if lowered.endswith(separator + "l"):
            return lowered[:-1] + "r"
    return None


def find_flip_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Finds the (left, right) pairs among keypoint names, such as `left_eye` and `right_eye` or `l_ear` and `r_ear`.

    Args:
        names: the keypoints' names.

    Returns:
        Pairs of indices, left first, in the order of the left keypoints.
    """
    index_of = {name.lower(): index for index, name in enumerate(names)}
    pairs = ((index, index_of.get(_mirrored_name(name))) for index, name in enumerate(names))
    return tuple((left, right) for left, right in pairs if right is not None)


def read_coco_categories(annotation_file: str | PathLike) -> tuple[KeypointSchema, dict[int, str]]:
    """Reads the schema and the class names from the `categories` of a COCO keypoint file.

    Args:
        annotation_file: a COCO-format JSON file; every category in it must have the same keypoints.

    Returns:
        The schema, and `id2label`, which maps each category id of the file, and every smaller id that the file does not
        use (as "N/A"), to a name: labels are the file's own category ids.

    Raises:
        ValueError: if the file has no categories with keypoints or they differ in their keypoints.
    """
    with open(annotation_file, encoding="utf-8") as file:
        categories = [category for category in json.load(file).get("categories", []) if category.get("keypoints")]
    if not categories:
        raise ValueError(f"{annotation_file}: no entry of `categories` has `keypoints`.")
    schemas = {category["name"]: KeypointSchema.from_coco_category(category) for category in categories}
    if len(set(schemas.values())) > 1:
        raise ValueError(
            f"{annotation_file}: categories {sorted(schemas)} have different keypoints; "
            "one model predicts one skeleton, so use one file per skeleton."
        )
    id2label = {index: "N/A" for index in range(max(category["id"] for category in categories) + 1)}
    id2label.update({category["id"]: category["name"] for category in categories})
    return next(iter(schemas.values())), id2label


# fmt: off
COCO_PERSON = KeypointSchema(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
        0.089,
    ),
)

# The `skeleton` of CrowdPose's own files is COCO's, whose indices do not fit; these edges join the same limbs.
CROWDPOSE_PERSON = KeypointSchema(
    names=(
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck",
    ),
    edges=(
        (12, 13), (13, 0), (13, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (1, 7), (6, 7), (6, 8), (8, 10), (7, 9),
        (9, 11),
    ),
    flip_pairs=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    sigmas=(0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079),
)
# fmt: on

SCHEMAS = {"coco": COCO_PERSON, "crowdpose": CROWDPOSE_PERSON}
