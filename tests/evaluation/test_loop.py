"""The evaluation loop with a model that is only a function."""

from types import SimpleNamespace

import pytest
import torch

from transformers_detrpose import DETRPoseImageProcessor
from transformers_detrpose.evaluation import CocoKeypoints, evaluate_model

SCHEMA = {"names": ["left", "right"], "sigmas": [0.05, 0.05]}
POINTS = torch.tensor([[0.25, 0.5], [0.75, 0.5]])  # fractions of the image
SIZES_HW = [(40, 80), (100, 60), (50, 50)]


def model(pixel_values):
    """Finds the right pose in every image that is not black."""
    is_black = pixel_values.amax((1, 2, 3)) == 0
    logits = torch.tensor([-9.0, 4.0]).repeat(len(pixel_values), 1, 1)
    return SimpleNamespace(logits=logits, pred_keypoints=POINTS + 9.0 * is_black[:, None, None, None])


def batch(image_ids):
    labels = [
        {"image_id": torch.tensor([i]), "orig_size": torch.tensor(SIZES_HW[i - 1])} for i in image_ids
    ]  # the last image is black
    return {"pixel_values": torch.stack([torch.full((3, 8, 8), float(i < 3)) for i in image_ids]), "labels": labels}


def test_poses_in_pixels_of_the_original_images_reach_the_metric():
    people = []
    for image_id, (height, width) in enumerate(SIZES_HW, start=1):
        points = POINTS * torch.tensor([width, height])
        keypoints = torch.cat([points, torch.full((2, 1), 2.0)], dim=1).flatten().tolist()
        person = {"id": image_id, "image_id": image_id, "category_id": 1, "area": 2000.0, "bbox": [0, 0, 40, 50]}
        people.append({**person, "keypoints": keypoints})
    images = [{"id": image_id} for image_id in (1, 2, 3)]
    categories = [{"id": 1, "name": "bird"}]
    metric = CocoKeypoints({"images": images, "categories": categories, "annotations": people}, SCHEMA)
    processor = DETRPoseImageProcessor(keypoint_schema=SCHEMA)
    for _ in range(2):  # the metric is reset
        poses = evaluate_model(model, processor, [batch([1, 2]), batch([3, 1])], metric, progress=False)
        assert sorted(poses) == [1, 2, 3]
        assert poses[2]["keypoints"][0].tolist() == [[15.0, 50.0], [45.0, 50.0]]
        assert metric.score(poses)["AR"] == pytest.approx(2 / 3)
