import dataclasses
import json

import pytest

from transformers_detrpose.keypoint_schemas import (
    COCO_PERSON,
    CROWDPOSE_PERSON,
    DEFAULT_SIGMA,
    SCHEMAS,
    KeypointSchema,
    find_flip_pairs,
    unite_schemas,
)

# As in CrowdPose's files: COCO's edges, counted from 1, for 14 keypoints.
COCO_SKELETON = [[start + 1, end + 1] for start, end in COCO_PERSON.edges]


class TestKnownSchemas:
    @pytest.mark.parametrize("schema, num_keypoints", [(COCO_PERSON, 17), (CROWDPOSE_PERSON, 14)])
    def test_size(self, schema, num_keypoints):
        assert schema.num_keypoints == len(schema.names) == len(schema.sigmas) == num_keypoints

    @pytest.mark.parametrize("schema", SCHEMAS.values())
    def test_symmetry(self, schema):
        assert find_flip_pairs(schema.names) == schema.flip_pairs
        permutation = schema.flip_permutation
        assert tuple(permutation[index] for index in permutation) == tuple(range(schema.num_keypoints))
        assert tuple(schema.sigmas[index] for index in permutation) == schema.sigmas
        mirrored_edges = {frozenset(permutation[index] for index in edge) for edge in schema.edges}
        assert mirrored_edges == {frozenset(edge) for edge in schema.edges}

    def test_same_keypoints_have_the_same_sigma(self):
        sigma = dict(zip(COCO_PERSON.names, COCO_PERSON.sigmas, strict=True))
        limbs = [name for name in CROWDPOSE_PERSON.names if name not in ("head", "neck")]
        assert [sigma[name] for name in limbs] == list(CROWDPOSE_PERSON.sigmas[:12])
        assert CROWDPOSE_PERSON.sigmas[12:] == (0.079, 0.079)


class TestKeypointSchema:
    def test_flip_permutation(self):
        schema = KeypointSchema(names=("nose", "left", "right", "tail"), flip_pairs=((1, 2),))
        assert schema.flip_permutation == (0, 2, 1, 3)

    def test_only_names_are_needed(self):
        schema = KeypointSchema(names=("a", "b"))
        assert (schema.edges, schema.flip_pairs, schema.sigmas) == ((), (), (DEFAULT_SIGMA,) * 2)

    def test_lists_become_tuples(self):
        fields = {"names": ["a", "b"], "edges": [[0, 1]], "flip_pairs": [[0, 1]], "sigmas": [1, 0.5]}
        schema = KeypointSchema(**fields)
        assert schema.edges == ((0, 1),) and schema.sigmas == (1.0, 0.5)
        assert hash(schema) == hash(KeypointSchema(**fields))
        fields["names"].append("c")
        assert schema.names == ("a", "b")
        with pytest.raises(dataclasses.FrozenInstanceError):
            schema.names = ("c",)

    @pytest.mark.parametrize("schema", [*SCHEMAS.values(), KeypointSchema(names=("é", "ü"), edges=((0, 1),))])
    def test_round_trip_through_json(self, schema):
        assert KeypointSchema.of(json.loads(json.dumps(schema.to_dict()))) == schema

    @pytest.mark.parametrize(
        "fields, message",
        [
            ({"names": ()}, "`names` is empty"),
            ({"names": "nose"}, "`names` must be a list of names, but got 'nose'"),
            ({"names": ["a", ["b"]]}, "`names` must be a list of names, but got"),
            ({"names": ["a", None]}, "`names` must be a list of names, but got"),
            ({"names": None}, "`names` must be a list of names, but got None"),
            ({"names": ("a", "b", "a")}, r"`names` must be distinct, but \['a'\] appear more than once"),
            ({"edges": ((0, 3),)}, r"`edges` must hold .* from 0 to 2, but got \(0, 3\)"),
            ({"edges": ((-1, 0),)}, r"`edges` must hold .* from 0 to 2, but got \(-1, 0\)"),
            ({"edges": ((1, 1),)}, r"`edges` must hold pairs of two different .* but got \(1, 1\)"),
            ({"edges": ((0, 1, 2),)}, r"`edges` must be a list of pairs .* but got \(\(0, 1, 2\),\)"),
            ({"edges": ((0, 0.5),)}, "`edges` must be a list of pairs of keypoint indices"),
            ({"edges": (("a", "b"),)}, "`edges` must be a list of pairs of keypoint indices"),
            ({"edges": 5}, "`edges` must be a list of pairs of keypoint indices, but got 5"),
            ({"flip_pairs": ((0, 7),)}, r"`flip_pairs` must hold .* but got \(0, 7\)"),
            ({"flip_pairs": ((0, 1), (1, 2))}, "`flip_pairs` may hold each keypoint once"),
            ({"sigmas": (0.1, 0.1)}, "`sigmas` has 2 values, but there are 3 keypoints"),
            ({"sigmas": (0.1, 0.1, 0.0)}, "`sigmas` must be positive and finite, but got 0.0"),
            ({"sigmas": (0.1, 0.1, float("nan"))}, "`sigmas` must be positive and finite, but got nan"),
            ({"sigmas": (0.1, 0.1, None)}, "`sigmas` must be a list of numbers"),
            ({"sigmas": 0.1}, "`sigmas` must be a list of numbers, but got 0.1"),
        ],
    )
    def test_impossible_fields(self, fields, message):
        with pytest.raises(ValueError, match=message):
            KeypointSchema(**{"names": ("a", "b", "c"), **fields})


