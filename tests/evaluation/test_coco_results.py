"""Records in COCO's results format, and the file that they are written to."""

import json

import numpy as np
import pytest
import torch

from transformers_detrpose.evaluation import coco_records, results_writer, write_coco_results

POSES = {
    "scores": torch.tensor([0.75, 0.5]),
    "labels": torch.tensor([1, 2]),
    "keypoints": torch.tensor([[[1.004, 2.0], [3.0, 4.126]], [[5.0, 6.0], [7.0, 8.0]]]),
}


def test_poses_alone():
    first, second = coco_records(POSES, decimals=2, image_id=7)
    assert first == {"image_id": 7, "category_id": 1, "keypoints": [1.0, 2.0, 1, 3.0, 4.13, 1], "score": 0.75}
    assert second["category_id"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keypoint_scores_and_boxes(dtype):
    poses = {
        **{key: value.to(dtype) if value.is_floating_point() else value for key, value in POSES.items()},
        "keypoint_scores": torch.tensor([[0.5, 0.25], [1.0, 0.0]], dtype=dtype),
        "boxes": torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 6.0, 7.0, 8.0]], dtype=dtype),
    }
    record = coco_records(poses, file_name="a.png")[1]
    assert list(record) == ["file_name", "category_id", "keypoints", "score", "bbox"]
    assert record["keypoints"] == [5.0, 6.0, 1.0, 7.0, 8.0, 0.0]
    assert record["bbox"] == [5.0, 6.0, 2.0, 2.0]
    assert json.loads(json.dumps(record)) == record


def test_records_are_written_as_they_come(tmp_path):
    with results_writer(tmp_path / "new" / "results.json") as write:
        for image_id in (3, 1):
            write(coco_records(POSES, image_id=image_id))
        write([])
        assert not (tmp_path / "new" / "results.json").exists()
    records = json.loads((tmp_path / "new" / "results.json").read_text())
    assert [record["image_id"] for record in records] == [3, 3, 1, 1]


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "results.json"
    write_coco_results(path, {})
    assert json.loads(path.read_text()) == []
    with pytest.raises(KeyboardInterrupt), results_writer(path) as write:
        write(coco_records(POSES))
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == [] and list(tmp_path.iterdir()) == [path]


def test_arrays_are_taken_like_tensors():
    arrays = {key: np.asarray(value) for key, value in POSES.items()}
    assert coco_records(arrays) == coco_records(POSES)
