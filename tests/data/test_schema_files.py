"""Keypoint schemas in files."""

import json

import pytest
import yaml

from transformers_detrpose import KeypointSchema
from transformers_detrpose.data import DataError, read_annotations, read_schema
from transformers_detrpose.data.schema_files import completed_schema
from transformers_detrpose.keypoint_schemas import COCO_PERSON

HAND = KeypointSchema(("wrist", "left_tip", "right_tip"), edges=((0, 1), (0, 2)), sigmas=(0.1, 0.02, 0.02))


@pytest.fixture
def write(tmp_path):
    def write(content, name="schema.json"):
        dump = yaml.safe_dump if name.endswith("yaml") else json.dumps
        (tmp_path / name).write_text(content if isinstance(content, str) else dump(content))
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["schema.json", "schema.yaml"])
def test_all_fields(write, name):
    assert KeypointSchema.of(read_schema(write(HAND.to_dict(), name))) == HAND


def test_some_fields(write):
    assert read_schema(write({"sigmas": [0.1]})) == {"sigmas": [0.1]}
    assert read_schema(None) is None
    assert KeypointSchema.of(read_schema("coco")) == COCO_PERSON


@pytest.mark.parametrize("first", [0, 1])
def test_a_category_of_a_coco_file(write, first):
    skeleton = [[start + first, end + first] for start, end in HAND.edges]
    fields = read_schema(write({"id": 1, "name": "hand", "keypoints": list(HAND.names), "skeleton": skeleton}))
    assert fields == {"names": HAND.names, "edges": HAND.edges}
    fields = read_schema(write(HAND.to_coco_category(1, "hand")))
    assert KeypointSchema.of(fields) == HAND


@pytest.mark.parametrize(
    "content, message",
    [
        (
            [],
            "schema.json: not a keypoint schema, which has some of names, edges, flip_pairs, sigmas, but it is a list",
        ),
        ({}, r"but it has \[\]"),
        ({"names": ["a"], "edge": []}, r"but it has \['names', 'edge'\]"),
        ({"keypoints": ["a"], "skeleton": [[1, 2]]}, r"schema.json: `skeleton` of category None must hold"),
        ("{", "schema.json: not a JSON or YAML file"),
    ],
)
def test_other_files(write, content, message):
    with pytest.raises(DataError, match=message):
        read_schema(write(content))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="lost.yaml"):
        read_schema(tmp_path / "lost.yaml")


class TestCompleted:
    def test_given_fields_come_first(self):
        given = {"edges": [[1, 2]], "flip_pairs": [], "sigmas": [0.3] * 3}
        assert completed_schema(given, HAND) == KeypointSchema(HAND.names, ((1, 2),), (), (0.3,) * 3)

    def test_then_those_of_the_dataset(self):
        own = KeypointSchema(("a", "b", "c"), edges=((0, 1),), flip_pairs=((1, 2),))
        assert completed_schema({"sigmas": [0.3] * 3}, own) == KeypointSchema(
            own.names, own.edges, own.flip_pairs, (0.3,) * 3
        )
        renamed = completed_schema({"names": HAND.names}, own)
        assert renamed == KeypointSchema(HAND.names, own.edges, own.flip_pairs)

    def test_then_those_that_names_tell(self):
        assert completed_schema({"names": HAND.names}, None).flip_pairs == ((1, 2),)
        numbers = KeypointSchema(tuple(f"keypoint_{index}" for index in range(17)))
        assert completed_schema({"names": COCO_PERSON.names}, numbers) == COCO_PERSON

    def test_without_names(self):
        with pytest.raises(ValueError, match="needs `names`, as the dataset has none"):
            completed_schema({"sigmas": [0.1]}, None)


class TestAnnotations:
    """What `read_annotations` makes of the fields."""

    def content(self, **category):
        return {"images": [], "annotations": [], "categories": [{"id": 1, "name": "hand", **category}]}

    def test_names_that_the_dataset_lacks(self):
        assert read_annotations(self.content(), HAND.to_dict()).schema == HAND
        with pytest.raises(DataError, match="annotations: a keypoint schema needs `names`"):
            read_annotations(self.content(), {"sigmas": [0.1]})

    def test_sigmas_that_the_dataset_lacks(self):
        content = self.content(keypoints=list(HAND.names), skeleton=[[1, 2], [1, 3]])
        assert read_annotations(content, {"sigmas": HAND.sigmas}).schema == KeypointSchema(
            HAND.names, HAND.edges, ((1, 2),), HAND.sigmas
        )
        with pytest.raises(DataError, match="annotations: `sigmas` has 1 values, but there are 3 keypoints"):
            read_annotations(content, {"sigmas": [0.1]})

    def test_other_keypoints(self):
        content = self.content(keypoints=list(HAND.names))
        with pytest.raises(DataError, match="category 'hand' has 3 keypoints, but `schema` has 17"):
            read_annotations(content, COCO_PERSON.to_dict())
        with pytest.raises(DataError, match="has them in another order"):
            read_annotations(content, {"names": HAND.names[::-1]})

    def test_content_that_has_been_read(self):
        annotations = read_annotations(self.content(keypoints=list(HAND.names)))
        assert read_annotations(annotations, {"sigmas": HAND.sigmas}).schema.sigmas == HAND.sigmas