class TestOf:
    def test_forms(self):
        schema = KeypointSchema(names=("a", "b"), edges=((0, 1),))
        assert KeypointSchema.of(schema) is schema
        assert KeypointSchema.of(schema.to_dict()) == schema
        assert KeypointSchema.of({"names": ["a"]}) == KeypointSchema(names=("a",))
        assert KeypointSchema.of("coco") is COCO_PERSON and KeypointSchema.of("crowdpose") is CROWDPOSE_PERSON

    @pytest.mark.parametrize("schema", ["mpii", "", 17, None, ["nose"]])
    def test_unknown(self, schema):
        with pytest.raises(ValueError, match="unknown skeleton .*: choose one of 'coco', 'crowdpose'"):
            KeypointSchema.of(schema)

    @pytest.mark.parametrize("fields", [{}, {"edges": []}, {"names": ["a"], "skeleton": []}])
    def test_wrong_fields(self, fields):
        with pytest.raises(ValueError, match="a keypoint schema has `names` and optionally .*, but got") as error:
            KeypointSchema.of(fields)
        assert str(list(fields)) in str(error.value)


@pytest.mark.parametrize(
    "names, pairs",
    [
        (("left_eye", "right_eye"), ((0, 1),)),
        (("right_eye", "nose", "left_eye"), ((2, 0),)),  # left first
        (("Left Eye", "Right Eye", "leftHand", "rightHand"), ((0, 1), (2, 3))),
        (("upper-left-lip", "upper-right-lip"), ((0, 1),)),
        (("l_ear", "r_ear", "L-hip", "R-hip", "l knee", "r knee", "l.toe", "r.toe"), ((0, 1), (2, 3), (4, 5), (6, 7))),
        (("ear_l", "ear_r", "Hip.L", "Hip.R"), ((0, 1), (2, 3))),
        (("left_eye", "nose"), ()),  # its counterpart is missing
        (("lip", "rip", "tail", "tair"), ()),  # an l that does not mean left
        (("left_eye", "r_eye"), ()),  # two naming schemes
        (("nose",), ()),
        ((), ()),
    ],
)
def test_find_flip_pairs(names, pairs):
    assert find_flip_pairs(names) == pairs


