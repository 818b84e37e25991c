"""Smoothing, online and offline, on movements that are known."""

import numpy as np
import pytest
import torch

from moving_poses import HEIGHT, STANDING, poses_at
from transformers_detrpose.evaluation.tracking_metrics import measure_smoothness
from transformers_detrpose.synthetic.detections import DetectorErrors, SimulatedDetector
from transformers_detrpose.synthetic.scenes import sample_scene
from transformers_detrpose.video import PoseSmoother, body_motion, offline, smooth_tracks

FPS = 30


def tracked(centers, ids=None, **options):
    poses = poses_at(centers, **options)
    return {**poses, "track_id": torch.arange(len(poses["scores"])) if ids is None else torch.tensor(ids)}


def smooth_online(frames, times, **options):
    smoother = PoseSmoother(**options)
    return [smoother.update(poses, time) for poses, time in zip(frames, times, strict=True)]


def smooth_one_frame_late(frames, times, **options):
    smoother, smoothed = PoseSmoother(**options), []
    for poses, time in zip(frames, times, strict=True):
        latest = smoother.update(poses, time)
        smoothed += [] if smoother.previous is None else [smoother.previous]
    return [*smoothed, latest]


SMOOTHERS = {"online": smooth_online, "one frame late": smooth_one_frame_late, "offline": smooth_tracks}
every_smoother = pytest.mark.parametrize("smooth", SMOOTHERS.values(), ids=SMOOTHERS)


def make_walk(fps, seconds, num_people):
    """Times, truth and poses with true identities of a video, with noise only."""
    size, times = (720, 1280), [frame / fps for frame in range(round(fps * seconds))]
    scene = sample_scene(np.random.default_rng(0), size, num_people, seconds, crossing=True)
    errors = DetectorErrors(missed=0, duplicated=0, false_rate=0)
    detector, truth = SimulatedDetector(np.random.default_rng(1), size, errors), [scene.truth(time) for time in times]
    frames = []
    for people in truth:
        poses = detector(people)
        near = torch.cdist(poses["keypoints"].mean(dim=1), torch.tensor(people.keypoints).float().mean(dim=1))
        frames.append({**poses, "track_id": torch.tensor(people.track_ids)[near.argmin(dim=1)]})
    return times, truth, frames


@pytest.fixture(scope="module")
def walk():
    return make_walk(FPS, 3.0, 2)


def assert_less_jitter(times, truth, frames, smooth, least):
    before = measure_smoothness(truth, frames, "coco")
    after = measure_smoothness(truth, smooth(frames, times), "coco")
    assert after["jitter"] < (1 - least) * before["jitter"]
    assert abs(after["lag"]) < 0.3
    assert after["KS"] > before["KS"]


class TestBoth:
    @pytest.mark.parametrize("smooth, least", [*zip(SMOOTHERS.values(), (0.5, 0.7, 0.85), strict=True)], ids=SMOOTHERS)
    def test_less_jitter_without_lag_or_loss(self, walk, smooth, least):
        assert_less_jitter(*walk, smooth, least)

    @pytest.mark.parametrize("smooth, least", [*zip(SMOOTHERS.values(), (0.2, 0.6, 0.65), strict=True)], ids=SMOOTHERS)
    def test_less_jitter_at_a_low_frame_rate(self, smooth, least):
        assert_less_jitter(*make_walk(10, 9.0, 4), smooth, least)

    @every_smoother
    def test_poses_of_no_track_and_not_finite_ones_are_unchanged(self, smooth):
        rng = np.random.default_rng(0)
        frames = [tracked(rng.normal(100, 5, (3, 2)), ids=[0, -1, 1]) for _ in range(5)]
        for poses in frames:
            poses["keypoints"][2, 3] = float("nan")
        for before, after in zip(frames, smooth(frames, np.arange(5) / FPS), strict=True):
            changed = not torch.equal(after["keypoints"][0], before["keypoints"][0])
            assert changed or (before is frames[0] and smooth is smooth_online)
            assert torch.equal(after["keypoints"][1], before["keypoints"][1])
            assert torch.equal(after["keypoints"][2].nan_to_num(-1), before["keypoints"][2].nan_to_num(-1))
            assert torch.equal(after["scores"], before["scores"])

    @every_smoother
    def test_uncertain_keypoints_are_smoothed_more(self, smooth):
        moved = []
        for std in (0.5, 5.0):
            frames = [tracked([(100 + (frame == 10), 100)], std=std) for frame in range(20)]
            moved.append(float(smooth(frames, np.arange(20) / FPS)[10]["keypoints"][0, 0, 0]) - 100)
        assert 0 < moved[1] < 0.7 * moved[0] < 0.7

    @every_smoother
    def test_keypoints_that_a_class_lacks_move_no_others(self, smooth):
        smoothed = []
        for seed in (0, 1):
            rng, frames = np.random.default_rng(seed), []
            for frame in range(20):
                poses = tracked([(100 + frame, 100)])
                poses["keypoints"][0, 0] += torch.tensor(rng.normal(0, 3, 2))
                poses["keypoint_std"][0, 0] = 0
                frames.append(poses)
            smoothed.append(smooth(frames, np.arange(20) / FPS)[-1]["keypoints"][0])
        torch.testing.assert_close(smoothed[0][1:], smoothed[1][1:], atol=0.05, rtol=0)

    @every_smoother
    def test_boxes_fit(self, walk, smooth):
        times, _, frames = walk
        poses = smooth(frames[:9], times[:9])[-1]
        corners = torch.cat([poses["keypoints"].amin(dim=1), poses["keypoints"].amax(dim=1)], dim=-1)
        assert torch.equal(poses["boxes"], corners)

    @every_smoother
    @pytest.mark.parametrize("times, message", [([0.1, 0.0], "went back from 0.1 to 0.0"), ([0, np.inf], "seconds")])
    def test_bad_times(self, smooth, times, message):
        with pytest.raises(ValueError, match=message):
            smooth([tracked([(100, 100)])] * 2, times)

    @every_smoother
    def test_without_identities(self, smooth):
        with pytest.raises(ValueError, match="need `track_id`"):
            smooth([poses_at([(100, 100)])], [0.0])

    @every_smoother
    def test_nobody_and_repeated_times(self, smooth):
        frames = [tracked([]), tracked([(100, 100)]), tracked([(102, 100)]), tracked([])]
        smoothed = smooth(frames, [0.0, 0.1, 0.1, 0.2])
        assert [len(poses["scores"]) for poses in smoothed] == [0, 1, 1, 0]
        assert all(poses["keypoints"].isfinite().all() for poses in smoothed)


