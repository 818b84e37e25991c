"""The reader of annotation files: what it refuses, how it says so, and who is left."""

import copy
import json
import math

import pytest

from drawn_people import SCHEMA
from transformers_detrpose import KeypointSchema
from transformers_detrpose.data import CocoPoseDataset, DataError, read_annotations, read_coco_categories
from transformers_detrpose.evaluation import CocoKeypoints
from transformers_detrpose.keypoint_schemas import COCO_PERSON, CROWDPOSE_PERSON

# What CrowdPose's own files carry: COCO's edges, counted from 1, for 14 keypoints.
COCO_SKELETON = [[start + 1, end + 1] for start, end in COCO_PERSON.edges]

NAN = math.nan
CONTENT = {
    "images": [{"id": 4, "file_name": "4.png", "width": 64, "height": 48}, {"id": 9, "file_name": "9.png"}],
    "annotations": [
        {
            "id": 7,
            "image_id": 4,
            "category_id": 1,
            "keypoints": [20, 10, 2, 40, 12, 1, 0, 0, 0],
            "bbox": [10, 5, 40, 30],
            "area": 300.5,
            "iscrowd": 0,
            "num_keypoints": 2,
        },
        {"id": 8, "image_id": 9, "category_id": 1, "keypoints": [0] * 9, "bbox": [0, 0, 5, 5], "area": 9},
    ],
    "categories": [{"id": 1, "name": "person", "keypoints": list(SCHEMA.names)}, {"id": 3, "name": "tree"}],
}


def changed(key, index=0, **fields):
    """The content with some fields of one entry changed, or taken away if the new value is `...`."""
    content = copy.deepcopy(CONTENT)
    entry = content[key][index]
    entry.update(fields)
    content[key][index] = {field: value for field, value in entry.items() if value is not ...}
    return content


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "train.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_content(write):
    annotations = read_annotations(write(CONTENT))
    assert annotations.schema == SCHEMA.of(annotations.schema) and annotations.schema.names == SCHEMA.names
    assert annotations.categories == {1: "person"} and annotations.id2label == {0: "N/A", 1: "person"}
    people = annotations.instances
    assert people.names.tolist() == ["annotation 7 of image 4", "annotation 8 of image 9"]
    assert people.image_index.tolist() == [0, 1] and people.category_ids.tolist() == [1, 1]
    assert people.keypoints[0].tolist() == [[20, 10, 2], [40, 12, 1], [0, 0, 0]]
    assert people.boxes.tolist() == [[10, 5, 40, 30], [0, 0, 5, 5]] and people.areas.tolist() == [300.5, 9]
    assert people.is_target.tolist() == people.is_counted.tolist() == [True, False]
    assert [len(annotations.first_images(count).instances) for count in (0, 1, None)] == [0, 1, 2]


def test_content_is_left_alone():
    content = copy.deepcopy(CONTENT)
    read_annotations(content)
    assert content == CONTENT


