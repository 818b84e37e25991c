"""Near-identical poses of one person."""

import pytest

from moving_poses import poses_at
from transformers_detrpose import COCO_PERSON, KeypointSchema, unite_schemas
from transformers_detrpose.video import remove_duplicates


def remaining(poses, **options):
    return remove_duplicates(poses, "coco", **options)["scores"].tolist()


def test_the_best_of_similar_poses_remains():
    poses = poses_at([(100, 100), (101, 100), (200, 100), (100, 101)], scores=[0.5625, 0.75, 0.25, 0.5])
    assert remaining(poses) == [0.75, 0.25]
    assert {len(values) for values in remove_duplicates(poses, "coco").values()} == {2}


def test_people_who_overlap_remain():
    assert len(remaining(poses_at([(100, 100), (115, 100)]))) == 2
    assert len(remaining(poses_at([(100, 100), (115, 100)]), threshold=0.0)) == 1


def test_other_classes_remain():
    assert len(remaining(poses_at([(100, 100), (100, 100)], labels=[0, 1]))) == 2


@pytest.mark.parametrize("centers", [[], [(100, 100)]])
def test_few_poses(centers):
    assert len(remaining(poses_at(centers))) == len(centers)


def test_threshold_out_of_range():
    with pytest.raises(ValueError, match="`threshold` must be from 0 to 1, but got 1.5"):
        remaining(poses_at([]), threshold=1.5)


def test_only_keypoints_of_the_class_count():
    """Persons and their noses; what a nose lacks is far from each other's, and does not matter."""
    nose = KeypointSchema(names=("nose",), sigmas=(0.026,))
    schema = unite_schemas({0: COCO_PERSON, 1: nose}, {0: "person", 1: "nose"})
    poses = poses_at([(100, 100), (100.01, 100), (100, 100)], scores=[0.5, 0.75, 0.25], labels=[1, 1, 0])
    poses["keypoints"][0, 1:] += 5
    assert remove_duplicates(poses, schema)["scores"].tolist() == [0.75, 0.25]
    assert remaining({**poses, "labels": poses["labels"] * 0}) == [0.5, 0.75]  # as persons they differ
