"""Identities, on people whose identity is known."""

import numpy as np
import pytest
import torch

from moving_poses import HEIGHT, STANDING, poses_at
from transformers_detrpose import COCO_PERSON, KeypointSchema, unite_schemas
from transformers_detrpose.synthetic.detections import SimulatedDetector
from transformers_detrpose.synthetic.scenes import sample_scene
from transformers_detrpose.video import PoseTracker

FPS = 30


def follow(tracker, centers_at, frames, start=0, **options):
    """Tracks people at `centers_at(time)` and returns the ids in each frame."""
    times = [(start + frame) / FPS for frame in range(frames)]
    return [tracker.update(poses_at(centers_at(time), **options), time)["track_id"].tolist() for time in times]


def standing(time):
    return [(100, 100), (300, 100)]


class TestIdentities:
    def test_all_poses_are_returned_unchanged(self):
        poses = poses_at(standing(0))
        tracked = PoseTracker("coco").update(poses, 0.0)
        assert set(tracked) == {*poses, "track_id"} and tracked["track_id"].dtype == torch.int64
        assert all(tracked[name] is poses[name] for name in poses)

    def test_a_track_is_confirmed_after_some_frames(self):
        assert follow(PoseTracker("coco"), standing, 4) == [[-1, -1], [-1, -1], [0, 1], [0, 1]]
        assert follow(PoseTracker("coco", confirmation=1.5), standing, 2) == [[-1, -1], [0, 1]]

    def test_a_whole_video_has_identities_from_the_start(self):
        """The third person is seen twice, which is not enough; from the sixth frame on, the first two change places."""
        frames = [[*standing(0), (500, 100)]] * 2 + [standing(0)] * 4 + [standing(0)[::-1]] * 4
        frames, times = [poses_at(centers) for centers in frames], [index / FPS for index in range(10)]
        tracked = PoseTracker("coco").track(frames, times)
        assert [poses["track_id"].tolist() for poses in tracked] == [[0, 1, -1]] * 2 + [[0, 1]] * 4 + [[1, 0]] * 4
        assert all(poses["track_id"].dtype == torch.int64 for poses in tracked)
        tracker = PoseTracker("coco")
        confirmed = [
            tracker.update(poses, time)["track_id"].tolist() for poses, time in zip(frames, times, strict=True)
        ]
        assert confirmed[2:] == [poses["track_id"].tolist() for poses in tracked[2:]]

    def test_a_whole_video_without_people(self):
        (poses,) = PoseTracker("coco").track([poses_at([])], [0.0])
        assert poses["track_id"].shape == (0,) and poses["track_id"].dtype == torch.int64

    def test_the_order_of_poses_does_not_matter(self):
        ids = follow(PoseTracker("coco"), lambda time: standing(time)[:: 1 if round(time * FPS) % 2 else -1], 8)
        assert ids[4:] == [[1, 0], [0, 1]] * 2 or ids[4:] == [[0, 1], [1, 0]] * 2

    @pytest.mark.parametrize("speed", [60, 300, 450])
    def test_people_who_cross(self, speed):
        def crossing(time):
            return [(speed * (time - 1), 100), (-speed * (time - 1), 110)]

        ids = follow(PoseTracker("coco"), crossing, 2 * FPS)
        assert ids[3:] == [[0, 1]] * (2 * FPS - 3)

    def test_somebody_hidden_while_crossing(self):
        def crossing(time):  # the second person is not found while behind the first
            return [(100 * (time - 1), 100)] + ([(-100 * (time - 1), 104)] if abs(time - 1) > 0.2 else [])

        ids = follow(PoseTracker("coco"), crossing, 2 * FPS)
        assert {len(each) for each in ids} == {1, 2}
        assert all(each == [0, 1][: len(each)] for each in ids[3:])

    def test_a_camera_that_pans(self):
        ids = follow(PoseTracker("coco"), lambda time: [(400 * time, 100), (400 * time + 60, 100)], FPS)
        assert ids[3:] == [[0, 1]] * (FPS - 3)

    @pytest.mark.parametrize("gap, expected", [(0.5, [0, 1]), (2.0, [2, 3])])
    def test_people_who_come_back(self, gap, expected):
        tracker = PoseTracker("coco", max_gap=1.0)
        follow(tracker, standing, 10)
        empty = round(gap * FPS)
        follow(tracker, lambda time: [], empty, start=10)
        assert follow(tracker, standing, 4, start=10 + empty)[-1] == expected

    def test_low_scores_continue_tracks_but_begin_none(self):
        tracker = PoseTracker("coco")
        assert follow(tracker, standing, 5, scores=[0.9, 0.3])[-1] == [0, -1]
        assert follow(tracker, standing, 5, start=5, scores=[0.3, 0.3])[-1] == [0, -1]

    def test_a_duplicate_begins_no_track(self):
        ids = follow(PoseTracker("coco"), lambda time: [(100, 100), (101, 100)], 10, scores=[0.9, 0.7])
        assert {tuple(each) for each in ids[3:]} == {(0, -1)}

    def test_classes_are_tracked_separately(self):
        tracker = PoseTracker("coco")
        follow(tracker, lambda time: [(100, 100)], 5, labels=[0])
        assert follow(tracker, lambda time: [(100, 100)], 5, start=5, labels=[1])[-1] == [1]

    def test_a_pose_of_another_class_is_no_duplicate(self):
        ids = follow(PoseTracker("coco"), lambda time: [(100, 100), (100, 100)], 4, labels=[0, 1])
        assert ids[-1] == [0, 1]

    def test_any_skeleton(self):
        tracker = PoseTracker(KeypointSchema(names=("tip", "end")))
        for frame in range(4):
            points = torch.tensor([[[10.0, 20.0], [60.0, 20.0]]]) + frame
            poses = {"scores": torch.tensor([0.9]), "labels": torch.tensor([0]), "keypoints": points}
            ids = tracker.update(poses, frame / FPS)["track_id"].tolist()
        assert ids == [0]

    def test_reset(self):
        tracker = PoseTracker("coco")
        follow(tracker, standing, 5)
        tracker.reset()
        assert follow(tracker, standing, 4)[-1] == [0, 1]


