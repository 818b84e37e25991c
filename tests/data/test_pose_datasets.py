"""Datasets: what a sample holds, for COCO-format files and datasets of the Hub."""

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from drawn_people import CATEGORY, SCHEMA, draw_person
from transformers_detrpose.data import (
    CocoPoseDataset,
    HubPoseDataset,
    check_dataset,
    read_annotations,
    read_coco_categories,
)
from transformers_detrpose.keypoint_schemas import COCO_PERSON, KeypointSchema
from transformers_detrpose.labels import prepare_coco_labels

KEYPOINTS = [[20, 10, 2], [40, 12, 1], [30, 30, 0]]


def test_a_sample_holds_the_image_and_its_people_in_pixels(folder):
    folder.add_person((64, 48), KEYPOINTS, area=300.5, bbox=[10, 5, 40, 30])
    sample = CocoPoseDataset(*folder.arguments)[0]

    assert isinstance(sample["image"], tv_tensors.Image)
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, 48, 64)
    assert sample["image"][:, 10, 20].tolist() == [255, 0, 0]  # row 10, column 20
    assert isinstance(sample["keypoints"], tv_tensors.KeyPoints) and sample["keypoints"].canvas_size == (48, 64)
    assert sample["keypoints"].tolist() == [[[20, 10], [40, 12], [0, 0]]]  # not labelled: 0, 0
    assert sample["visibility"].tolist() == [[2, 1, 0]]
    assert sample["class_labels"].tolist() == [1] and sample["class_labels"].dtype == torch.int64
    assert sample["area"].tolist() == [300.5]
    assert isinstance(sample["boxes"], tv_tensors.BoundingBoxes) and sample["boxes"].tolist() == [[10, 5, 50, 35]]
    assert (sample["image_id"], sample["orig_size"]) == (1, (48, 64))


def test_people_are_those_of_the_image_processor(folder):
    image_id = folder.add_image()
    folder.annotate(KEYPOINTS, image_id)
    folder.annotate(KEYPOINTS, image_id, iscrowd=1)
    folder.annotate([[0, 0, 0]] * 3, image_id)  # nothing labelled
    folder.annotate([[9, 9, 2], [20, 20, 2], [30, 20, 2]], image_id, area=None)  # 0.53 x box
    dataset = CocoPoseDataset(*folder.arguments)
    sample = dataset[0]
    expected = prepare_coco_labels({"image_id": 1, "annotations": folder.annotations}, (48, 64), 3)
    assert len(sample["area"]) == 2
    torch.testing.assert_close(sample["area"] / (48 * 64), expected["area"])
    torch.testing.assert_close(sample["visibility"], expected["keypoints"][..., 2].long())
    torch.testing.assert_close(sample["keypoints"] / torch.tensor([64, 48]), expected["keypoints"][..., :2])
    assert sample["area"][1] == pytest.approx(0.53 * 32 * 22)


def test_an_image_without_people_is_a_sample_too_unless_asked(folder):
    folder.add_image()
    folder.add_person((64, 48), KEYPOINTS)
    sample = CocoPoseDataset(*folder.arguments)[0]
    shapes = {"keypoints": (0, 3, 2), "visibility": (0, 3), "class_labels": (0,), "area": (0,), "boxes": (0, 4)}
    assert {key: tuple(sample[key].shape) for key in shapes} == shapes

    dataset = CocoPoseDataset(*folder.arguments, only_with_people=True)
    assert len(dataset) == 1 and dataset[0]["image_id"] == 2


def test_photographs_are_turned_upright_and_grey_ones_become_rgb(folder):
    image = Image.new("L", (64, 48), 7)
    exif = image.getexif()
    exif[0x0112] = 6  # stored on its side
    folder.add_image((48, 64))
    image.save(folder.path / "images" / "0.png", exif=exif)
    dataset = CocoPoseDataset(*folder.arguments)
    check_dataset(dataset, "decode", progress=False)
    assert dataset[0]["image"].shape == (3, 64, 48) and (dataset[0]["image"] == 7).all()
    assert dataset[0]["orig_size"] == (64, 48)


def test_schema_and_names_are_read_from_the_file(folder):
    folder.categories = [{"id": 0, "name": "tree"}, {**CATEGORY, "id": 3}]
    dataset = CocoPoseDataset(*folder.arguments)
    assert dataset.schema == SCHEMA
    assert (dataset.schema, dataset.id2label) == read_coco_categories(folder.arguments[1])


def test_a_schema_may_be_given(folder, caplog):
    named = KeypointSchema(names=("a", "b", "c"), flip_pairs=((0, 1),))
    assert CocoPoseDataset(*folder.arguments, schema=named).schema == named
    assert "['left_hand', 'right_hand', 'head'] are taken for ['a', 'b', 'c']" in caplog.text
    folder.categories = [{"id": 1, "name": "person"}]
    assert CocoPoseDataset(*folder.arguments, schema="coco").schema == COCO_PERSON
    with pytest.raises(ValueError, match="no entry of `categories` has `keypoints`: add their names, or give"):
        CocoPoseDataset(*folder.arguments)


def test_a_schema_with_other_keypoints_is_refused(folder):
    with pytest.raises(ValueError, match="'person' has 3 keypoints, but `schema` has 17"):
        CocoPoseDataset(*folder.arguments, schema="coco")


