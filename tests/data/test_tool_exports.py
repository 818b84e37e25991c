"""Habits of annotation tools: each is read, and noted once."""

import copy
import logging

import pytest

from transformers_detrpose.data import CocoPoseDataset, DataError, check_dataset, read_annotations, read_coco_categories
from transformers_detrpose.data.tool_exports import find_file_names

NAMES = ["left_hand", "right_hand", "head"]
CATEGORY = {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 3], [2, 3]]}
PERSON = {"id": 7, "image_id": 4, "category_id": 1, "keypoints": [20, 10, 2, 40, 12, 1, 0, 0, 0], "num_keypoints": 2}
PERSON |= {"bbox": [10, 5, 40, 30], "area": 300.5, "iscrowd": 0}


def content(*people, category=CATEGORY, categories=None, images=None):
    people = [{"id": number, **PERSON, **person} for number, person in enumerate(people or ({},), 1)]
    people = [{**person, "id": number} for number, person in enumerate(people, 1)]
    people = [{key: value for key, value in person.items() if value is not ...} for person in people]
    images = images or [{"id": 4, "file_name": "4.png", "width": 64, "height": 48}]
    return {"images": images, "annotations": people, "categories": categories or [category]}


def notes(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_usual_is_not_noted(caplog):
    read_annotations(content({}, {"keypoints": [1, 2, 2, 0, 0, 0, 0, 0, 0]}))
    assert notes(caplog) == []


def test_no_counts_of_keypoints(caplog):
    with caplog.at_level(logging.INFO):
        annotations = read_annotations(
            content({"num_keypoints": ...}, {"num_keypoints": None, "keypoints": [1, 1, 2] * 3})
        )
    assert annotations.instances.num_keypoints.tolist() == [2, 3]
    assert "annotations: 2 annotations have no `num_keypoints`: labeled keypoints are counted." in caplog.text
    assert notes(caplog) == []  # nothing is guessed


@pytest.mark.parametrize("keypoints", [[20, 10, 40, 12.5, 0, 0], [[20, 10], [40, 12.5], [0, 0]]])
def test_no_visibility(caplog, keypoints):
    annotations = read_annotations(content({"keypoints": keypoints}, {"keypoints": [20, 10, 5, 6, 0, 3]}, {}))
    assert annotations.instances.keypoints[0].tolist() == [[20, 10, 2], [40, 12.5, 2], [0, 0, 0]]
    assert annotations.instances.keypoints[1].tolist() == [[20, 10, 2], [5, 6, 2], [0, 3, 2]]
    (note,) = notes(caplog)
    assert note.startswith("annotations: 2 annotations give only x and y of each keypoint")


def test_no_visibility_and_no_names(caplog):
    unnamed = {"id": 1, "name": "person"}
    annotations = read_annotations(content({"keypoints": [1, 2, 3, 4, 5, 6]}, category=unnamed), {"names": NAMES})
    assert annotations.instances.keypoints[0].tolist() == [[1, 2, 2], [3, 4, 2], [5, 6, 2]]


@pytest.mark.parametrize("keypoints", [[20, 10, 40, 12], [20, 10] * 6, ["1"] * 6, [None] * 6])
def test_other_numbers_of_values_are_refused(keypoints):
    with pytest.raises(DataError, match="`keypoints` must be x, y, visibility for each of 3 keypoints"):
        read_annotations(content({"keypoints": keypoints}))


def test_masks(caplog):
    rle = {"size": [48, 64], "counts": "ba0"}
    annotations = read_annotations(
        content({"segmentation": rle}, {"segmentation": {"counts": [1, 2], "size": [48, 64]}})
    )
    assert annotations.instances.areas.tolist() == [300.5] * 2


def test_annotations_that_repeat_another(caplog):
    empty = {"keypoints": [0] * 9}
    moved = {"keypoints": [21, 10, 2, 40, 12, 1, 0, 0, 0]}
    assert len(read_annotations(content({}, {}, {}, moved, empty, empty)).instances) == 6
    (note,) = notes(caplog)
    assert "2 annotations have exactly the keypoints of another one in the same image; all of them are kept" in note


@pytest.mark.parametrize("keypoints", [[], None, ...])
def test_a_box_beside_the_skeleton_of_the_same_person(keypoints, caplog):
    people = read_annotations(content({}, {"keypoints": keypoints, "num_keypoints": ...})).instances
    assert people.is_target.tolist() == people.is_counted.tolist() == [True, False]
    assert notes(caplog) == []


def test_keypoints_outside_and_areas_of_0(folder, caplog):
    image = folder.add_image()
    folder.annotate([[20, 10, 2], [70, 12, 2], [30, 30, 2]], image, area=0)
    dataset = CocoPoseDataset(*folder.arguments)
    check_dataset(dataset, progress=False)
    (note,) = notes(caplog)
    assert "keypoints more than a pixel outside the image" in note and "area of 0 or less" in note
    assert dataset[0]["visibility"].tolist() == [[2, 0, 2]] and dataset[0]["area"][0] > 0


@pytest.mark.parametrize("category_id", [0, 1])
def test_categories_count_from_0_or_1(category_id, caplog):
    annotations = read_annotations(content({"category_id": category_id}, category={**CATEGORY, "id": category_id}))
    assert annotations.id2label[category_id] == "person" and notes(caplog) == []


def test_categories_of_other_shapes(caplog):
    boxes = {"id": 2, "name": "car", "keypoints": [], "skeleton": []}
    annotations = read_annotations(content({}, {"category_id": 2, "keypoints": []}, categories=[CATEGORY, boxes]))
    assert annotations.categories == {1: "person"} and len(annotations.instances) == 1


class TestSkeleton:
    def edges(self, skeleton, **more):
        return read_annotations(content(category={**CATEGORY, "skeleton": skeleton, **more})).schema.edges

    @pytest.mark.parametrize("skeleton", [[], None])
    def test_none(self, skeleton, caplog):
        assert self.edges(skeleton) == () and notes(caplog) == []

    def test_from_1(self, caplog):
        assert self.edges([[1, 2], [2, 3]]) == ((0, 1), (1, 2)) and notes(caplog) == []

    def test_from_0(self, caplog):
        assert self.edges([[0, 1], [1, 2]]) == ((0, 1), (1, 2))
        (note,) = notes(caplog)
        assert "1 categories have a `skeleton` whose indices count from 0, not from 1 as in COCO" in note

    def test_one_tool_has_written_all_categories(self, caplog):
        other = {**CATEGORY, "id": 2, "name": "child", "skeleton": [[1, 2]]}
        categories = [{**CATEGORY, "skeleton": [[0, 1], [1, 2]]}, other]
        annotations = read_annotations(content(categories=categories))
        assert annotations.schema.edges == ((0, 1), (1, 2))
        assert "2 categories have a `skeleton` whose indices count from 0" in caplog.text

    def test_neither(self):
        with pytest.raises(DataError, match=r"from 1 to 3, but got \(0, 1\)"):
            self.edges([[0, 1], [2, 3]])

    def test_other_edges_of_the_same_keypoints(self, caplog):
        child = {**CATEGORY, "id": 2, "name": "child", "skeleton": [[3, 1], [1, 2]]}
        annotations = read_annotations(content({}, {"category_id": 2}, categories=[CATEGORY, child]))
        assert annotations.categories == {1: "person", 2: "child"}
        assert annotations.schema.edges == ((0, 2), (1, 2), (0, 1))
        assert "annotations: categories have the same keypoints, but other edges: all edges are drawn." in notes(caplog)

    def test_categories_alone(self, tmp_path):
        (tmp_path / "a.json").write_text(
            '{"categories": [{"id": 0.0, "name": "a", "keypoints": ["b"], "skeleton": []}]}'
        )
        assert read_coco_categories(tmp_path / "a.json")[1] == {0: "a"}


def test_ids_that_are_floats(caplog):
    images = [{"id": 4.0, "file_name": "4.png"}]
    annotations = read_annotations(
        content({"image_id": 4.0, "category_id": 1.0}, images=images, category={**CATEGORY, "id": 1.0})
    )
    assert annotations.images[0]["id"] == 4 and annotations.instances.category_ids.tolist() == [1]
    assert len(notes(caplog)) == 3 and all("taken for integers" in note for note in notes(caplog))  # of each list


def test_the_content_is_left_alone():
    given = content({"keypoints": [1, 2, 3, 4, 5, 6], "image_id": 4.0}, category={**CATEGORY, "skeleton": [[0, 1]]})
    before = copy.deepcopy(given)
    read_annotations(given)
    assert given == before


def test_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"categories": [{"id": 0, "name": "a", "keypoints": ["b"]}]}', encoding="utf-8-sig")
    assert read_coco_categories(file)[1] == {0: "a"}


