"""YOLO pose datasets: what is read from them, and what is refused and how."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_detrpose import KeypointSchema
from transformers_detrpose.data import (
    CocoPoseDataset,
    DataError,
    check_dataset,
    read_annotations,
    read_coco_categories,
)
from transformers_detrpose.data.yolo_files import label_path
from transformers_detrpose.keypoint_schemas import COCO_PERSON
from yolo_folder import LINE, YoloFolder

BIRD = KeypointSchema(names=("keypoint_1", "keypoint_2", "keypoint_3"), flip_pairs=((1, 2),))


@pytest.fixture
def yolo(tmp_path):
    return YoloFolder(tmp_path)


def read(yolo, split="train", schema=None):
    return read_annotations(yolo.file, schema, split)


def test_names_of_a_known_skeleton_have_its_edges(yolo):
    """Also with `flip_idx`, which Ultralytics' files of COCO have."""
    yolo.content |= {"kpt_names": list(COCO_PERSON.names), "kpt_shape": [17, 3]}
    yolo.content["flip_idx"] = list(COCO_PERSON.flip_permutation)
    assert read_coco_categories(yolo.file)[0] == COCO_PERSON


class TestContent:
    def test_a_person(self, yolo):
        yolo.add("train/a.png", LINE)
        annotations = read(yolo)
        assert annotations.schema == BIRD and annotations.id2label == {0: "bird"}
        assert annotations.images == [{"id": 1, "file_name": "images/train/a.png", "height": 50, "width": 100}]
        assert annotations.image_folder == str(yolo.path)
        people = annotations.instances
        assert people.names.tolist() == ["labels/train/a.txt, line 1"]
        np.testing.assert_allclose(people.keypoints[0], [[20, 10, 2], [80, 30, 1], [0, 0, 0]])
        np.testing.assert_allclose(people.boxes[0], [20, 10, 60, 20])
        assert (
            np.isnan(people.areas[0]) and people.num_keypoints.tolist() == [2] and people.category_ids.tolist() == [0]
        )

    def test_two_numbers_for_each_keypoint(self, yolo):
        yolo.content["kpt_shape"] = [3, 2]
        yolo.add("train/a.png", "0 0.5 0.5 0.5 0.5 0.2 0.2 0 0 -1 -1", "0 0.5 0.5 0.5 0.5 0.2 0.2 0 0.4 -0.01 0.4")
        visibility = read(yolo).instances.keypoints[..., 2]
        assert visibility.tolist() == [[2, 0, 0], [2, 2, 2]]

    @pytest.mark.parametrize("labels", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
    def test_empty_files(self, yolo, labels, caplog):
        yolo.add("train/a.png", labels=labels)
        assert len(read(yolo).instances) == 0 and caplog.text == ""

    def test_windows_text(self, yolo):
        yolo.add("train/a.png", labels=b"\xef\xbb\xbf" + "\r\n".join([LINE, LINE, ""]).encode())
        assert len(read(yolo).instances) == 2

    def test_missing_label_files(self, yolo, caplog):
        yolo.add("train/a.png", LINE)
        yolo.add("train/b.png")
        assert read(yolo).instances.image_index.tolist() == [0]
        assert "1 of 2 images have no label file" in caplog.text and "labels/train/b.txt" in caplog.text
        yolo.add("val/c.png")  # none at all
        assert read(yolo, "val").instances is None

    def test_the_same_name_in_several_folders(self, yolo):
        yolo.add("train/left/1.png", LINE)
        yolo.add("train/right/1.png", LINE, LINE)
        annotations = read(yolo)
        assert [image["id"] for image in annotations.images] == [1, 2]
        assert annotations.instances.image_index.tolist() == [0, 1, 1]

    def test_ids_are_the_numbers_in_the_names(self, yolo):
        for name in ("000000000139", "000000000025"):
            yolo.add(f"train/{name}.png", LINE)
        assert [image["id"] for image in read(yolo).images] == [25, 139]
        yolo.add("train/a.png", LINE)
        assert [image["id"] for image in read(yolo).images] == [1, 2, 3]

    def test_images_on_their_side(self, yolo):
        file = yolo.add("train/a.jpg", LINE)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (50, 100)).save(file, exif=exif)  # upright: 100 x 50
        np.testing.assert_allclose(read(yolo).instances.keypoints[0, :2, :2], [[20, 10], [80, 30]])

    def test_classes(self, yolo):
        yolo.content["names"] = {0: "crow", 2: "owl"}
        yolo.add("train/a.png", LINE, "2" + LINE[1:], "2.0" + LINE[1:])
        annotations = read(yolo)
        assert annotations.id2label == {0: "crow", 1: "N/A", 2: "owl"}
        assert annotations.instances.category_ids.tolist() == [0, 2, 2]
        assert read_coco_categories(yolo.file) == (BIRD, annotations.id2label)

    @pytest.mark.parametrize("names", [["beak", "left_wing", "right_wing"], {0: ["beak", "left_wing", "right_wing"]}])
    def test_names_of_keypoints(self, yolo, names):
        yolo.content |= {"kpt_names": names, "flip_idx": ...}
        yolo.add("train/a.png", LINE)
        assert read(yolo).schema == KeypointSchema(names=("beak", "left_wing", "right_wing"), flip_pairs=((1, 2),))

    def test_neither_names_nor_pairs(self, yolo, caplog):
        yolo.content["flip_idx"] = ...
        yolo.add("train/a.png", LINE)
        assert read(yolo).schema.flip_pairs == ()
        assert "neither `flip_idx` nor `kpt_names` tell left from right" in caplog.text

    def test_a_schema_gives_the_rest(self, yolo, caplog):
        yolo.add("train/a.png", LINE)
        given = {"names": ["beak", "a", "b"], "edges": [[0, 1]], "sigmas": [0.1, 0.2, 0.2]}
        expected = KeypointSchema(
            names=("beak", "a", "b"), edges=((0, 1),), flip_pairs=((1, 2),), sigmas=(0.1, 0.2, 0.2)
        )
        assert read(yolo, schema=given).schema == expected

    def test_a_known_schema(self, yolo):
        flips = COCO_PERSON.flip_permutation
        yolo.content |= {"kpt_shape": [17, 3], "flip_idx": list(flips)}
        yolo.add("train/a.png", "0 0.5 0.5 0.5 0.5" + 17 * " 0.5 0.5 2")
        assert read(yolo, schema="coco").schema == COCO_PERSON
        assert read(yolo, schema={"names": list(COCO_PERSON.names)}).schema == COCO_PERSON


