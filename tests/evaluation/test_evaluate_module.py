"""The metrics in Hugging Face's `evaluate` library."""

import json
import runpy
import sys
import types

import evaluate
import pytest
import torch

from transformers_detrpose.evaluation import EVALUATE_MODULE, METRICS

TRIANGLE = [[10.0, 10.0], [50.0, 10.0], [30.0, 60.0]]
SCHEMA = {"names": ["left", "right", "top"], "sigmas": [0.05, 0.05, 0.1]}
HALF = 51 / 101  # half of the people found, over 101 recalls


@pytest.fixture
def annotations():
    """Two images with the same person."""
    person = {"category_id": 1, "keypoints": [v for x, y in TRIANGLE for v in (x, y, 2)], "bbox": [10, 10, 40, 50]}
    return {
        "images": [{"id": 1, "crowdIndex": 0.1}, {"id": 2, "crowdIndex": 0.9}],
        "categories": [{"id": 1, "name": "triangle"}],
        "annotations": [{**person, "id": image_id, "image_id": image_id, "area": 5000.0} for image_id in (1, 2)],
    }


def found(*poses):
    """Post-processed poses, with fields that the metrics do not use."""
    keypoints = torch.tensor(poses).reshape(-1, 3, 2)
    count = len(keypoints)
    scores, labels = torch.full((count,), 0.9), torch.ones(count, dtype=torch.int64)
    others = {"keypoint_scores": torch.ones(count, 3), "boxes": torch.zeros(count, 4)}
    return {"scores": scores, "labels": labels, "keypoints": keypoints, **others}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.mark.parametrize("name", METRICS)
def test_load(annotations, tmp_path, name):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations))
    metric = evaluate.load(EVALUATE_MODULE, name, annotations=str(path), keypoint_schema=SCHEMA)
    metric.add_batch(predictions=[found(TRIANGLE), found()], references=[1, 2])
    scores = metric.compute()
    assert scores["AP"] == pytest.approx(HALF) and ("AP_hard" in scores) == (name == "crowdpose")
    for image_id in (1, 2):  # again, after the reset
        metric.add(prediction=found(TRIANGLE), reference=image_id)
    assert metric.compute()["AP"] == pytest.approx(1)


def test_an_unknown_metric(annotations):
    with pytest.raises(ValueError, match="one of coco, crowdpose, but got 'voc'"):
        evaluate.load(EVALUATE_MODULE, "voc", annotations=annotations, keypoint_schema=SCHEMA)


def test_a_script_named_evaluate_comes_first(monkeypatch):
    """As for scripts next to one of that name: the error says so."""
    script = types.ModuleType("evaluate")
    script.__file__ = "examples/evaluate.py"
    monkeypatch.setitem(sys.modules, "evaluate", script)
    with pytest.raises(ImportError, match="`import evaluate` finds examples/evaluate.py in place of Hugging Face's"):
        runpy.run_path(EVALUATE_MODULE)
