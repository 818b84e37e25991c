"""Annotations as arrays: training targets, ground truth of the metrics, and missing boxes and areas."""

import math

import numpy as np
import pytest

from transformers_detrpose.instances import Problems, parse_instances


def parse(*annotations, num_keypoints=2):
    problems = Problems()
    names = [f"annotation {number}" for number in range(len(annotations))]
    complete = ({"category_id": 1, "keypoints": [10, 20, 2, 40, 60, 1], **annotation} for annotation in annotations)
    instances = parse_instances(list(complete), names, num_keypoints, problems)
    problems.raise_any()
    return instances


@pytest.mark.parametrize(
    "annotation, is_target, is_counted",
    [
        ({}, True, True),
        ({"iscrowd": 1}, False, False),
        ({"keypoints": [10, 20, 0, 40, 60, 0]}, False, False),
        ({"keypoints": [10, 20, 0, 40, 60, 1]}, True, True),  # labeled, but not visible
        ({"keypoints": None}, False, False),
        ({"keypoints": []}, False, False),
        ({"num_keypoints": 0}, True, False),  # CrowdPose, where all keypoints are hidden
        ({"num_keypoints": 2, "keypoints": [0] * 6}, False, False),  # nothing to detect, whatever it says
    ],
)
def test_who_is_a_person(annotation, is_target, is_counted):
    instances = parse(annotation)
    assert instances.is_target.tolist() == [is_target]
    assert instances.is_counted.tolist() == [is_counted]


@pytest.mark.parametrize(
    "annotation, box, area",
    [
        ({"bbox": [1, 2, 30, 40], "area": 700}, [1, 2, 30, 40], 700),
        ({"bbox": [1, 2, 30, 40]}, [1, 2, 30, 40], 0.53 * 30 * 40),
        ({"bbox": [1, 2, 30, 40], "area": -7}, [1, 2, 30, 40], 0.53 * 30 * 40),
        ({"area": 700}, [10, 20, 30, 40], 700),
        ({"bbox": [1, 2, 0, 40]}, [10, 20, 30, 40], 0.53 * 30 * 40),
        # Unlabeled keypoints do not affect the box.
        ({"keypoints": [10, 20, 2, 40, 60, 0]}, [10, 20, 0, 0], 0),
        ({"keypoints": [0] * 6}, [math.nan] * 4, math.nan),
    ],
)
def test_what_stands_in_for_boxes_and_areas(annotation, box, area):
    completed = parse(annotation).completed()
    np.testing.assert_allclose(completed.boxes, [box])
    np.testing.assert_allclose(completed.areas, [area])


def test_nobody():
    for num_keypoints in (0, 3):
        instances = parse(num_keypoints=num_keypoints).completed()
        assert len(instances) == 0 and instances.keypoints.shape == (0, num_keypoints, 3)
        assert instances.is_target.shape == (0,) and instances.boxes.shape == (0, 4)


def test_nested_keypoints_are_taken_like_flat_ones():
    instances = parse({}, {"keypoints": [[10, 20, 2], [40, 60, 1]]}, {"keypoints": np.array([10, 20, 2, 40, 60, 1.0])})
    assert instances.keypoints.tolist() == [[[10, 20, 2], [40, 60, 1]]] * 3
