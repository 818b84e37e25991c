"""Labels made from COCO annotations; the tests of the image processor cover more of them."""

import pytest
import torch

from transformers_detrpose.labels import prepare_coco_labels, prepare_labels

PERSON = {"id": 5, "category_id": 1, "keypoints": [10, 20, 2, 30, 5, 1], "bbox": [10, 4, 20, 16], "area": 80.0}


def labels_of(**changes):
    target = {"image_id": 2**40, "annotations": [{**PERSON, **changes}]}
    return prepare_coco_labels(target, size_hw=(20, 40), num_keypoints=2)


@pytest.mark.parametrize(
    "keypoints, expected",
    [
        ([10, 20, 2, 41.5, 5, 1], [[0.25, 1, 2], [0, 0, 0]]),  # more than a pixel outside: as if not labeled
        ([10, 20.5, 2, -0.5, 5, 1], [[0.25, 1, 2], [0, 0.25, 1]]),  # annotation tools round: on the border
    ],
)
def test_keypoints_outside_the_image(keypoints, expected):
    assert labels_of(keypoints=keypoints)["keypoints"].tolist() == [expected]


def test_whoever_is_wholly_outside_is_left_out():
    labels = labels_of(keypoints=[50, 20, 2, 60, 20, 2])
    assert labels["keypoints"].shape == (0, 2, 3) and labels["boxes"].shape == (0, 4)


def test_boxes_end_at_the_border():
    boxes = labels_of(bbox=[30, 10, 20, 20])["boxes"]
    torch.testing.assert_close(boxes, torch.tensor([[35 / 40, 15 / 20, 10 / 40, 10 / 20]]))
    assert labels_of()["image_id"].tolist() == [2**40]


@pytest.mark.parametrize("image_id", [2**63, True, 1.0, None, [1]])
def test_ids_that_no_tensor_holds(image_id):
    with pytest.raises(ValueError, match="image number 0: `image_id` must be an integer"):
        prepare_labels({"image_id": image_id, "annotations": []}, [(20, 40)])


def test_all_problems_of_an_image_are_reported():
    target = {"image_id": 3, "annotations": [{**PERSON, "area": "large", "bbox": 7}, {**PERSON, "keypoints": [1]}]}
    with pytest.raises(ValueError, match="image 3, annotation 5: `keypoints`") as caught:
        prepare_coco_labels(target, (20, 40), 2)
    assert [line.split("`")[1] for line in str(caught.value).splitlines()] == ["keypoints", "bbox", "area"]


def test_ragged_keypoints_without_a_schema():
    with pytest.raises(ValueError, match="annotation 5: `keypoints` must be"):
        prepare_labels({"image_id": 3, "annotations": [{**PERSON, "keypoints": [[1, 2], [3]]}]}, [(20, 40)])
