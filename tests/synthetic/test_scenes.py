"""Scenes of walking people: their truth, what a simulated detector finds in them, and their videos."""

import numpy as np
import pytest
import torch

from transformers_detrpose.keypoint_schemas import COCO_PERSON
from transformers_detrpose.synthetic import scenes as scenes_module
from transformers_detrpose.synthetic.detections import DetectorErrors, SimulatedDetector
from transformers_detrpose.synthetic.scenes import Camera, sample_scene
from transformers_detrpose.synthetic.videos import Video

SIZE = (360, 640)
NO_ERRORS = {"missed": 0, "duplicated": 0, "false_rate": 0, "confusion": 0}


def truths(crossing, fps=5, seconds=16, people=4, seed=0):
    scene = sample_scene(np.random.default_rng(seed), SIZE, people, seconds, crossing)
    return [scene.truth(frame / fps) for frame in range(fps * seconds)]


@pytest.fixture(scope="module")
def crossing():
    return truths(crossing=True)


@pytest.fixture(scope="module")
def wandering():
    return truths(crossing=False)


class TestScenes:
    def test_people_who_cross_stay_in_the_image_and_hide_each_other(self, crossing):
        assert all(sorted(frame.track_ids) == [0, 1, 2, 3] for frame in crossing)
        assert np.mean([frame.visible.mean() for frame in crossing]) < 0.99
        centers = np.stack([frame.keypoints[np.argsort(frame.track_ids)].mean(axis=1)[:, 0] for frame in crossing])
        orders = {tuple(np.argsort(row)) for row in centers}
        assert len(orders) > 3

    def test_others_leave_and_come_back(self, wandering):
        present = np.array([[track_id in frame.track_ids for track_id in range(4)] for frame in wandering])
        changes = np.diff(present.astype(int), axis=0)
        assert (changes == -1).any() and (changes == 1).any() and present.mean() > 0.4

    def test_they_walk_and_turn(self, crossing):
        shoulders = [COCO_PERSON.names.index(f"{side}_shoulder") for side in ("left", "right")]
        widths = np.concatenate(
            [frame.keypoints[:, shoulders[0], 0] - frame.keypoints[:, shoulders[1], 0] for frame in crossing]
        )
        assert (widths > 5).any() and (widths < -5).any()  # seen from the front and from behind

    def test_the_farthest_are_the_first(self, crossing):
        for frame in crossing:
            hidden = frame.hidden_by[frame.hidden_by >= 0]
            rows = np.nonzero(frame.hidden_by >= 0)[0]
            assert (hidden > rows).all()

    def test_a_time_has_one_truth_at_any_frame_rate(self):
        slow, fast = truths(True, fps=5, seconds=2), truths(True, fps=10, seconds=2)
        for frame, same in zip(slow, fast[::2], strict=True):
            np.testing.assert_array_equal(frame.keypoints, same.keypoints)

    def test_movements_are_smooth(self):
        fps = 60
        frames = truths(True, fps=fps, seconds=2)
        paths = np.stack([frame.keypoints[np.argsort(frame.track_ids)] for frame in frames])
        accelerations = np.linalg.norm(np.diff(paths, 2, axis=0), axis=-1) / frames[0].heights.min()
        assert accelerations.max() < 0.02 and np.abs(np.diff(paths[:, :, :, 0], axis=0)).mean() > 0.1

    def test_the_camera_moves(self, crossing):
        camera = sample_scene(np.random.default_rng(0), SIZE, 1, 4.0, True).camera
        positions = [camera.project(0, 6, 1, time)[0] for time in np.linspace(0, 10, 20)]
        assert np.ptp(positions, axis=0).min() > 1

    def test_projection(self):
        still = np.zeros((1, 3))
        camera = Camera(SIZE, 400.0, height=1.5, pitch=0.0, swings=(still, still, still))
        position, depth, azimuth, elevation = camera.project(2, 4, 0.5, 0)
        np.testing.assert_allclose(position, [320 + 400 * 2 / 4, 180 + 400 * 1 / 4])
        assert depth == 4 and azimuth == pytest.approx(np.arctan2(2, 4))
        assert elevation == pytest.approx(np.arctan2(1, np.hypot(2, 4)))

    def test_who_hides_whom(self):
        person = 100 * np.stack([np.linspace(0, 1, 17), np.linspace(0, 1, 17) % 0.37], axis=1)
        keypoints = np.stack([person, person, person + 500])
        hidden = scenes_module._find_hidden(keypoints, np.full(3, 100.0))
        bones = {end for ends in scenes_module._BONE_ENDS.tolist() for end in ends}
        assert (hidden[0][sorted(bones)] == 1).all()
        assert (hidden[1:] == -1).all()


