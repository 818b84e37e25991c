"""Datasets converted from COCO's format to YOLO's and back."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from three_kinds import CATEGORIES, SCHEMA, write_figures

from transformers_detrpose import COCO_PERSON, KeypointSchema
from transformers_detrpose.commands import convert_dataset
from transformers_detrpose.data import CocoPoseDataset, check_dataset, read_annotations, read_schema
from transformers_detrpose.synthetic.dataset import write_dataset
from yolo_folder import LINE, YoloFolder

BIRD = KeypointSchema(("beak", "left_wing", "right_wing"), ((0, 1), (0, 2)), ((1, 2),), (0.03, 0.08, 0.08))
SIZE_WH = (100, 50)


def convert(*line):
    return convert_dataset.main([str(argument) for argument in line])


class Birds:
    """A COCO dataset of birds on disk, in the making."""

    def __init__(self, path):
        self.path = path
        self.content = {"images": [], "annotations": [], "categories": [BIRD.to_coco_category(3, "bird")]}

    def add_image(self, image_id, name, **fields):
        file = self.path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE_WH, (image_id, 0, 0)).save(file)
        entry = {"id": image_id, "file_name": name, "width": SIZE_WH[0], "height": SIZE_WH[1]}
        self.content["images"].append({**entry, **fields})

    def add(self, **fields):
        entry = {"id": 1, "image_id": 7, "category_id": 3, "keypoints": [10, 20, 2, 30, 30, 1, 0, 0, 0]}
        self.content["annotations"].append({**entry, "bbox": [5, 10, 40, 30], "area": 700.5, **fields})

    @property
    def line(self):
        file = self.path / "birds.json"
        file.write_text(json.dumps(self.content))
        return [file, "--images", self.path / "images"]


@pytest.fixture
def birds(tmp_path):
    birds = Birds(tmp_path / "birds")
    birds.add_image(7, "7.png")
    return birds


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "people"
    write_dataset(folder, train=4, val=3, size=128, max_people=3)
    return folder


def people_of(annotations):
    """Returns keypoints, boxes and categories by the name of the image, in the order of the file."""
    names = [image["file_name"] for image in annotations.images]
    people = annotations.instances
    return {
        name: (
            people.keypoints[index],
            people.boxes[index],
            [annotations.categories[i] for i in people.category_ids[index]],
        )
        for number, name in enumerate(names)
        for index in [people.image_index == number]
    }


def assert_same_people(first, second):
    first, second = people_of(first), people_of(second)
    assert first.keys() == second.keys()
    for name, (keypoints, boxes, categories) in first.items():
        np.testing.assert_allclose(second[name][0], keypoints, atol=1e-6)
        np.testing.assert_allclose(second[name][1], boxes, atol=1e-6)
        assert second[name][2] == categories


class TestRoundTrips:
    @pytest.mark.parametrize("options", [[], ["--link"]])
    def test_coco_to_yolo_to_coco(self, people, tmp_path, options, capsys):
        files, folders = [people / "train.json", people / "val.json"], [people / "train", people / "val"]
        assert convert(*files, "--images", *folders, "--output", tmp_path / "yolo", *options) == 0
        yolo = tmp_path / "yolo" / "data.yaml"
        assert convert(yolo, "--output", tmp_path / "coco", *options) == 0
        for split in ("train", "val"):
            before = read_annotations(people / f"{split}.json")
            after = read_annotations(tmp_path / "coco" / f"{split}.json")
            assert after.schema == before.schema == COCO_PERSON
            assert_same_people(before, after)
            assert [image["id"] for image in after.images] == [image["id"] for image in before.images]
            check_dataset(CocoPoseDataset(tmp_path / "coco" / split, after))
            for image in before.images:
                original = people / split / image["file_name"]
                for copy in (tmp_path / "yolo" / "images" / split, tmp_path / "coco" / split):
                    assert (copy / image["file_name"]).read_bytes() == original.read_bytes()
                    assert (copy / image["file_name"]).is_symlink() == bool(options)

    def test_yolo_to_coco_to_yolo(self, tmp_path):
        yolo = YoloFolder(tmp_path / "yolo", kpt_names={0: list(BIRD.names)})
        yolo.add("train/b/1.png", LINE, "0 0.25 0.25 0.5 0.5 0.1 0.1 1 0.2 0.123456789 2 0.4 0.4 2")
        yolo.add("train/a.png", LINE)
        yolo.add("train/empty.png", labels=b"")
        yolo.add("val/2.png", LINE)
        assert convert(yolo.file, "--output", tmp_path / "coco") == 0
        files = [tmp_path / "coco" / "train.json", tmp_path / "coco" / "val.json"]
        assert (
            convert(*files, "--images", *(file.with_suffix("") for file in files), "--output", tmp_path / "again") == 0
        )
        content = yaml.safe_load((tmp_path / "again" / "data.yaml").read_text())
        assert content == {**yolo.content, "names": {0: "bird"}}
        for file in (tmp_path / "yolo" / "labels").rglob("*.txt"):
            other = tmp_path / "again" / "labels" / file.relative_to(tmp_path / "yolo" / "labels")
            lines, others = ([list(map(float, x.split())) for x in f.read_text().splitlines()] for f in (file, other))
            assert len(lines) == len(others)
            if lines:
                np.testing.assert_allclose(others, lines, atol=1e-9)
        assert len(list((tmp_path / "again").rglob("*.txt"))) == 4

    def test_the_schema(self, birds, tmp_path, capsys):
        birds.add()
        assert convert(*birds.line, "--output", tmp_path / "yolo") == 0
        assert "schema.json: edges and sigmas of the keypoints, for --schema" in capsys.readouterr().out
        yolo, schema = tmp_path / "yolo" / "data.yaml", tmp_path / "yolo" / "schema.json"
        assert read_annotations(yolo, split="train").schema.sigmas != BIRD.sigmas
        assert read_annotations(yolo, read_schema(schema), "train").schema == BIRD
        assert convert(yolo, "--schema", schema, "--output", tmp_path / "coco") == 0
        after = read_annotations(tmp_path / "coco" / "train.json")
        assert after.schema == BIRD
        assert_same_people(read_annotations(birds.line[0]), after)

    def test_a_test_set(self, birds, tmp_path):
        del birds.content["annotations"]
        assert convert(*birds.line, "--output", tmp_path / "yolo") == 0
        assert not (tmp_path / "yolo" / "labels").exists()
        assert convert(tmp_path / "yolo" / "data.yaml", "--output", tmp_path / "coco") == 0
        assert "annotations" not in json.loads((tmp_path / "coco" / "train.json").read_text())


class TestLosses:
    """What the other format does not carry, in one line each."""

    @pytest.mark.parametrize(
        "fields, message",
        [
            ({"iscrowd": 1}, "1 crowds are left out"),
            ({"keypoints": [0] * 9, "bbox": None}, "1 annotations without a box and a labeled keypoint are left out"),
            ({}, "1 areas are left out"),
            ({"keypoints": [-2, 5, 2, 10, 20, 2, 0, 0, 0]}, "1 keypoints more than a pixel outside the image become"),
            ({"keypoints": [-0.5, 5, 2, 10, 20, 2, 0, 0, 0]}, "1 keypoints and boxes that reach out of the image are"),
            ({"bbox": [-5, 10, 40, 30]}, "1 keypoints and boxes that reach out of the image are moved"),
            ({"bbox": None}, "1 missing or empty boxes become those around the keypoints"),
            ({"num_keypoints": 1}, "1 values of `num_keypoints` other than"),
            ({"segmentation": [], "x": 3}, "1 annotations have fields that are left out: segmentation, x"),
        ],
    )  # fmt: skip
    def test_annotations(self, birds, tmp_path, fields, message, capsys):
        birds.add(**{"area": None, "num_keypoints": None, **fields} if fields else {"area": 5})
        assert convert(*birds.line, "--output", tmp_path / "yolo") == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "birds.json: " in line]
        # Of the other fields, and of ids of categories and images, nothing more is said than that they change.
        assert any(message in line for line in lines) and len(lines) == 2
        check_dataset(CocoPoseDataset(None, read_annotations(tmp_path / "yolo" / "data.yaml", split="train")))

    def test_nothing_is_said_of_what_is_carried(self, birds, tmp_path, capsys):
        birds.content["categories"] = [BIRD.to_coco_category(0, "bird")]
        birds.add(area=None, category_id=0)
        assert convert(*birds.line, "--output", tmp_path / "yolo") == 0
        assert "birds.json" not in capsys.readouterr().out

    def test_the_rest_of_the_file(self, birds, tmp_path, capsys):
        birds.add_image(8, "nest.png", license=1)
        birds.content |= {"info": {}, "licenses": []}
        birds.content["categories"].append({"id": 5, "name": "tree", "supercategory": "plant"})
        assert convert(*birds.line, "--output", tmp_path / "yolo") == 0
        text = capsys.readouterr().out
        assert "2 fields of the file are left out: info, licenses." in text
        assert "1 images have fields that are left out: license." in text
        assert "1 categories have fields that are left out: supercategory." in text
        assert "1 ids of categories become 0, 1, ... in their order." in text
        assert "1 categories without keypoints are left out" in text
        assert "2 ids of images are left out" in text

    def test_classes_with_different_keypoints(self, tmp_path, capsys):
        images, file = write_figures(tmp_path / "figures", range(3), 128)
        assert convert(file, "--images", images, "--output", tmp_path / "yolo") == 0
        assert "3 classes with different keypoints get those of all" in capsys.readouterr().out
        schema = read_schema(tmp_path / "yolo" / "schema.json")
        after = read_annotations(tmp_path / "yolo" / "data.yaml", schema, "train")
        assert (after.schema.names, after.schema.edges) == (SCHEMA.names, SCHEMA.edges) and after.schema.classes is None
        assert list(after.categories.values()) == [category["name"] for category in CATEGORIES]
        assert_same_people(read_annotations(file), _without_folder(after, "images/train/"))

    def test_two_numbers_for_each_keypoint(self, tmp_path, capsys):
        yolo = YoloFolder(tmp_path / "yolo", kpt_shape=[3, 2], val=...)
        yolo.add("train/1.png", "0 0.5 0.5 0.5 0.5 0.2 0.2 0 0 0.4 0.4")
        assert convert(yolo.file, "--output", tmp_path / "coco") == 0
        text = capsys.readouterr().out
        assert "2 keypoints that are labeled count as visible" in text and "1 areas are 0.53 times those" in text
        (entry,) = json.loads((tmp_path / "coco" / "train.json").read_text())["annotations"]
        np.testing.assert_allclose(entry["keypoints"], [20, 10, 2, 0, 0, 0, 40, 20, 2])
        assert entry["area"] == pytest.approx(0.53 * 50 * 25) and entry["num_keypoints"] == 2


def _without_folder(annotations, folder):
    for image in annotations.images:
        image["file_name"] = image["file_name"].removeprefix(folder)
    return annotations


def test_images_outside_the_folder_of_the_split(tmp_path):
    yolo = YoloFolder(tmp_path / "yolo", train="train.txt", val=...)
    image = yolo.add("deep/1.png", LINE)
    outside = tmp_path / "elsewhere" / "2.png"
    outside.parent.mkdir()
    outside.write_bytes(image.read_bytes())
    (tmp_path / "yolo" / "train.txt").write_text(f"images/deep/1.png\n{outside}\n")
    assert convert(yolo.file, "--output", tmp_path / "coco") == 0
    after = read_annotations(tmp_path / "coco" / "train.json")
    check_dataset(CocoPoseDataset(tmp_path / "coco" / "train", after))
    assert all(not name["file_name"].startswith("/") for name in after.images)


class TestMistakes:
    """Nothing is written, and one line says why."""

    @pytest.fixture(autouse=True)
    def nothing_written(self, tmp_path):
        yield
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))

    @pytest.mark.parametrize(
        "entry, message",
        [
            ({"id": 8, "file_name": "lost.png"}, "lost.png: the image must be a file that can be read"),
            ({"id": 8, "file_name": "7.png"}, "another name than 7.png but for the suffix"),
            ({"id": 8, "file_name": "7.jpg"}, "another name than 7.png but for the suffix"),
        ],
    )
    def test_images(self, birds, tmp_path, entry, message, capsys):
        Image.new("RGB", SIZE_WH).save(tmp_path / "birds" / "images" / "7.jpg")
        birds.content["images"].append(entry)
        assert convert(*birds.line, "--output", tmp_path / "out") == 1
        assert message in capsys.readouterr().err

    def test_another_size(self, birds, tmp_path, capsys):
        birds.content["images"][0] |= {"width": 50, "height": 100}
        assert convert(*birds.line, "--output", tmp_path / "out") == 1
        assert "height and width must be (50, 100), as of the upright image" in capsys.readouterr().err

    def test_splits_with_other_categories(self, birds, people, tmp_path, capsys):
        file, _, images = birds.line
        line = [file, people / "val.json", "--images", images, people / "val"]
        assert convert(*line, "--output", tmp_path / "out") == 1
        assert "categories or keypoints are not those of" in capsys.readouterr().err

    def test_options(self, birds, tmp_path, capsys):
        file = birds.line[0]
        data = tmp_path / "data.yaml"
        for line, message in (
            ([file], "--images must be one folder, or one for each of 1 files"),
            ([file, file, file, file, "--images", "."], "COCO files are those of train, val, test, but got 4"),
            ([data, file], "one data.yaml is converted at a time"),
            ([data, "--images", "."], "says where its images are"),
            ([data], "No such file"),
        ):
            assert convert(*line, "--output", tmp_path / "out") == 1
            assert message in capsys.readouterr().err


def test_an_existing_folder_is_kept(birds, tmp_path, capsys):
    assert convert(*birds.line, "--output", birds.path) == 1
    assert "exists already" in capsys.readouterr().err
    assert (birds.path / "images" / "7.png").is_file()