# What is changed, and what the error says of it.
REFUSED = {
    "NaN in keypoints": (("annotations", 0, {"keypoints": [NAN, 10, 2] * 3}), r"7 .*`keypoints` .* \(nan at index 0\)"),
    # Not labelled, but pycocotools would look at it.
    "NaN, not labelled": (("annotations", 1, {"keypoints": [0] * 6 + [0, NAN, 0]}), r"8 of.*\(nan at index 7\)"),
    "NaN in visibility": (("annotations", 0, {"keypoints": [1, 1, NAN] * 3}), r"`keypoints` .* \(nan at index 2\)"),
    "visibility": (("annotations", 0, {"keypoints": [1, 1, 7] * 3}), r"visibilities .* 0, 1 or 2, but got \[7.0, 7.0"),
    "half a visibility": (("annotations", 0, {"keypoints": [1, 1, 0.5] * 3}), r"visibilities .* but got \[0.5, 0.5"),
    "huge coordinate": (("annotations", 0, {"keypoints": [1, 1e300, 2] * 3}), r"at most 1000000.*1e\+300 at index 1"),
    "too large for a float": (("annotations", 0, {"keypoints": [10**400] * 9}), "`keypoints` must be"),
    "too many keypoints": (("annotations", 0, {"keypoints": [1, 1, 2] * 4}), r"3 keypoints \(9 .* \(12 values\)"),
    "keypoints are a number": (("annotations", 0, {"keypoints": 5}), "`keypoints` must be .* but got 5"),
    "keypoints are text": (("annotations", 0, {"keypoints": "123456789"}), "`keypoints` .* got '123456789'"),
    "numbers are text": (("annotations", 0, {"keypoints": ["1", "1", "2"] * 3}), "`keypoints` .* got .'1', '1'"),
    "booleans": (("annotations", 0, {"keypoints": [True] * 9}), "`keypoints` .* got .True"),
    "null among keypoints": (("annotations", 0, {"keypoints": [1, None, 2] * 3}), "`keypoints` .* got .1, None"),
    "ragged keypoints": (("annotations", 0, {"keypoints": [[1, 2], [3]]}), "`keypoints` .* got"),
    "infinite box": (("annotations", 0, {"bbox": [1, 2, math.inf, 4]}), r"`bbox` .* \(inf at index 2\)"),
    "short box": (("annotations", 0, {"bbox": [1, 2, 3]}), r"`bbox` .* \(3 values\)"),
    "negative box": (("annotations", 0, {"bbox": [1, 2, -3, 4]}), "`bbox` .* no negative sizes.* got .1, 2, -3, 4"),
    "box is a dictionary": (("annotations", 0, {"bbox": {"x": 1}}), "`bbox` .* got {'x': 1}"),
    "NaN area": (("annotations", 1, {"area": NAN}), "8 of image 9: `area` must be a finite number .* got nan"),
    "area is text": (("annotations", 0, {"area": "large"}), "`area` .* got 'large'"),
    "area is a list": (("annotations", 0, {"area": [5]}), r"`area` .* got \[5\]"),
    "tiny area": (("annotations", 0, {"area": 1e-45}), "`area` must be 0 or at least 1e-06 .* got 1e-45"),
    "huge area": (("annotations", 0, {"area": 1e300}), r"`area` .* at most 1e\+12, but got 1e\+300"),
    "crowd is text": (("annotations", 0, {"iscrowd": "no"}), "`iscrowd` must be 0 or 1, but got 'no'"),
    "count is NaN": (("annotations", 0, {"num_keypoints": NAN}), "`num_keypoints` must be an integer .* got nan"),
    "negative count": (("annotations", 0, {"num_keypoints": -1}), "`num_keypoints` .* got -1"),
    "no category": (("annotations", 0, {"category_id": ...}), r"`category_id` must be one of .* \[1\], but got None"),
    "dangling category": (("annotations", 0, {"category_id": 2}), "`category_id` must be one of .* got 2"),
    "category is a list": (("annotations", 0, {"category_id": [1]}), r"`category_id` .* got \[1\]"),
    "keypoints of a tree": (("annotations", 0, {"category_id": 3}), "`category_id` must be one of .* got 3"),
    "dangling image": (("annotations", 0, {"image_id": 5}), "annotation 7: `image_id` must be the `id` of .* got 5"),
    "no image": (("annotations", 0, {"image_id": ...}), "`image_id` must be the `id` of .* got None"),
    "image is a dictionary": (("annotations", 0, {"image_id": {}}), "`image_id` must be the `id` of .* got {}"),
    "repeated annotation": (("annotations", 1, {"id": 7}), "7 of image 9: `id` must be .* no other .* got 7"),
    "annotation id is text": (("annotations", 0, {"id": "7"}), "number 0 of image 4: `id` must be .* got '7'"),
    "repeated image": (("images", 1, {"id": 4}), "image 4: `id` must be no other image's, but got 4"),
    "huge image id": (("images", 1, {"id": 2**63}), "image number 1: `id` must be an integer"),
    "image id is a fraction": (("images", 1, {"id": 4.5}), "image number 1: `id` must be an integer, but got 4.5"),
    "file name is a number": (("images", 0, {"file_name": 5}), "image 4: `file_name` must be a text, but got 5"),
    "no height": (("images", 0, {"height": 0}), "image 4: `height` must be a whole number of pixels, but got 0"),
    "width is NaN": (("images", 0, {"width": NAN}), "image 4: `width` must be a whole number of pixels, but got nan"),
    "crowd index": (("images", 0, {"crowdIndex": NAN}), "image 4: `crowdIndex` must be a number from 0 to 1"),
    "repeated category": (("categories", 1, {"id": 1}), "category number 1: `id` must be no other category's"),
    # A model has a class for every smaller number, too.
    "huge category": (
        ("categories", 0, {"id": 2**40}),
        "from 0 to 10000, but got 1099511627776",
    ),
    "category without a name": (("categories", 1, {"name": 3}), "category number 1: `name` must be a text, but got 3"),
    "names of keypoints": (("categories", 0, {"keypoints": 5}), "`names` must be a list of names, but got 5"),
    "names repeated": (("categories", 0, {"keypoints": ["a", "a", "b"]}), "`names` must be distinct"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_refused_alike_by_training_and_evaluation(write, tmp_path, change, message):
    key, index, fields = change
    path = write(changed(key, index, **fields))
    for read in (lambda: CocoPoseDataset(tmp_path, path), lambda: CocoKeypoints(path, SCHEMA)):
        with pytest.raises(DataError, match=f"train.json: .*{message}"):
            read()


def test_ten_problems_are_listed_and_the_rest_counted(write):
    content = copy.deepcopy(CONTENT)
    content["annotations"] = [{**CONTENT["annotations"][0], "id": number, "area": NAN} for number in range(20)]
    content["images"][1]["height"] = "tall"
    with pytest.raises(DataError) as caught:
        read_annotations(write(content))
    *problems, rest = str(caught.value).splitlines()
    assert len(problems) == 10 and all("train.json: " in line for line in problems)
    assert "image 9: `height`" in problems[0] and "annotation 8 of image 4: `area`" in problems[-1]
    assert rest == "... and 11 more problems."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("", "not a JSON file"),
        # Deeper than Python's own stack.
        ("[" * 100_000 + "]" * 100_000, "not a JSON file, or too deeply nested"),
        ('{"images": ' + "[" * 100_000, "not a JSON file, or too deeply nested"),
        ("[]", "not a COCO file, for `images` is missing or not a list of dictionaries; it is a list"),
        ("null", "not a COCO file, for `images` is missing"),
        (json.dumps({"a": 1}), r"`images` is missing or not a list of dictionaries; it has \['a'\]"),
        (json.dumps({**CONTENT, "images": None}), "`images` is missing or not a list"),
        (json.dumps({**CONTENT, "images": ["a.png"]}), "`images` is missing or not a list"),
        (json.dumps({**CONTENT, "annotations": {}}), "`annotations` is missing or not a list"),
        (json.dumps({**CONTENT, "annotations": None}), "`annotations` is missing or not a list"),
        (json.dumps({**CONTENT, "categories": [7]}), "`categories` is missing or not a list"),
        (
            json.dumps({**CONTENT, "categories": []}),
            "no entry of `categories` has `keypoints`: add their names, or give",
        ),
    ],
)
def test_files_in_another_format_are_refused(write, content, message):
    with pytest.raises(DataError, match="train.json: .*" + message):
        read_annotations(write(content))