class TestSimulatedDetector:
    def test_without_errors_the_truth_is_found(self, crossing):
        detector = SimulatedDetector(np.random.default_rng(0), SIZE, DetectorErrors(noise=1e-9, **NO_ERRORS))
        clear = [frame for frame in crossing if frame.visible.all()]
        assert clear
        for frame in clear:
            poses = detector(frame)
            assert {name: tuple(values.shape) for name, values in poses.items()} == {
                "scores": (4,), "labels": (4,), "keypoints": (4, 17, 2), "keypoint_scores": (4, 17),
                "keypoint_std": (4, 17, 2), "boxes": (4, 4),
            }  # fmt: skip
            expected = torch.tensor(frame.keypoints).float()
            nearest = torch.cdist(poses["keypoints"].flatten(1), expected.flatten(1)).min(dim=1)
            assert nearest.values.max() < 1e-2 and len(set(nearest.indices.tolist())) == 4

    def test_reported_deviations_are_those_of_the_errors_except_for_their_own(self, crossing):
        detector = SimulatedDetector(np.random.default_rng(0), SIZE, DetectorErrors(**NO_ERRORS))
        ratios = []
        for frame in crossing:
            poses = detector(frame)
            expected = torch.tensor(frame.keypoints).float()
            nearest = torch.cdist(poses["keypoints"].flatten(1), expected.flatten(1)).argmin(dim=1)
            ratios.append(((poses["keypoints"] - expected[nearest]) / poses["keypoint_std"]).flatten())
        ratios = torch.cat(ratios)
        assert 0.7 < ratios.square().mean().sqrt() < 1.5 and abs(ratios.mean()) < 0.3

    def test_misses_duplicates_and_false_poses(self, crossing):
        def counts(**changes):
            detector = SimulatedDetector(np.random.default_rng(0), SIZE, DetectorErrors(**{**NO_ERRORS, **changes}))
            return sum(len(detector(frame)["scores"]) for frame in crossing)

        usual = counts()
        assert counts(missed=0.5) < 0.7 * usual
        assert 1.3 * usual < counts(duplicated=0.5) < 1.7 * usual
        assert counts(false_rate=5.0) > usual + 20

    def test_poses_are_sorted_and_repeatable(self, wandering):
        first, second = (SimulatedDetector(np.random.default_rng(0), SIZE) for _ in range(2))
        for frame in wandering:
            poses = first(frame)
            assert (poses["scores"].diff() <= 0).all()
            assert all(torch.equal(poses[name], values) for name, values in second(frame).items())

    def test_nobody(self):
        frame = sample_scene(np.random.default_rng(0), SIZE, 0, 1.0).truth(0.0)
        poses = SimulatedDetector(np.random.default_rng(0), SIZE, DetectorErrors(false_rate=0))(frame)
        assert poses["keypoints"].shape == (0, 17, 2) and poses["boxes"].shape == (0, 4)


class TestVideos:
    def test_drawn_and_computed_truth_agree(self):
        video = Video(seed=0, index=1, size=(180, 320), max_people=4, duration=4.0)
        agreeing = []
        for time in (0.5, 1.5, 2.5):
            picture, people = video.draw(time)
            truth = video.scene.truth(time)
            assert picture.size == (320, 180) and people
            for person in people:
                row = truth.track_ids.tolist().index(person["track_id"])
                keypoints = np.reshape(person["keypoints"], (17, 3))
                labelled = keypoints[:, 2] > 0
                errors = (keypoints[:, :2] - truth.keypoints[row])[labelled]
                assert np.abs(errors).max() < 0.02
                agreeing += ((keypoints[:, 2] > 0) == truth.inside[row]).tolist()
        assert np.mean(agreeing) > 0.98

    def test_a_video_can_be_drawn_again(self):
        pictures = [Video(5, 0, (90, 160), 3, 2.0).draw(1.0) for _ in range(2)]
        assert np.array_equal(pictures[0][0], pictures[1][0]) and pictures[0][1] == pictures[1][1]