class TestBadInput:
    def test_poses_that_are_not_finite(self):
        tracker = PoseTracker("coco")
        for frame in range(6):
            poses = poses_at([*standing(0), (500, 100)])
            poses["keypoints"][2, 5, 0] = float("nan")
            poses["keypoint_std"][1] = float("nan")
            if frame == 5:
                poses["scores"][0] = float("nan")
            ids = tracker.update(poses, frame / FPS)["track_id"].tolist()
            assert ids == [[-1, -1, -1], [0, 1, -1], [-1, 1, -1]][0 if frame < 2 else 1 if frame < 5 else 2]
        assert follow(tracker, standing, 1, start=6) == [[0, 1]]

    @pytest.mark.parametrize("time, message", [(0.05, "went back from 0.13"), (float("nan"), "a number of seconds")])
    def test_times_that_go_back_change_nothing(self, time, message):
        tracker = PoseTracker("coco")
        follow(tracker, standing, 5)
        with pytest.raises(ValueError, match=message):
            tracker.update(poses_at([(0, 0)]), time)
        assert follow(tracker, standing, 1, start=5) == [[0, 1]]

    def test_times_that_repeat(self):
        tracker = PoseTracker("coco")
        ids = [tracker.update(poses_at(standing(0)), 0.1 * (frame // 2))["track_id"].tolist() for frame in range(8)]
        assert ids[-1] == [0, 1]

    def test_a_jump_ahead_forgets_everybody(self):
        tracker = PoseTracker("coco")
        follow(tracker, standing, 5)
        assert follow(tracker, standing, 4, start=10_000) == [[-1, -1], [-1, -1], [2, 3], [2, 3]]

    def test_nobody_for_minutes(self):
        tracker = PoseTracker("coco")
        follow(tracker, standing, 5)
        empty = poses_at([])
        for second in range(1, 600):
            assert len(tracker.update(empty, second)["track_id"]) == 0
        assert len(tracker.ids) == 0

    def test_another_resolution(self):
        tracker = PoseTracker("coco")
        for frame in range(10):
            factor = 1 if frame < 5 else 2.5
            keypoints = factor * poses_at([(100 + 3 * frame, 100), (150, 100)])["keypoints"].numpy()
            size = (round(240 * factor), round(400 * factor))
            ids = tracker.update(poses_at([], keypoints=keypoints), frame / FPS, size)["track_id"].tolist()
        assert ids == [0, 1]

    def test_two_hundred_people(self):
        rng = np.random.default_rng(0)
        centers, speeds = rng.uniform(0, 2000, (200, 2)), rng.uniform(-30, 30, (200, 2))
        tracker = PoseTracker("coco")
        for frame in range(10):
            keypoints = 0.4 * HEIGHT * STANDING + (centers + speeds * frame / FPS)[:, None]
            ids = tracker.update(poses_at([], keypoints=keypoints), frame / FPS)["track_id"].numpy()
            if frame == 4:
                before = ids
        assert (before >= 0).mean() > 0.9  # a few stand in front of each other as duplicates do
        assert (ids == before)[before >= 0].mean() > 0.98

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"keypoints": torch.zeros(2, 5, 2)}, r"the shape \(2, 17, 2\) to go with `scores`, not \(2, 5, 2\)"),
            ({"keypoints": torch.zeros(1, 17, 2)}, r"not \(1, 17, 2\)"),
        ],
    )
    def test_poses_of_another_shape(self, change, message):
        with pytest.raises(ValueError, match=message):
            PoseTracker("coco").update({**poses_at(standing(0)), **change}, 0.0)

    def test_poses_without_keypoints(self):
        with pytest.raises(ValueError, match=r"need `scores`, `labels` and `keypoints`, but have \['scores'\]"):
            PoseTracker("coco").update({"scores": torch.zeros(1)}, 0.0)

    @pytest.mark.parametrize(
        "options", [{"threshold": 1.5}, {"min_similarity": -0.1}, {"max_gap": float("nan")}, {"confirmation": -1}]
    )
    def test_arguments_out_of_range(self, options):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
            PoseTracker("coco", **options)