class TestSchemaOfTheModel:
    def test_other_names(self, caplog):
        named = KeypointSchema(names=("a", "b", "c"))
        assert read_annotations(CONTENT, named).schema == named
        assert "keypoints ['left_hand', 'right_hand', 'head'] are taken for ['a', 'b', 'c']" in caplog.text

    def test_the_same_names_in_another_order(self):
        swapped = KeypointSchema(names=("right_hand", "left_hand", "head"))
        with pytest.raises(DataError, match=r"'person' has .* \['left_hand'.* another order: \['right"):
            read_annotations(CONTENT, swapped)

    def test_another_number(self):
        with pytest.raises(DataError, match="category 'person' has 3 keypoints, but `schema` has 17"):
            read_annotations(CONTENT, "coco")

    def test_categories_without_keypoints_of_any(self):
        content = {**CONTENT, "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "tree"}]}
        annotations = read_annotations(content, SCHEMA)
        assert annotations.categories == {1: "person", 3: "tree"} and len(annotations.instances) == 2

    def test_content_that_has_been_read(self):
        annotations = read_annotations(CONTENT)
        assert read_annotations(annotations) is annotations
        sharper = KeypointSchema(names=SCHEMA.names, sigmas=(0.01,) * 3)
        assert read_annotations(annotations, sharper).schema.sigmas == (0.01,) * 3


class TestLeniency:
    """What is accepted, because a box or an area can stand in for it or nothing depends on it."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"id": ...},
            {"bbox": ...},
            {"bbox": None, "area": None},
            {"bbox": [10, 5, 0, 30]},
            {"area": 0},
            {"iscrowd": ..., "num_keypoints": ...},
            {"iscrowd": True, "keypoints": ...},
            {"num_keypoints": 3},
        ],
    )
    def test_annotations(self, fields):
        assert len(read_annotations(changed("annotations", 0, **fields)).instances) == 2

    @pytest.mark.parametrize("fields", [{"height": ..., "width": None}, {"file_name": ...}, {"height": 48.0}])
    def test_images(self, fields):
        assert len(read_annotations(changed("images", 0, **fields)).images) == 2

    def test_test_sets_have_no_annotations(self):
        content = {key: value for key, value in CONTENT.items() if key != "annotations"}
        assert read_annotations(content).instances is None
        assert read_annotations(content).first_images(1).images == CONTENT["images"][:1]

    @pytest.mark.parametrize("keypoints", [..., [0] * 9])
    def test_categories_without_keypoints_are_left_out(self, keypoints):
        content = changed("annotations", 0, category_id=3, keypoints=keypoints, bbox="anywhere")
        assert read_annotations(content).instances.names.tolist() == ["annotation 8 of image 9"]


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
        schema, id2label = read({"categories": categories})
        assert (schema.names, id2label) == (("a", "b"), {0: "cat", 1: "cat"})
        assert [schema.of_class(label).indices for label in (0, 1)] == [(0,), (1,)]

    @pytest.mark.parametrize(
        "content, message",
        [
            ({"categories": [{"id": 1, "name": "car"}]}, "no entry of `categories` has `keypoints`"),
            ({"categories": []}, "no entry of `categories` has `keypoints`"),
            ({"images": []}, "not a COCO file"),
            ([{"image_id": 1, "score": 0.5}], "not a COCO file"),  # results
            ({"categories": {"1": "person"}}, "not a COCO file"),
            ({"categories": ["person"]}, "not a COCO file"),
            ({"categories": [{"id": 1, "keypoints": ["a"]}]}, "`name` must be a text, but got None"),
            ({"categories": [{"id": "1", "name": "cat", "keypoints": ["a"]}]}, "`id` must be an integer .* got '1'"),
            ({"categories": [{"id": -1, "name": "cat", "keypoints": ["a"]}]}, "`id` must be an integer .* got -1"),
            (
                {"categories": [{"id": 1, "name": "cat", "keypoints": ["a", "b"], "skeleton": [[2, 3]]}]},
                r"`skeleton` of category 'cat' must hold .* from 1 to 2, but got \(2, 3\)",
            ),
            (
                {
                    "categories": [
                        {"id": 1, "name": "dog", "keypoints": ["l_ear"]},
                        {"id": 2, "name": "cat", "keypoints": ["l_ear", "r_ear"]},
                    ]
                },
                r"classes \['dog', 'cat'\] cannot share keypoints of the same name, as .* partners for \['l_ear'\]",
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


class TestDifferentKeypoints:
    """Categories with different keypoints: a bird's left wing, right wing and beak, and a fish's tail and beak."""

    CATEGORIES = [
        {"id": 1, "name": "bird", "keypoints": ["left_wing", "right_wing", "beak"]},
        {"id": 3, "name": "fish", "keypoints": ["tail", "beak"], "skeleton": [[1, 2]]},
    ]

    def content(self, **changes):
        keypoints = {1: [1, 2, 2, 3, 4, 1, 5, 6, 2], 3: [7, 8, 2, 9, 9, 0]}
        annotations = [
            {"id": number, "image_id": 4, "category_id": label, "keypoints": keypoints[label], "bbox": [1, 1, 9, 9]}
            for number, label in enumerate([3, 1], start=1)
        ]
        return {"images": [{"id": 4}], "annotations": annotations, "categories": self.CATEGORIES, **changes}

    @pytest.mark.parametrize("share_keypoints", [True, False])
    def test_labels_are_those_of_the_union(self, share_keypoints):
        annotations = read_annotations(self.content(), share_keypoints=share_keypoints)
        nothing, tail = [0, 0, 0], [7, 8, 2]
        bird = [[1, 2, 2], [3, 4, 1], [5, 6, 2]]
        fish, last = ([*[nothing] * 3, tail], 1) if share_keypoints else ([*[nothing] * 3, tail, nothing], 2)
        assert annotations.instances.keypoints.tolist() == [fish, bird + [nothing] * last]
        assert annotations.instances.num_keypoints.tolist() == [1, 3]
        assert annotations.categories == {1: "bird", 3: "fish"}
        assert annotations.schema.of_class(3).schema.names == ("tail", "beak")

    def test_the_schema_of_a_model_decides(self):
        schema = read_annotations(self.content(), share_keypoints=False).schema
        annotations = read_annotations(self.content(categories=self.CATEGORIES[1:], annotations=[]), schema)
        assert annotations.schema == schema and annotations.categories == {3: "fish"}
        without_names = [{"id": 1, "name": "bird"}, {"id": 2, "name": "sky"}, {"id": 3, "name": "fish"}]
        annotations = read_annotations(self.content(categories=without_names), schema)
        assert annotations.instances.keypoints[0, 3].tolist() == [7, 8, 2] and 2 not in annotations.categories

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"id": 2}, "category 'fish' has the id 2, but `schema` has the classes"),
            ({"keypoints": ["beak", "tail"], "skeleton": []}, "'fish' has the keypoints .* in another order"),
            ({"keypoints": ["tail"], "skeleton": []}, "category 'fish' has 1 keypoints, but `schema` has 2"),
        ],
    )
    def test_other_keypoints_than_those_of_the_model(self, change, message):
        schema = read_annotations(self.content()).schema
        categories = [self.CATEGORIES[0], {**self.CATEGORIES[1], **change}]
        with pytest.raises(DataError, match=message):
            read_annotations(self.content(categories=categories), schema)

    def test_wrong_number_of_keypoints(self):
        content = self.content()
        content["annotations"][0]["keypoints"] = [1, 1, 2] * 3
        with pytest.raises(DataError, match="annotation 1 of image 4: .* each of 2 keypoints"):
            read_annotations(content)

    def test_annotations_read_without_the_schema_of_the_model(self):
        content, annotations = self.content(), read_annotations(self.content())
        assert read_annotations(annotations, annotations.schema).schema == annotations.schema
        birds = read_annotations(
            {**content, "categories": self.CATEGORIES[:1], "annotations": content["annotations"][1:]}
        )
        with pytest.raises(DataError, match="the file has 3 keypoints, but `schema` has 4"):
            read_annotations(birds, annotations.schema)
        swapped = read_annotations({**content, "categories": self.CATEGORIES[::-1]})
        with pytest.raises(DataError, match="in another order"):
            read_annotations(swapped, annotations.schema)