class TestFileNames:
    @pytest.fixture
    def images(self, tmp_path):
        (tmp_path / "train").mkdir()
        for name in ("a.png", "train/b c.png", "1a2b3c4d-kept.png", "train/d.png"):
            (tmp_path / name).touch()
        return tmp_path

    @pytest.mark.parametrize(
        "name, found",
        [
            ("a.png", "a.png"),
            ("train/b c.png", "train/b c.png"),
            ("train\\b c.png", "train/b c.png"),
            ("train/b%20c.png", "train/b c.png"),
            ("images/train/b c.png", "train/b c.png"),
            ("/data/upload/3/a.png", "a.png"),
            ("../images/a.png", "a.png"),
            ("C:\\pictures\\a.png", "a.png"),
            ("/data/upload/3/0f1e2d3c-a.png", "a.png"),
            ("0f1e2d3c-a.png", "a.png"),
            ("1a2b3c4d-kept.png", "1a2b3c4d-kept.png"),
            ("/data/local-files/?d=photos%2Ftrain/d.png", "train/d.png"),
            ("https://example.org/photos/a.png?size=large", "a.png"),
            ("lost/e.png", "lost/e.png"),
            ("https://example.org/e.png", "https://example.org/e.png"),
        ],
    )
    def test_one(self, images, name, found, caplog):
        assert find_file_names(images, [name], "a.json") == [found]
        assert [f"such as {found} for {name}." in note for note in notes(caplog)] == [True] * (name != found)

    def test_two_names_are_not_one_file(self, images, caplog):
        names = ["left/a.png", "right/a.png", "other/d.png"]
        assert find_file_names(images, names, "a.json") == ["left/a.png", "right/a.png", "other/d.png"]
        names = ["left/a.png", "x/train/d.png"]
        assert find_file_names(images, names, "a.json") == ["a.png", "train/d.png"]
        assert notes(caplog) == [
            "a.json: 2 images are found under other names than the file gives, such as a.png for left/a.png."
        ]

    def test_in_a_dataset(self, folder, caplog):
        folder.add_image()
        folder.images[0]["file_name"] = "/data/upload/1/0123abcd-0.png"
        dataset = CocoPoseDataset(*folder.arguments)
        assert dataset[0]["image"].shape == (3, 48, 64) and dataset.image_name(0) == "image 1 (0.png)"