def test_fewer_identity_switches_than_bytetrack_in_crossings():
    trackers = pytest.importorskip("trackers")
    sv = pytest.importorskip("supervision")
    from transformers_detrpose.evaluation.tracking_metrics import TrackingMetric

    ours, theirs, size = TrackingMetric("coco"), TrackingMetric("coco"), (720, 1280)
    scene = sample_scene(np.random.default_rng(3), size, 6, 5.0, crossing=True)
    detector, tracker = SimulatedDetector(np.random.default_rng(4), size), PoseTracker("coco")
    bytetrack = trackers.ByteTrackTracker(frame_rate=FPS)
    truth, tracked, boxed = [], [], []
    for frame in range(5 * FPS):
        truth.append(scene.truth(frame / FPS))
        poses = detector(truth[-1])
        tracked.append(tracker.update(poses, frame / FPS))
        order = {"index": np.arange(len(poses["scores"]))}
        boxes = sv.Detections(xyxy=poses["boxes"].numpy(), confidence=poses["scores"].numpy(), data=order)
        result, ids = bytetrack.update(boxes), torch.full((len(boxes),), -1)
        ids[result.data["index"]] = torch.as_tensor(result.tracker_id).long()
        boxed.append({**poses, "track_id": ids})
    ours.update(truth, tracked)
    theirs.update(truth, boxed)
    assert theirs.compute()["IDSW"] > 4
    assert ours.compute()["IDSW"] <= theirs.compute()["IDSW"] / 4
    assert ours.compute()["HOTA"] > theirs.compute()["HOTA"]


def test_only_keypoints_of_the_class_are_compared():
    """The ankles of legless people are anywhere, and their tracks go on; with all keypoints they would end."""
    legless = KeypointSchema(COCO_PERSON.names[:11], (), COCO_PERSON.flip_pairs[:5], COCO_PERSON.sigmas[:11])
    schema = unite_schemas({0: COCO_PERSON, 1: legless}, {0: "person", 1: "legless"})
    rng = np.random.default_rng(0)

    def follow_legless(tracker, label):
        ids = []
        for frame in range(10):
            poses = poses_at(standing(0), labels=[label, label])
            poses["keypoints"][:, 11:] += torch.tensor(rng.uniform(-20, 20, (2, 6, 2))).float()
            ids.append(tracker.update(poses, frame / FPS)["track_id"].tolist())
        return ids

    assert follow_legless(PoseTracker(schema, min_similarity=0.9), label=1)[2:] == [[0, 1]] * 8
    assert follow_legless(PoseTracker(schema, min_similarity=0.9), label=0)[2:] != [[0, 1]] * 8