class TestOnline:
    def test_a_new_track_and_one_after_a_gap_begin_anew(self):
        frames = [tracked([(100, 100)])] * 5 + [tracked([(160, 100)])]
        times = [*(np.arange(5) / FPS), 2.0]
        assert torch.equal(smooth_online(frames, times)[-1]["keypoints"], frames[-1]["keypoints"])
        assert not torch.equal(smooth_online(frames, times, max_gap=3.0)[-1]["keypoints"], frames[-1]["keypoints"])

    def test_another_resolution(self):
        smoother, before = PoseSmoother(), None
        for frame in range(10):
            factor = 1 if frame < 5 else 2
            poses = tracked([], ids=[0], keypoints=factor * poses_at([(100, 100)])["keypoints"].numpy())
            after = smoother.update(poses, frame / FPS, (240 * factor, 400 * factor))
            torch.testing.assert_close(after["keypoints"], poses["keypoints"], atol=1e-3, rtol=0)
            if before is not None:  # in the pixels of its own frame
                torch.testing.assert_close(smoother.previous["keypoints"], before, atol=1e-3, rtol=0)
            before = poses["keypoints"]

    def test_the_previous_poses_are_those_of_the_previous_frame(self):
        smoother, times = PoseSmoother(), [0.0, 0.1, 0.1, 0.2, 0.3]
        visible = [[0, 1, 2], [2, 0], [1], [2, 1], []]
        frames = [tracked([(100 + 200 * i, 100 + 5 * frame) for i in ids], ids) for frame, ids in enumerate(visible)]
        assert smoother.previous is None
        updated = [smoother.update(frames[0], times[0])]
        for before, poses, time in zip(frames, frames[1:], times[1:], strict=False):
            updated.append(smoother.update(poses, time))
            assert torch.equal(smoother.previous["track_id"], before["track_id"])
            torch.testing.assert_close(smoother.previous["keypoints"], before["keypoints"], atol=6, rtol=0)
            for index, track_id in enumerate(before["track_id"].tolist()):  # who is not seen again stays
                was_changed = not torch.equal(smoother.previous["keypoints"][index], updated[-2]["keypoints"][index])
                assert was_changed == (track_id in poses["track_id"].tolist())

    @pytest.mark.parametrize("options", [{"acceleration": 0}, {"max_gap": -1}])
    def test_arguments_out_of_range(self, options):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be at least"):
            PoseSmoother(**options)