class TestFromCocoCategory:
    def test_unknown_names(self):
        category = {"name": "bird", "keypoints": ["beak", "left_wing", "right_wing"], "skeleton": [[1, 2], [1, 3]]}
        assert KeypointSchema.from_coco_category(category) == KeypointSchema(
            names=("beak", "left_wing", "right_wing"), edges=((0, 1), (0, 2)), flip_pairs=((1, 2),)
        )

    @pytest.mark.parametrize("schema", SCHEMAS.values())
    def test_known_names_give_the_known_schema(self, schema):
        category = {"name": "person", "keypoints": list(schema.names), "skeleton": COCO_SKELETON}
        assert KeypointSchema.from_coco_category(category) is schema
        reordered = {"name": "person", "keypoints": list(schema.names[::-1])}
        assert KeypointSchema.from_coco_category(reordered).sigmas == (DEFAULT_SIGMA,) * schema.num_keypoints

    @pytest.mark.parametrize("category", [{"name": "car"}, {"name": "car", "keypoints": []}])
    def test_without_keypoints(self, category):
        with pytest.raises(ValueError, match="category 'car' has no `keypoints`"):
            KeypointSchema.from_coco_category(category)

    @pytest.mark.parametrize("skeleton", [None, []])
    def test_without_skeleton(self, skeleton):
        category = {"name": "pen", "keypoints": ["tip", "end"], "skeleton": skeleton}
        assert KeypointSchema.from_coco_category(category).edges == ()

    @pytest.mark.parametrize("skeleton", [[[1, 3]], [[0, 1]], [[2, 2]], [[1]], [["tip", "end"]], 7])
    def test_skeleton_that_does_not_fit(self, skeleton):
        with pytest.raises(ValueError, match=r"`skeleton` of category 'pen' must (hold|be a list of) pairs"):
            KeypointSchema.from_coco_category({"name": "pen", "keypoints": ["tip", "end"], "skeleton": skeleton})


CAT = KeypointSchema(
    names=("tail", "nose", "r", "l"), edges=((0, 1),), flip_pairs=((3, 2),), sigmas=(0.1, 0.2, 0.3, 0.3)
)
FACE = KeypointSchema(names=("l", "nose", "r"), edges=((1, 2),), flip_pairs=((0, 2),), sigmas=(0.4, 0.5, 0.4))
CLASSES, NAMES = {1: FACE, 4: CAT}, {1: "face", 4: "cat"}


class TestUniteSchemas:
    def test_shared_keypoints(self):
        schema = unite_schemas(CLASSES, NAMES)
        assert schema.names == ("l", "nose", "r", "tail")
        assert schema.edges == ((1, 2), (3, 1)) and schema.flip_pairs == ((0, 2),)
        assert schema.sigmas == (0.4, 0.5, 0.4, 0.1)  # of the first class that has the keypoint
        assert [(own.schema, own.indices) for own in schema.classes.values()] == [
            (FACE, (0, 1, 2)),
            (CAT, (3, 1, 2, 0)),
        ]
        assert schema.of_class(4).edges == ((3, 1),)

    def test_own_keypoints(self):
        schema = unite_schemas(CLASSES, NAMES, share_keypoints=False)
        assert schema.names == ("face.l", "face.nose", "face.r", "cat.tail", "cat.nose", "cat.r", "cat.l")
        assert schema.edges == ((1, 2), (3, 4)) and schema.flip_pairs == ((0, 2), (6, 5))
        assert schema.sigmas == FACE.sigmas + CAT.sigmas
        assert [own.indices for own in schema.classes.values()] == [(0, 1, 2), (3, 4, 5, 6)]

    def test_flipping_permutes_the_keypoints_of_each_class_as_its_own_schema_does(self):
        for share in (True, False):
            schema = unite_schemas(CLASSES, NAMES, share)
            for label, alone in CLASSES.items():
                indices = schema.of_class(label).indices
                flipped = [schema.flip_permutation[index] for index in indices]
                assert flipped == [indices[index] for index in alone.flip_permutation]

    @pytest.mark.parametrize(
        "other, message",
        [
            (KeypointSchema(names=("l", "tip")), r"other partners for \['l'\] than those of class 4"),
            (KeypointSchema(names=("l", "x"), flip_pairs=((0, 1),)), "may hold each keypoint once"),
        ],
    )
    def test_keypoints_that_are_flipped_differently_cannot_be_shared(self, other, message):
        with pytest.raises(
            ValueError, match=rf"\['face', 'cat'\] cannot share keypoints .*{message}.* them apart with"
        ):
            unite_schemas({1: FACE, 4: other}, NAMES)
        assert unite_schemas({1: FACE, 4: other}, NAMES, share_keypoints=False).num_keypoints == 5

    def test_own_keypoints_of_classes_of_the_same_name(self):
        with pytest.raises(
            ValueError, match=r"must be distinct, but \['cat.l', 'cat.nose', 'cat.r'\] appear more than"
        ):
            unite_schemas(CLASSES, {1: "cat", 4: "cat"}, share_keypoints=False)