def test_a_transform_of_torchvision_is_applied(folder):
    folder.add_person((64, 48), KEYPOINTS)
    sample = CocoPoseDataset(*folder.arguments, transform=v2.Pad((1, 2, 3, 4)))[0]
    assert sample["image"].shape == (3, 54, 68)
    assert sample["keypoints"][0, 0].tolist() == [21, 12]


@pytest.mark.parametrize("file_name", [None, ""])
def test_images_without_a_file_are_refused(folder, file_name):
    folder.add_image(file_name=file_name)
    folder.images[0]["file_name"] = file_name
    with pytest.raises(ValueError, match="annotations.json: image 1: `file_name` must be the name of a file, but got"):
        CocoPoseDataset(*folder.arguments)


def test_a_file_that_has_been_read_is_taken_as_it_is(folder):
    for _ in range(3):
        folder.add_person((64, 48), KEYPOINTS)
    images, file = folder.arguments
    content = read_annotations(file)
    file.unlink()
    dataset = CocoPoseDataset(images, content.first_images(2))
    assert dataset.image_ids == [1, 2] and len(dataset[1]["area"]) == 1
    assert CocoPoseDataset(images, content.first_images(None), schema=SCHEMA).image_ids == [1, 2, 3]
    with pytest.raises(ValueError, match="the file has 3 keypoints, but `schema` has 17"):
        CocoPoseDataset(images, content, schema="coco")


def test_missing_paths_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CocoPoseDataset(tmp_path / "nowhere", folder.arguments[1])
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        CocoPoseDataset(tmp_path, tmp_path / "nothing.json")


def test_an_image_that_cannot_be_used_is_named(folder):
    folder.add_image()
    folder.add_image((64, 48), Image.new("RGB", (32, 48)))
    (folder.path / "images" / "0.png").write_bytes(b"no image")
    dataset = CocoPoseDataset(*folder.arguments)
    with pytest.raises(ValueError, match=r"cannot read image 1 \(0.png\).*`check_dataset` finds all"):
        dataset[0]
    with pytest.raises(
        ValueError, match=r"image 2 \(1.png\) should have the height and width \(48, 64\), but .* \(48, 32\)"
    ):
        dataset[1]


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("datasets")


def hub_rows():
    people = {
        "keypoints": [[[20, 10, 2], [40, 12, 1], [0, 0, 0]], [[9, 9, 2], [20, 20, 2], [30, 20, 2]]],
        "bbox": [[10, 5, 40, 30], [4, 4, 32, 22]],
        "category": [1, 0],
        "area": [300.5, 200],
    }
    nobody = {key: [] for key in people}
    return {"image": [draw_person((64, 48), KEYPOINTS), Image.new("RGB", (30, 20))], "objects": [people, nobody]}


@pytest.mark.parametrize("by_person", [False, True], ids=["lists of a dictionary", "list of dictionaries"])
def test_hub_datasets_give_the_same_samples(hub, by_person):
    rows = hub_rows()
    if by_person:
        listed = [
            [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]
            for row in rows["objects"]
        ]
        rows = {"image": rows["image"], "annotations": listed}
    source = hub.Dataset.from_dict(rows).cast_column("image", hub.Image())
    dataset = HubPoseDataset(source, SCHEMA, id2label={0: "child", 1: "adult"})
    assert (
        len(dataset) == 2 and len(HubPoseDataset(source, SCHEMA, only_with_people=True, id2label=dataset.id2label)) == 1
    )

    sample = dataset[0]
    assert sample["image"][:, 10, 20].tolist() == [255, 0, 0]
    assert sample["keypoints"].tolist() == [[[20, 10], [40, 12], [0, 0]], [[9, 9], [20, 20], [30, 20]]]
    assert sample["visibility"].tolist() == [[2, 1, 0], [2, 2, 2]]
    assert sample["class_labels"].tolist() == [1, 0]
    assert sample["area"].tolist() == [300.5, 200]
    assert sample["boxes"].tolist() == [[10, 5, 50, 35], [4, 4, 36, 26]]
    assert (sample["image_id"], sample["orig_size"]) == (0, (48, 64))
    assert dataset[1]["keypoints"].shape == (0, 3, 2) and dataset[1]["image"].shape == (3, 20, 30)
    assert check_dataset(dataset, "decode", progress=False).num_people == 2


def test_hub_datasets_know_their_classes_and_ids(hub):
    rows = hub_rows() | {"image_id": [7, 8]}
    person = {"keypoints": hub.Sequence(hub.Sequence(hub.Value("float32"))), "bbox": hub.Sequence(hub.Value("float32"))}
    person |= {"category": hub.ClassLabel(names=["child", "adult"]), "area": hub.Value("float32")}
    features = hub.Features({"image": hub.Image(), "objects": hub.Sequence(person), "image_id": hub.Value("int64")})
    source = hub.Dataset.from_dict(rows, features=features)
    dataset = HubPoseDataset(source, SCHEMA)
    assert dataset.id2label == {0: "child", 1: "adult"} and dataset.image_ids == [7, 8]
    with pytest.raises(ValueError, match=r"dataset: person 0 of row 0: `keypoints` .* 14 keypoints") as caught:
        HubPoseDataset(source, "crowdpose")  # 3 keypoints, not CrowdPose's 14
    assert len(str(caught.value).splitlines()) == 2


def test_hub_datasets_without_the_columns_are_refused(hub):
    source = hub.Dataset.from_dict({"image": [], "labels": []})
    with pytest.raises(ValueError, match=r"needs a column 'objects' or 'annotations'; it has \['image', 'labels'\]"):
        HubPoseDataset(source, SCHEMA)
