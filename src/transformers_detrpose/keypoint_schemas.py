"""Keypoint schemas: the names of a skeleton's keypoints, and how it is drawn, flipped and scored.

A schema is stored in `config.json`, where the loss, augmentation, metrics, drawing and pipeline read it. Nothing in the
package infers a skeleton from its number of keypoints.
"""

import math
import operator
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

# The sigma of keypoints without a measured one: close to the mean of COCO's (0.062), so that scores stay comparable.
# `detrpose sigmas` estimates others.
DEFAULT_SIGMA = 0.05
# Area of a person relative to their bounding box, where there is no segmentation.
PERSON_TO_BOX_AREA = 0.53

# Of a keypoint, by COCO's value: 0 absent or not labeled, 1 labeled but not visible, 2 labeled and visible.
VISIBILITIES = ("absent", "occluded", "visible")


@dataclass(frozen=True)
class KeypointSchema:
    """The keypoints of one kind of object, in the order in which datasets and models store them.

    Args:
        names: One distinct name per keypoint.
        edges: Pairs of keypoint indices, from 0, that are connected when a pose is drawn.
        flip_pairs: Pairs of keypoint indices (left, right) that are swapped when an image is flipped.
        sigmas: Falloff σ of each keypoint's similarity, as in COCO's OKS: KS = exp(-d² / (2 · area · (2σ)²)).
            `DEFAULT_SIGMA` if not given.
        classes: The keypoints of each class by its label, if classes have different ones; the schema is then their
            union, see `unite_schemas`. Labels that are not listed have all keypoints.

    Raises:
        ValueError: if an index, name or sigma is invalid; the message says which.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] | None = None
    classes: "dict[int, ClassKeypoints] | None" = field(default=None, hash=False)

    def __post_init__(self):
        # JSON gives lists; tuples are hashable and immutable.
        object.__setattr__(self, "names", _distinct_names(self.names))
        object.__setattr__(self, "edges", _index_pairs("`edges`", self.edges, self.num_keypoints))
        object.__setattr__(self, "flip_pairs", _index_pairs("`flip_pairs`", self.flip_pairs, self.num_keypoints))
        object.__setattr__(self, "sigmas", _positive_sigmas(self.sigmas, self.num_keypoints))
        flipped = [index for pair in self.flip_pairs for index in pair]
        if len(set(flipped)) != len(flipped):
            raise ValueError(f"`flip_pairs` may hold each keypoint once, but got {list(self.flip_pairs)}.")
        object.__setattr__(self, "classes", _read_classes(self.classes, self))

    @property
    def num_keypoints(self) -> int:
        """`int`: the number of keypoints, K."""
        return len(self.names)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """`tuple[int]`: for each keypoint of a flipped image, its index before flipping."""
        permutation = list(range(self.num_keypoints))
        for left, right in self.flip_pairs:
            permutation[left], permutation[right] = right, left
        return tuple(permutation)

    def of_class(self, label: int) -> "ClassKeypoints":
        """Returns the keypoints of a class: its own, or all of them if classes do not differ."""
        own = None if self.classes is None else self.classes.get(label)
        return own or ClassKeypoints(self, tuple(range(self.num_keypoints)))

    def by_label(self, labels: Iterable[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the sigmas of poses, and which keypoints they have.

        Args:
            labels: n labels.

        Returns:
            The sigmas of each pose (n, K) float64, those of the union where its class lacks a keypoint, and whether its
            class has a keypoint (n, K) bool. If classes do not differ, the sigmas (K,) and `None`.
        """
        if self.classes is None:
            return np.array(self.sigmas), None
        labels, index = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
        sigmas = np.tile(self.sigmas, (len(labels), 1))
        is_own = np.zeros(sigmas.shape, dtype=bool)
        for row, label in enumerate(labels.tolist()):
            own = self.of_class(label)
            sigmas[row, own.indices], is_own[row, own.indices] = own.schema.sigmas, True
        return sigmas[index], is_own[index]

    def to_dict(self) -> dict[str, Any]:
        """Returns the schema as a dictionary of lists, for JSON."""
        fields = {
            "names": list(self.names),
            "edges": [list(edge) for edge in self.edges],
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": list(self.sigmas),
        }
        if self.classes is not None:
            fields["classes"] = {label: own.to_dict() for label, own in self.classes.items()}
        return fields

    def to_coco(self) -> dict[str, Any]:
        """Returns the `keypoints` and the `skeleton`, which counts from 1, of a category in a COCO file."""
        return {
            "keypoints": list(self.names),
            "skeleton": [[start + 1, end + 1] for start, end in self.edges],
        }

    @classmethod
    def of(cls, schema: "KeypointSchema | dict[str, Any] | str") -> "KeypointSchema":
        """Returns a schema, given as such, as the fields that `to_dict` returns, or as a known name.

        Args:
            schema: a `KeypointSchema`, a dictionary, or "coco" or "crowdpose".

        Raises:
            ValueError: if the fields are not those of a schema, or the name is unknown.
        """
        if isinstance(schema, cls):
            return schema
        if isinstance(schema, dict):
            accepted = {field.name for field in fields(cls)}
            if "names" not in schema or not set(schema) <= accepted:
                raise ValueError(
                    "a keypoint schema has `names` and optionally `edges`, `flip_pairs`, `sigmas` and `classes`, "
                    f"but got {list(schema)}."
                )
            return cls(**schema)
        if not isinstance(schema, str) or schema not in SCHEMAS:
            raise ValueError(
                f"unknown skeleton {schema!r}: choose one of {', '.join(map(repr, SCHEMAS))} or give a KeypointSchema."
            )
        return SCHEMAS[schema]

    @classmethod
    def from_coco_category(cls, category: dict[str, Any]) -> "KeypointSchema":
        """Returns the schema of one of the `categories` in a COCO file.

        COCO files contain names and edges (`skeleton`, with indices from 1), but neither flip pairs nor sigmas. Pairs
        are names that differ only in `left` and `right` (or a leading or trailing `l` and `r`). If a known schema has
        the same names, it is returned; otherwise sigmas are `DEFAULT_SIGMA`. The fields `flip_pairs` (indices from 0)
        and `sigmas`, which other readers ignore and `to_coco_category` writes, replace both.

        Args:
            category: a dictionary with `keypoints` (names) and optionally `skeleton`, `flip_pairs` and `sigmas`.

        Raises:
            ValueError: if the category has no keypoints, or the other fields do not match them.
        """
        label = category.get("name")
        if not category.get("keypoints"):
            raise ValueError(f"category {label!r} has no `keypoints`: it does not describe poses.")
        names = _distinct_names(category["keypoints"])
        own = {name: category[name] for name in ("flip_pairs", "sigmas") if category.get(name) is not None}
        known = next((known for known in SCHEMAS.values() if known.names == names), None)
        if known is not None and not own:
            return known
        field, skeleton = f"`skeleton` of category {label!r}", category.get("skeleton") or ()
        edges = tuple((start - 1, end - 1) for start, end in _index_pairs(field, skeleton, len(names), first=1))
        usual = {"flip_pairs": find_flip_pairs(names), "sigmas": None if known is None else known.sigmas}
        return cls(names=names, edges=edges, **{**usual, **own})

    def to_coco_category(self, category_id: int, name: str) -> dict[str, Any]:
        """Returns an entry of the `categories` of a COCO file, which `from_coco_category` reads without loss.

        Args:
            category_id: its `id`.
            name: its `name`.
        """
        skeleton = [[start + 1, end + 1] for start, end in self.edges]
        own = {"flip_pairs": [list(pair) for pair in self.flip_pairs], "sigmas": list(self.sigmas)}
        return {"id": category_id, "name": name, "keypoints": list(self.names), "skeleton": skeleton, **own}