class TestClasses:
    @pytest.mark.parametrize("share", [True, False])
    def test_round_trip_through_json(self, share):
        schema = unite_schemas(CLASSES, NAMES, share)
        again = KeypointSchema.of(json.loads(json.dumps(schema.to_dict())))
        assert again == schema and hash(again) == hash(schema) and list(again.classes) == [1, 4]

    def test_nothing_is_written_without_classes(self):
        assert set(CAT.to_dict()) == {"names", "edges", "flip_pairs", "sigmas"}

    def test_labels_without_keypoints_of_their_own_have_all(self):
        schema = unite_schemas(CLASSES, NAMES)
        assert schema.of_class(0).schema is schema and schema.of_class(0).indices == (0, 1, 2, 3)
        assert CAT.of_class(7).schema is CAT and CAT.of_class(7).edges == CAT.edges

    def test_by_label(self):
        sigmas, is_own = unite_schemas(CLASSES, NAMES).by_label([4, 0, 1, 4])
        assert sigmas.tolist() == [
            [0.3, 0.2, 0.3, 0.1],
            [0.4, 0.5, 0.4, 0.1],
            [0.4, 0.5, 0.4, 0.1],
            [0.3, 0.2, 0.3, 0.1],
        ]
        assert is_own.tolist() == [[True] * 4, [True] * 4, [True, True, True, False], [True] * 4]
        assert [values.shape for values in unite_schemas(CLASSES, NAMES).by_label([])] == [(0, 4), (0, 4)]
        sigmas, is_own = CAT.by_label([4, 0])
        assert sigmas.tolist() == list(CAT.sigmas) and is_own is None

    @pytest.mark.parametrize(
        "classes, message",
        [
            ({}, "`classes` must map labels to the keypoints of each class, but got {}"),
            ([FACE], "`classes` must map labels to the keypoints of each class"),
            ({"face": {"schema": FACE, "indices": [0, 1, 2]}}, "integers of at least 0, as keys, but got 'face'"),
            ({-1: {"schema": FACE, "indices": [0, 1, 2]}}, "integers of at least 0, as keys, but got -1"),
            ({1: FACE}, "class 1 of `classes` must have a `schema` and `indices`"),
            ({1: {"schema": FACE}}, "class 1 of `classes` must have a `schema` and `indices`"),
            ({1: {"schema": FACE, "indices": [0, 1]}}, r"`indices` of class 1 must be different .* got \[0, 1\]"),
            ({1: {"schema": FACE, "indices": [0, 1, 1]}}, r"from 0 to 3, one for each of its 3 .* got \[0, 1, 1\]"),
            ({1: {"schema": FACE, "indices": [0, 1, 4]}}, r"from 0 to 3, .* got \[0, 1, 4\]"),
            ({1: {"schema": FACE, "indices": "012"}}, "must be different integers .* got '012'"),
            ({1: {"schema": FACE, "indices": [0, 3, 1]}}, r"other partners for \['l', 'r'\] than those of class 1"),
            ({1: {"schema": "mpii", "indices": [0]}}, "unknown skeleton 'mpii'"),
        ],
    )
    def test_impossible_classes(self, classes, message):
        fields = unite_schemas(CLASSES, NAMES).to_dict()
        with pytest.raises(ValueError, match=message):
            KeypointSchema.of({**fields, "classes": classes})

    def test_classes_of_classes(self):
        schema = unite_schemas(CLASSES, NAMES)
        with pytest.raises(ValueError, match="the schema of class 1 must have no `classes` itself"):
            KeypointSchema.of({**schema.to_dict(), "classes": {1: {"schema": schema, "indices": [0, 1, 2, 3]}}})