class TestWhereImagesAre:
    def test_a_text_file_that_lists_images(self, yolo):
        yolo.content |= {"train": "lists/train.txt"}
        for name in ("train/b.png", "train/a.png", "train/c.png"):
            yolo.add(name, LINE)
        (yolo.path / "lists").mkdir()
        absolute = yolo.path / "images" / "train" / "c.png"
        (yolo.path / "lists" / "train.txt").write_text(f"../images/train/b.png\n\n./images/train/a.png\n{absolute}\n")
        names = [image["file_name"] for image in read(yolo).images]
        assert names == ["images/train/b.png", "images/train/a.png", "images/train/c.png"]

    def test_a_list_of_folders(self, yolo):
        yolo.content["train"] = ["images/one", "images/two", "images/one/a.png"]
        for name in ("one/a.png", "two/a.png"):
            yolo.add(name, LINE)
        assert len(read(yolo).images) == 2

    def test_another_folder(self, yolo, tmp_path):
        other = YoloFolder(tmp_path / "other")
        other.add("train/a.png", LINE)
        for path in ("other", str(tmp_path / "other"), "./other/"):
            yolo.content["path"] = path
            assert read(yolo).image_folder == str(tmp_path / "other")
        yolo.content |= {"path": "other", "train": str(tmp_path / "other" / "images")}
        assert read(yolo).images[0]["file_name"] == "images/train/a.png"

    def test_a_folder_of_somebody_else(self, yolo, caplog):
        yolo.content["path"] = "/home/somebody/data"
        yolo.add("train/a.png", LINE)
        assert len(read(yolo).images) == 1
        assert "`path` /home/somebody/data is no folder: its images are looked for beside the file" in caplog.text

    def test_a_folder_above_that_is_not_there(self, yolo):
        yolo.content["train"] = "../images/train"  # as Roboflow writes
        yolo.add("train/a.png", LINE)
        assert len(read(yolo).images) == 1

    @pytest.mark.parametrize(
        "image, labels",
        [
            ("a/images/train/1.jpg", "a/labels/train/1.txt"),
            ("images/a/images/1.b.jpg", "images/a/labels/1.b.txt"),
            ("images.jpg", "images.txt"),
            ("pictures/images.jpg", "pictures/images.txt"),
        ],
    )
    def test_label_path(self, image, labels):
        assert label_path(Path(image)) == Path(labels)

    @pytest.mark.parametrize("missing", [..., None, ""])
    def test_a_missing_split(self, yolo, missing):
        yolo.content["test"] = missing
        with pytest.raises(DataError, match="data.yaml: has no images for `test`; those it has are `train`, `val`"):
            read(yolo, "test")

    def test_a_missing_folder(self, yolo):
        with pytest.raises(DataError, match="`train` names images/train, but there is no .*images/train"):
            read(yolo)

    def test_a_folder_without_images(self, yolo):
        (yolo.path / "images" / "train").mkdir(parents=True)
        with pytest.raises(DataError, match="`train` has no images in images/train"):
            read(yolo)

    def test_images_that_cannot_be_read(self, yolo):
        yolo.content["train"] = ["images/train", "list.txt"]
        yolo.add("train/a.png", LINE).write_bytes(b"no image")
        (yolo.path / "list.txt").write_text("lost.png")
        with pytest.raises(DataError) as caught:
            read(yolo)
        first, second = str(caught.value).splitlines()
        assert (
            "data.yaml (train): image " in first and "train/a.png: the image must be a file that can be read" in first
        )
        assert "lost.png: the image must be a file that can be read, but got 'no such file'" in second


