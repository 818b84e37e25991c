"""check_dataset: everything wrong with images and with where people lie, reported together; and its repairs."""

import logging
import re

import pytest
import torch
from PIL import Image

from drawn_people import CATEGORY
from transformers_detrpose.data import CocoPoseDataset, check_dataset, to_labels
from transformers_detrpose.data.checks import DEFECTS

GOOD = [[20, 10, 2], [40, 12, 1], [30, 30, 2]]


def check(folder, images="header"):
    return check_dataset(CocoPoseDataset(*folder.arguments), images, progress=False)


def test_a_good_dataset_has_an_empty_report(folder, caplog):
    for _ in range(3):
        folder.add_person((64, 48), GOOD)
    folder.annotate([[0, 0, 0]] * 3, 1)
    report = check(folder, "decode")
    assert report.findings == {} and str(report) == "images: 3, people with labelled keypoints: 3"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_every_kind_of_defect_is_reported_at_once(folder):
    folder.add_image(image=Image.new("RGB", (48, 64)))  # 1: on its side
    folder.add_image(file_name="nowhere.png")
    folder.add_image()
    (folder.path / "images" / "2.png").write_bytes(b"no image")
    folder.add_image()
    images = {"image_size": 1, "image_missing": 2, "image_unreadable": 3}

    def annotate(image_id=4, keypoints=GOOD, **fields):
        return folder.annotate(keypoints, image_id, **fields)["id"]

    annotations = {
        "keypoint_outside": [annotate(keypoints=[[20, 49.5, 2], *GOOD[1:]], bbox=[0, 0, 9, 9])],
        "box_outside": [annotate(bbox=[60, 40, 9, 9])],
        "box_empty": [annotate(bbox=[70, 40, 9, 9]), annotate(bbox=[7, 4, 0, 9]), annotate(bbox=None)],
        "area_zero": [annotate(area=0), annotate(area=-3)],
    }
    annotations["no_extent"] = [annotate(keypoints=[[20, 10, 2], [0, 0, 0], [0, 0, 0]], bbox=[20, 10, 0, 0], area=0)]
    annotations["box_empty"] += annotations["no_extent"]

    with pytest.raises(ValueError) as caught:
        check(folder)
    message = str(caught.value)
    assert set(images) | set(annotations) == set(DEFECTS)
    lines = {kind: next(line for line in message.splitlines() if DEFECTS[kind].found in line) for kind in DEFECTS}
    for kind, image_id in images.items():
        assert f": 1 (image {image_id}" in lines[kind]
    for kind, ids in annotations.items():
        assert f": {len(ids)} (" in lines[kind]
        assert all(f"annotation {annotation_id}" in lines[kind] for annotation_id in ids)
    refused, repaired = message.split("repaired in the samples:")
    for kind, defect in DEFECTS.items():
        assert lines[kind] in (refused if defect.repair is None else repaired)
        assert kind in check_dataset.__doc__


def test_many_findings_are_counted_and_the_first_ones_named(folder):
    image_id = folder.add_image()
    for _ in range(9):
        folder.annotate(GOOD, image_id, area=0)
    assert "area of 0 or less -> 0.53 times" in str(check(folder))
    assert re.search(r"area of the box: 9 \(annotation 1 of.*5 of image 1, \.\.\.\)$", str(check(folder)))


def test_truncated_files_are_found_by_decoding_only(folder):
    folder.add_image((64, 48), Image.effect_noise((64, 48), 50))
    path = folder.path / "images" / "0.png"
    path.write_bytes(path.read_bytes()[:1000])
    check(folder)
    with pytest.raises(ValueError, match=r"cannot be read: 1 \(image 1 \(0.png\)\)"):
        check(folder, "decode")


def test_annotations_alone_can_be_checked(folder):
    folder.add_image(file_name="nowhere.png")
    assert check(folder, None).findings == {}
    with pytest.raises(ValueError, match="must be 'header', 'decode' or None, but got 'all'"):
        check(folder, "all")


def test_sizes_that_the_file_does_not_give_are_taken_from_the_images(folder):
    folder.annotate([[20, 10, 2], [40, 60, 2], [30, 30, 2]], folder.add_image(), bbox=[0, 0, 9, 9])
    for image in folder.images:
        del image["height"], image["width"]
    assert list(check(folder).findings) == ["keypoint_outside"]
    assert CocoPoseDataset(*folder.arguments)[0]["visibility"].tolist() == [[2, 0, 2]]


def test_repairs_are_logged_and_made(folder, caplog):
    def person(**fields):
        return folder.annotate(fields.pop("keypoints", GOOD), 1, **fields)

    folder.add_image()  # 64 x 48
    folder.add_image()
    person(bbox=[60, 40, 14, 9])  # partly outside: clipped; its area is given
    person(bbox=[70, 40, 9, 9], area=None)  # outside: around the keypoints
    person(area=0, bbox=[0, 0, 10, 10])
    person(keypoints=[[20, 10, 2], [64.9, 12, 2], [30, 49.1, 2]], bbox=[0, 0, 10, 10], area=7)  # just outside, outside
    person(keypoints=[[-5, 10, 2], [0, 0, 0], [0, 0, 0]], bbox=[0, 0, 10, 10])  # wholly outside: left out
    person(keypoints=[[5, 10, 2], [0, 0, 0], [0, 0, 0]], bbox=None, area=None)  # no extent: left out
    with caplog.at_level(logging.WARNING):
        report = check(folder)
    assert (
        not report.refused
        and "the dataset has been repaired: images: 2, people with labelled keypoints: 4" in caplog.text
    )
    assert {kind: len(names) for kind, names in report.repaired.items()} == {
        "keypoint_outside": 2,
        "box_outside": 1,
        "box_empty": 2,
        "area_zero": 1,
        "no_extent": 1,
    }

    sample = CocoPoseDataset(*folder.arguments)[0]
    assert sample["boxes"].tolist() == [[60, 40, 64, 48], [20, 10, 40, 30], [0, 0, 10, 10], [0, 0, 10, 10]]
    given = folder.annotations[0]["area"]
    torch.testing.assert_close(
        sample["area"], torch.tensor([given, 0.53 * 20 * 20, 0.53 * 100, 7], dtype=torch.float32)
    )
    assert sample["visibility"][3].tolist() == [2, 2, 0]
    assert sample["keypoints"][3, 1].tolist() == [64, 12]
    assert to_labels(sample)["keypoints"][..., :2].max() <= 1


def test_annotations_of_categories_without_keypoints_are_ignored(folder):
    folder.categories = [CATEGORY, {"id": 2, "name": "tree"}]
    image_id = folder.add_image()
    folder.annotations.append({"id": 9, "image_id": image_id, "category_id": 2, "bbox": [0, 0, 5, 5]})
    assert check(folder).findings == {} and len(CocoPoseDataset(*folder.arguments)[0]["area"]) == 0