@dataclass(frozen=True)
class ClassKeypoints:
    """The keypoints of one class among those of a model.

    Args:
        schema: The names, edges, flip pairs and sigmas of the class, in its own order.
        indices: The index of each of these keypoints in the schema of the model.
    """

    schema: KeypointSchema
    indices: tuple[int, ...]

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """`tuple[tuple[int, int]]`: the edges of the class as indices in the schema of the model."""
        return tuple((self.indices[start], self.indices[end]) for start, end in self.schema.edges)

    def to_dict(self) -> dict[str, Any]:
        """Returns the keypoints as a dictionary of lists, for JSON."""
        return {"schema": self.schema.to_dict(), "indices": list(self.indices)}


def unite_schemas(
    schemas: Mapping[int, KeypointSchema], names: Mapping[int, str], share_keypoints: bool = True
) -> KeypointSchema:
    """Returns a schema that has the keypoints of several classes, for a model that predicts all of them.

    Args:
        schemas: The keypoints of each class by its label.
        names: The name of each class by its label.
        share_keypoints: Whether keypoints of the same name in several classes are one keypoint of the model, such as
            the nose of people and dogs. Otherwise each class has its own, named after it: "dog.nose".

    Raises:
        ValueError: if a shared keypoint would be flipped differently in two classes.
    """
    keys = {label: [(None if share_keypoints else label, name) for name in own.names] for label, own in schemas.items()}
    index_of: dict[tuple, int] = {}
    for key in sum(keys.values(), []):
        index_of.setdefault(key, len(index_of))
    classes = {
        label: ClassKeypoints(schema, tuple(index_of[key] for key in keys[label])) for label, schema in schemas.items()
    }
    sigmas: dict[int, float] = {}
    for own in reversed(classes.values()):  # those of the first class where classes differ
        sigmas |= dict(zip(own.indices, own.schema.sigmas, strict=True))
    try:
        return KeypointSchema(
            names=tuple(name if label is None else f"{names[label]}.{name}" for label, name in index_of),
            edges=tuple(dict.fromkeys(edge for own in classes.values() for edge in own.edges)),
            flip_pairs=_united_pairs(classes.values()),
            sigmas=tuple(sigmas[index] for index in range(len(index_of))),
            classes=classes,
        )
    except ValueError as error:
        if not share_keypoints:
            raise
        raise ValueError(
            f"the classes {list(names.values())} cannot share keypoints of the same name, as {str(error).rstrip('.')}: "
            "keep them apart with `share_keypoints=False`, in commands `--no-share-keypoints`."
        ) from error