# What is in a label file, and what the error says of it.
BROKEN = {
    "too few": ("0 0.5 0.5 0.5 0.5", "the line must be 5 numbers and 3 for each of 3 keypoints, 14 in all, but got 5"),
    "too many": (LINE + " 1", "the line must be .*, 14 in all, but got 15"),
    "text": (LINE.replace("0.8", "eight"), "the line must be finite numbers, but got '0 0.5"),
    "NaN": (LINE.replace("0.8", "nan"), "the line must be finite numbers, but got"),
    "infinite": (LINE.replace("0.8", "inf"), "the line must be finite numbers, but got"),
    "unknown class": ("1" + LINE[1:], r"the class must be one of \[0\], but got '1'"),
    "half a class": ("0.5" + LINE[1:], r"the class must be one of \[0\], but got '0.5'"),
    "pixels": (LINE.replace("0.8", "80"), "coordinates must be fractions .* but got 80.0, which looks like pixels"),
    "box in pixels": (LINE.replace("0.6 0.4", "60 0.4"), "coordinates must be .* but got 60.0"),
    "negative box": (LINE.replace("0.6 0.4", "-0.6 0.4"), r"width and height of the box must be at least 0, but got"),
    "visibility": (LINE.replace("0.6 1", "0.6 3"), r"visibilities must be 0, 1 or 2, but got \[3.0\]"),
}


@pytest.mark.parametrize("line, message", BROKEN.values(), ids=BROKEN)
def test_broken_lines(yolo, line, message):
    yolo.add("train/a.png", LINE, line)
    with pytest.raises(DataError, match=rf"data.yaml \(train\): labels/train/a.txt, line 2: {message}"):
        read(yolo)


def test_ten_broken_lines_are_listed_and_the_rest_counted(yolo):
    for name in "ab":
        yolo.add(f"train/{name}.png", *["0"] * 6)
    with pytest.raises(DataError) as caught:
        read(yolo)
    *lines, rest = str(caught.value).splitlines()
    assert len(lines) == 10 and "labels/train/b.txt, line 4" in lines[-1] and rest == "... and 2 more problems."


def test_coordinates_that_matter_to_nobody(yolo):
    yolo.add("train/a.png", LINE.replace("0 0 0", "999 -7 0"))  # not labelled
    assert read(yolo).instances.keypoints[0, 2].tolist() == [0, 0, 0]


def test_a_label_file_that_is_not_text(yolo):
    yolo.add("train/a.png", labels=b"\xff\xfe\x00")
    with pytest.raises(DataError, match="a.txt: not a text file"):
        read(yolo)