class TestOffline:
    def frames(self, missing):
        return [tracked([] if frame in missing else [(100 + 2 * frame, 100)]) for frame in range(30)]

    def test_gaps_are_filled_and_marked(self):
        smoothed = smooth_tracks(self.frames(range(10, 20)), np.arange(30) / FPS)
        for frame, poses in enumerate(smoothed):
            assert poses["filled"].tolist() == [frame in range(10, 20)]
            assert poses["track_id"].tolist() == [0]
            expected = poses_at([(100 + 2 * frame, 100)])["keypoints"]
            torch.testing.assert_close(poses["keypoints"], expected, atol=1.0, rtol=0)
        deviations = [float(poses["keypoint_std"].mean()) for poses in smoothed]
        assert deviations[15] > deviations[11] > 0

    def test_scores_are_interpolated(self):
        frames = [tracked([(100, 100)], scores=[0.5]), tracked([]), tracked([(100, 100)], scores=[1.0])]
        filled = smooth_tracks(frames, [0.0, 0.1, 0.2])[1]
        assert filled["scores"].tolist() == [0.75] and filled["keypoint_scores"].tolist() == [[0.75] * 17]

    def test_long_gaps_are_not_filled(self):
        smoothed = smooth_tracks(self.frames(range(5, 25)), np.arange(30) / FPS)
        assert [len(poses["scores"]) for poses in smoothed] == [1] * 5 + [0] * 20 + [1] * 5
        assert not any(poses["filled"].any() for poses in smoothed)

    def test_frames_are_not_changed(self):
        frames = self.frames([])
        copies = [poses["keypoints"].clone() for poses in frames]
        smooth_tracks(frames, np.arange(30) / FPS)
        assert all(torch.equal(poses["keypoints"], copy) for poses, copy in zip(frames, copies, strict=True))

    def test_one_time_per_frame(self):
        with pytest.raises(ValueError, match="30 frames, but 29 timestamps"):
            smooth_tracks(self.frames([]), np.arange(29) / FPS)

    def test_the_smoother_agrees_with_the_solution_for_all_frames_at_once(self):
        rng = np.random.default_rng(0)
        times, seen = np.array([0.0, 0.03, 0.07, 0.1, 0.2, 0.22]), np.array([1, 1, 0, 1, 0, 1], dtype=bool)
        # Two keypoints so near each other that the person has the smallest size, whatever the noise.
        measured, noise = rng.normal(100, 0.2, (4, 2, 2)), rng.uniform(0.04, 0.09, (4, 2))
        size, coupling = body_motion._size(measured[0]), np.array([[2, 1], [1, 2]])
        precision, weighted = np.zeros((24, 24)), np.zeros((24, 2))

        def add(matrix, value, covariance):  # an observation `value` of matrix @ states
            nonlocal precision, weighted
            inverse = np.linalg.inv(covariance)
            precision += matrix.T @ inverse @ matrix
            weighted += matrix.T @ inverse @ value

        add(np.eye(24)[2:4], np.zeros((2, 2)), (body_motion.FIRST_SPEED * size) ** 2 * coupling)
        for frame in range(1, 6):
            t = times[frame] - times[frame - 1]
            growth = (body_motion.ACCELERATION * size) ** 2 * np.array([[t**3 / 3, t**2 / 2], [t**2 / 2, t]])
            matrix = np.zeros((4, 24))
            matrix[:, 4 * frame : 4 * frame + 4] = np.eye(4)
            matrix[:, 4 * frame - 4 : 4 * frame] = -np.kron([[1, t], [0, 1]], np.eye(2))
            add(matrix, np.zeros((4, 2)), np.kron(growth, coupling))
        for row, frame in enumerate(np.flatnonzero(seen)):
            add(np.eye(24)[4 * frame : 4 * frame + 2], measured[row], np.diag(noise[row]))
        covariance = np.linalg.inv(precision)
        rows = (4 * np.arange(6)[:, None] + [0, 1]).ravel()
        position, deviation = offline.smooth(times, seen, measured, noise)
        np.testing.assert_allclose(position.reshape(12, 2), (covariance @ weighted)[rows], rtol=1e-6)
        np.testing.assert_allclose(deviation[..., 0].ravel(), np.sqrt(np.diag(covariance)[rows]), rtol=1e-6)

    def test_blocks_of_a_long_track_fit_together(self, monkeypatch):
        rng, seen = np.random.default_rng(0), np.ones(300, dtype=bool)
        seen[[79, 80, 81, 119, 120, 199, 200]] = False
        walking = STANDING * HEIGHT + np.linspace(0, 900, 300)[:, None, None]
        measured = (walking + rng.normal(0, 2, walking.shape))[seen]
        whole = offline.smooth(np.arange(300) / FPS, seen, measured, np.full((293, 17), 4.0))
        monkeypatch.setattr(offline, "BLOCK", 40)
        blocks = offline.smooth(np.arange(300) / FPS, seen, measured, np.full((293, 17), 4.0))
        for one, other in zip(whole, blocks, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)
