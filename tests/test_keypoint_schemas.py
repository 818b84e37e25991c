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
    read_coco_categories,
)

# What CrowdPose's own files carry: COCO's edges, counted from 1, for 14 keypoints.
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
        (("left_eye", "nose"), ()),  # its counterpart is not there
        (("lip", "rip", "tail", "tair"), ()),  # an l that means nothing
        (("left_eye", "r_eye"), ()),  # two ways of saying it
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


class TestReadCocoCategories:
    @pytest.fixture
    def read(self, tmp_path):
        def read(content):
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / "annotations.json").write_text(text, encoding="utf-8")
            return read_coco_categories(tmp_path / "annotations.json")

        return read

    def test_one_category(self, read):
        person = {"id": 1, "name": "person", "keypoints": list(COCO_PERSON.names), "skeleton": COCO_SKELETON}
        assert read({"categories": [person]}) == (COCO_PERSON, {0: "N/A", 1: "person"})

    def test_crowdpose_has_a_broken_skeleton(self, read):
        person = {"id": 1, "name": "person", "keypoints": list(CROWDPOSE_PERSON.names), "skeleton": COCO_SKELETON}
        assert read({"categories": [person]}) == (CROWDPOSE_PERSON, {0: "N/A", 1: "person"})

    def test_several_categories(self, read):
        ears = {"keypoints": ["l_ear", "r_ear"], "skeleton": [[1, 2]]}
        categories = [
            {"id": 4, "name": "dog", **ears},
            {"id": 2, "name": "cat", **ears},
            {"id": 3, "name": "car"},  # without keypoints: none of ours
        ]
        schema, id2label = read({"images": [], "categories": categories})
        assert schema == KeypointSchema(names=("l_ear", "r_ear"), edges=((0, 1),), flip_pairs=((0, 1),))
        assert id2label == {0: "N/A", 1: "N/A", 2: "cat", 3: "N/A", 4: "dog"}

    def test_categories_of_the_same_name_with_different_keypoints(self, read):
        categories = [{"id": 0, "name": "cat", "keypoints": ["a"]}, {"id": 1, "name": "cat", "keypoints": ["b"]}]
        with pytest.raises(ValueError, match="have different keypoints"):
            read({"categories": categories})

    @pytest.mark.parametrize(
        "content, message",
        [
            ({"categories": [{"id": 1, "name": "car"}]}, "no entry of `categories` has `keypoints`"),
            ({"categories": []}, "no entry of `categories` has `keypoints`"),
            ({"images": []}, "not a COCO file"),
            ([{"image_id": 1, "score": 0.5}], "not a COCO file"),  # results
            ({"categories": {"1": "person"}}, "not a COCO file"),
            ({"categories": ["person"]}, "not a COCO file"),
            ({"categories": [{"id": 1, "keypoints": ["a"]}]}, "needs an integer `id` and a `name`"),
            ({"categories": [{"id": "1", "name": "cat", "keypoints": ["a"]}]}, "needs an integer `id` and a `name`"),
            ({"categories": [{"id": -1, "name": "cat", "keypoints": ["a"]}]}, "needs an integer `id` and a `name`"),
            (
                {"categories": [{"id": 1, "name": "cat", "keypoints": ["a", "b"], "skeleton": [[2, 3]]}]},
                r"`skeleton` of category 'cat' must hold .* from 1 to 2, but got \(2, 3\)",
            ),
            (
                {
                    "categories": [
                        {"id": 1, "name": "dog", "keypoints": ["a"]},
                        {"id": 2, "name": "cat", "keypoints": ["a", "b"]},
                    ]
                },
                r"categories \['cat', 'dog'\] have different keypoints",
            ),
            ("", "not a JSON file"),
            ("{'categories': []}", "not a JSON file"),
            ('{"categories": [', "not a JSON file"),
        ],
    )
    def test_unusable_files(self, content, message, read):
        with pytest.raises(ValueError, match=f"annotations.json: .*{message}"):
            read(content)

    def test_file_that_is_not_text(self, tmp_path):
        (tmp_path / "image.jpg").write_bytes(b"\xff\xd8\xff\xe0")
        with pytest.raises(ValueError, match="image.jpg: not a JSON file"):
            read_coco_categories(tmp_path / "image.jpg")

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="lost.json"):
            read_coco_categories(tmp_path / "lost.json")
        with pytest.raises(OSError, match=tmp_path.name):
            read_coco_categories(tmp_path)