UNUSABLE = {
    "no keypoints": ({"kpt_shape": ...}, r"`kpt_shape` must be .* but got None; without it, a dataset has boxes only"),
    "four numbers": ({"kpt_shape": [3, 4]}, r"`kpt_shape` must be .* but got \[3, 4\]"),
    "0 keypoints": ({"kpt_shape": [0, 3]}, r"`kpt_shape` must be"),
    "shape is a number": ({"kpt_shape": 17}, "`kpt_shape` must be .* but got 17"),
    "no names": ({"names": ...}, "`names` must be a list of the names of classes, .* but got None"),
    "negative class": ({"names": {-1: "bird"}}, "`names` must be"),
    "names are numbers": ({"names": {0: 0.5}}, "`names` must be"),
    "split is a number": ({"train": 5}, "`train` must be a folder, a text file .* but got 5"),
    "flips are short": ({"flip_idx": [0, 1]}, r"`flip_idx` must be each of the 3 indices once, .* but got \[0, 1\]"),
    "flips are a cycle": ({"flip_idx": [1, 2, 0]}, "`flip_idx` must be its own inverse"),
    "flips are text": ({"flip_idx": ["0", "2", "1"]}, "`flip_idx` must be each of the 3 indices"),
    "names of keypoints": ({"kpt_names": ["a", "b"]}, r"`kpt_names` must be 3 names, .* but got \['a', 'b'\]"),
    "names repeated": ({"kpt_names": ["a", "b", "a"]}, "`kpt_names`: `names` must be distinct"),
    "path is a number": ({"path": 5}, "`path` must be a folder, but got 5"),
}


@pytest.mark.parametrize("fields, message", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_files(yolo, fields, message):
    yolo.content |= fields
    yolo.add("train/a.png", LINE)
    with pytest.raises(DataError, match=f"data.yaml: .*{message}"):
        read(yolo)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", r"data.yaml: not a JSON or YAML file \(while parsing"),
        ("- 1", "not a YOLO dataset, for it is a list"),
        ("", "it is a NoneType"),
    ],
)
def test_other_files(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_annotations(tmp_path / "data.yaml")


def test_code_in_a_file_is_not_run(tmp_path):
    (tmp_path / "data.yaml").write_text("!!python/object/apply:os.mkdir ['made']")
    with pytest.raises(DataError, match="not a JSON or YAML file"):
        read_annotations(tmp_path / "data.yaml")


class TestDataset:
    def test_samples(self, yolo):
        yolo.add("val/a.png", LINE)
        dataset = CocoPoseDataset(None, yolo.file)
        sample = dataset[0]
        assert sample["image"].shape == (3, 50, 100)
        torch.testing.assert_close(
            sample["keypoints"].as_subclass(torch.Tensor)[0, :2], torch.tensor([[20.0, 10], [80, 30]])
        )
        assert sample["visibility"].tolist() == [[2, 1, 0]]
        assert sample["area"].tolist() == pytest.approx([0.53 * 60 * 20])
        assert check_dataset(dataset, "decode", progress=False).findings == {}

    def test_keypoints_outside(self, yolo, caplog):
        yolo.add("val/a.png", LINE.replace("0.2 0.2 2", "-0.5 0.2 2"))
        dataset = CocoPoseDataset(None, yolo.file)
        with caplog.at_level(logging.WARNING):
            check_dataset(dataset, progress=False)
        assert "outside the image -> these count as not labelled" in caplog.text
        assert "labels/val/a.txt, line 1" in caplog.text
        assert dataset[0]["visibility"].tolist() == [[0, 1, 0]]

    def test_headers_are_read_once(self, yolo, monkeypatch):
        yolo.add("val/a.png", LINE)
        dataset = CocoPoseDataset(None, yolo.file)
        monkeypatch.setattr(dataset, "open_image", None)
        check_dataset(dataset, progress=False)

    def test_the_folder_is_given_once(self, yolo, folder):
        yolo.add("val/a.png", LINE)
        with pytest.raises(DataError, match="its images are in .*, so no other folder can be given, but got"):
            CocoPoseDataset(yolo.path, yolo.file)
        with pytest.raises(DataError, match="annotations.json: .* the folder of the images must be given, too"):
            CocoPoseDataset(None, folder.arguments[1])
