"""Tracking metrics on hand-made tracks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from transformers_detrpose.evaluation.tracking_metrics import TrackingMetric, measure_smoothness
from transformers_detrpose.keypoint_schemas import COCO_PERSON

HEIGHT = 64.0  # pixels


@dataclass
class People:
    track_ids: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray


def people_at(centers):
    shape = np.random.default_rng(0).uniform(0, HEIGHT, (17, 2))
    shape[:2, 1] = 0, HEIGHT
    centers = np.asarray(centers, dtype=float)
    return People(np.arange(len(centers)), shape + centers[:, None], np.ones((len(centers), 17), dtype=bool))


def found(people, ids=None, offset=0.0):
    ids = people.track_ids if ids is None else ids
    scores = torch.ones(len(people.keypoints))
    return {
        "scores": scores,
        "labels": scores.long(),
        "keypoints": torch.tensor(people.keypoints + offset),
        "track_id": torch.tensor(ids),
    }


@pytest.fixture(scope="module")
def truth():
    return [people_at([(2.0 * frame, 0), (300 - 2.0 * frame, 0)]) for frame in range(20)]


class TestIdentities:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("trackers")

    def score(self, truth, frames):
        metric = TrackingMetric(COCO_PERSON)
        metric.update(truth, frames)
        return metric.compute()

    def test_perfect(self, truth):
        scores = self.score(truth, [found(people) for people in truth])
        assert scores == {"HOTA": 1, "AssA": 1, "IDF1": 1, "MOTA": 1, "IDSW": 0, "false_tracks": 0}

    def test_a_switch(self, truth):
        frames = [found(people, [7, 9] if frame < 10 else [9, 7]) for frame, people in enumerate(truth)]
        scores = self.score(truth, frames)
        assert scores["IDSW"] == 2 and scores["IDF1"] == pytest.approx(0.5)
        assert scores["AssA"] == pytest.approx(1 / 3)  # each pair is right in 10 of the 30 frames that have one of both

    def test_a_miss_and_a_false_track(self, truth):
        frames = [found(people, [0, 1]) for people in truth]
        for poses in frames[:5]:
            poses["keypoints"][1] += 1000
            poses["track_id"][1] = 2
        scores = self.score(truth, frames)
        assert scores["false_tracks"] == 1 and scores["MOTA"] == pytest.approx(1 - 10 / 40)

    def test_poses_of_no_track_do_not_count(self, truth):
        frames = [found(people, [0, -1]) for people in truth]
        assert self.score(truth, frames)["MOTA"] == pytest.approx(0.5)

    def test_hidden_keypoints_do_not_count(self, truth):
        hidden = [People(people.track_ids, people.keypoints, people.visible.copy()) for people in truth]
        frames = [found(people) for people in truth]
        for people, poses in zip(hidden, frames, strict=True):
            people.visible[:, 4] = False
            poses["keypoints"][:, 4] += 100
        assert self.score(hidden, frames)["HOTA"] == pytest.approx(1)

    def test_nobody_and_nothing(self):
        empty = [people_at(np.empty((0, 2)))] * 3
        assert self.score(empty, [found(people) for people in empty])["IDSW"] == 0
        with pytest.raises(ValueError, match="no videos"):
            TrackingMetric("coco").compute()


class TestSmoothness:
    def test_perfect(self, truth):
        measured = measure_smoothness(truth, [found(people) for people in truth], "coco")
        assert measured == {"jitter": 0, "lag": 0, "KS": 1}

    def test_trembling(self, truth):
        frames = [found(people, offset=(0, 1) if frame % 2 else (0, 0)) for frame, people in enumerate(truth)]
        measured = measure_smoothness(truth, frames, "coco")
        assert measured["jitter"] == pytest.approx(2 / HEIGHT)  # accelerations of 2 pixels, up and down

    @pytest.mark.parametrize("late", [1, 3])
    def test_lag(self, truth, late):
        frames = [found(people) for people in truth]
        measured = measure_smoothness(truth[late:], frames[: len(frames) - late], "coco")
        assert measured["lag"] == pytest.approx(late) and measured["jitter"] == pytest.approx(0, abs=1e-9)

    def test_nobody_found(self, truth):
        with pytest.raises(ValueError, match="nobody is found"):
            measure_smoothness(truth, [found(people, offset=1000) for people in truth], "coco")