def _united_pairs(classes: Iterable[ClassKeypoints]) -> tuple[tuple[int, int], ...]:
    """Returns the flip pairs of all classes, each once, as indices in the schema of the model."""
    pairs = {}
    for own in classes:
        for pair in own.schema.flip_pairs:
            left, right = (own.indices[index] for index in pair)
            pairs.setdefault(frozenset((left, right)), (left, right))
    return tuple(pairs.values())


def _read_classes(classes, union: KeypointSchema) -> dict[int, ClassKeypoints] | None:
    """Returns the classes of a schema, given as such or as JSON gives them, after checking them."""
    if classes is None:
        return None
    if not isinstance(classes, Mapping) or not classes:
        raise ValueError(f"`classes` must map labels to the keypoints of each class, but got {classes!r}.")
    return {_label(label): _read_class(label, own, union) for label, own in classes.items()}


def _label(label) -> int:
    text = str(label)
    if isinstance(label, bool) or not text.isdecimal():
        raise ValueError(f"`classes` must have labels, integers of at least 0, as keys, but got {label!r}.")
    return int(text)


def _read_class(label, own, union: KeypointSchema) -> ClassKeypoints:
    if isinstance(own, ClassKeypoints):
        schema, indices = own.schema, own.indices
    elif isinstance(own, Mapping) and set(own) == {"schema", "indices"}:
        schema, indices = KeypointSchema.of(own["schema"]), own["indices"]
    else:
        raise ValueError(f"class {label} of `classes` must have a `schema` and `indices`, but got {reprlib.repr(own)}.")
    if schema.classes is not None:
        raise ValueError(f"the schema of class {label} must have no `classes` itself.")
    is_list = isinstance(indices, (list, tuple)) and all(type(index) is int for index in indices)
    accepted = range(union.num_keypoints)
    if not is_list or not set(indices) <= set(accepted) or not len(set(indices)) == len(indices) == len(schema.names):
        raise ValueError(
            f"`indices` of class {label} must be different integers from 0 to {accepted[-1]}, one for each of its "
            f"{schema.num_keypoints} keypoints, but got {reprlib.repr(indices)}."
        )
    own, flipped = ClassKeypoints(schema, tuple(indices)), union.flip_permutation
    mirrored = [own.indices[index] for index in schema.flip_permutation]
    moved = [
        name for name, index, other in zip(schema.names, indices, mirrored, strict=True) if flipped[index] != other
    ]
    if moved:
        raise ValueError(f"`flip_pairs` have other partners for {moved} than those of class {label}.")
    return own


def _distinct_names(names) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"`names` must be a list of names, but got {names!r}.")
    names = tuple(names)
    if not all(isinstance(name, (str, int)) for name in names):
        raise ValueError(f"`names` must be a list of names, but got {reprlib.repr(names)}.")
    names = tuple(map(str, names))
    if not names:
        raise ValueError("`names` is empty: a keypoint schema needs at least one keypoint.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"`names` must be distinct, but {repeated} appear more than once.")
    return names


def _index_pairs(field: str, pairs, num_keypoints: int, first: int = 0) -> tuple[tuple[int, int], ...]:
    try:
        pairs = tuple((operator.index(start), operator.index(end)) for start, end in pairs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field} must be a list of pairs of keypoint indices, but got {pairs!r}.") from error
    accepted = range(first, first + num_keypoints)
    for start, end in pairs:
        if start == end or start not in accepted or end not in accepted:
            raise ValueError(
                f"{field} must hold pairs of two different keypoint indices from {accepted[0]} to {accepted[-1]}, "
                f"but got {(start, end)}."
            )
    return pairs


def _positive_sigmas(sigmas, num_keypoints: int) -> tuple[float, ...]:
    if sigmas is None:
        return (DEFAULT_SIGMA,) * num_keypoints
    try:
        sigmas = tuple(float(sigma) for sigma in sigmas)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`sigmas` must be a list of numbers, but got {sigmas!r}.") from error
    if len(sigmas) != num_keypoints:
        raise ValueError(f"`sigmas` has {len(sigmas)} values, but there are {num_keypoints} keypoints.")
    for sigma in sigmas:
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"`sigmas` must be positive and finite, but got {sigma}.")
    return sigmas


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
    """Returns the (left, right) pairs among keypoint names, such as `left_eye` and `right_eye` or `l_ear` and `r_ear`.

    Args:
        names: the keypoints' names.

    Returns:
        Pairs of indices, left first, in the order of the left keypoints.
    """
    index_of = {name.lower(): index for index, name in enumerate(names)}
    pairs = ((index, index_of.get(_mirrored_name(name))) for index, name in enumerate(names))
    return tuple((left, right) for left, right in pairs if right is not None)


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

# CrowdPose's files contain COCO's `skeleton`, whose indices do not match; these edges connect the same limbs.
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
