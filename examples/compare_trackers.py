"""Compares trackers and smoothers on videos of walking people with a simulated detector, and prints tables in Markdown.

    pip install "transformers-detrpose[dev]"
    python examples/compare_trackers.py

The other trackers are those of the package `trackers`, on the boxes around the poses, with their default settings.
Nothing is drawn: the true poses are found with noise, misses, duplicates and false poses, as described in
`transformers_detrpose.synthetic.detections`. People who are almost completely hidden are not counted.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean, median

import numpy as np
import supervision as sv
import torch
import trackers
from tqdm import tqdm

from transformers_detrpose.evaluation import CocoKeypoints
from transformers_detrpose.evaluation.tracking_metrics import TrackingMetric, measure_smoothness
from transformers_detrpose.keypoint_schemas import COCO_PERSON, PERSON_TO_BOX_AREA
from transformers_detrpose.synthetic.detections import SimulatedDetector
from transformers_detrpose.synthetic.scenes import FrameTruth, sample_scene
from transformers_detrpose.video import PoseSmoother, PoseTracker, smooth_tracks

SIZE = (720, 1280)
LEAST_SEEN_KEYPOINTS = 3


@dataclass(frozen=True)
class Video:
    """The times, true poses and found poses of each frame."""

    times: list[float]
    truth: list[FrameTruth]
    found: list[dict[str, torch.Tensor]]


class BoxTracker:
    """A tracker of the package `trackers`, with the interface of `PoseTracker`."""

    def __init__(self, tracker):
        self.tracker = tracker

    def update(self, poses: dict[str, torch.Tensor], timestamp: float) -> dict[str, torch.Tensor]:
        """Returns the poses with `track_id`."""
        count = len(poses["scores"])
        boxes = sv.Detections(
            xyxy=poses["boxes"].numpy(),
            confidence=poses["scores"].numpy(),
            class_id=np.zeros(count, dtype=int),
            data={"index": np.arange(count)},
        )
        tracked, track_ids = self.tracker.update(boxes), torch.full((count,), -1)
        if len(tracked):
            track_ids[tracked.data["index"]] = torch.as_tensor(tracked.tracker_id).long()
        return {**poses, "track_id": track_ids}


class OneEuroSmoother:
    """The One-Euro filter (Casiez et al., 2012), with speeds relative to `keypoint_std`."""

    def __init__(self, min_cutoff: float = 1.0, speed: float = 0.06, velocity_cutoff: float = 1.5):
        self.min_cutoff, self.speed, self.velocity_cutoff = min_cutoff, speed, velocity_cutoff
        self.tracks = {}

    def update(self, poses: dict[str, torch.Tensor], timestamp: float) -> dict[str, torch.Tensor]:
        """Returns the poses with smoothed keypoints."""
        keypoints = poses["keypoints"].clone()
        for index, track_id in enumerate(poses["track_id"].tolist()):
            if track_id >= 0:
                before = self.tracks.get(track_id, (timestamp, keypoints[index], torch.zeros_like(keypoints[index])))
                state = self.filter(*before, keypoints[index], poses["keypoint_std"][index], timestamp)
                self.tracks[track_id], keypoints[index] = (timestamp, *state), state[0]
        return {**poses, "keypoints": keypoints}

    def filter(self, time, previous, velocity, keypoints, deviation, timestamp):
        """Returns the smoothed keypoints and velocities."""
        elapsed = timestamp - time
        if elapsed == 0:
            return keypoints, velocity
        moved = keypoints - previous
        velocity = velocity + self.weight(self.velocity_cutoff, elapsed) * (moved / elapsed - velocity)
        speed = (velocity / deviation).norm(dim=-1, keepdim=True)
        return previous + self.weight(self.min_cutoff + self.speed * speed, elapsed) * moved, velocity

    def weight(self, cutoff, elapsed):
        """Returns the weight of a new value in a low-pass filter."""
        return 1 / (1 + 1 / (2 * math.pi * cutoff * elapsed))


TRACKERS = {
    "SORT": lambda fps: BoxTracker(trackers.SORTTracker(frame_rate=fps)),
    "ByteTrack": lambda fps: BoxTracker(trackers.ByteTrackTracker(frame_rate=fps)),
    "OC-SORT": lambda fps: BoxTracker(trackers.OCSORTTracker(frame_rate=fps)),
    # Its compensation of the camera's motion needs the frames.
    "BoT-SORT": lambda fps: BoxTracker(trackers.BoTSORTTracker(frame_rate=fps, enable_cmc=False)),
    "PoseTracker": lambda fps: PoseTracker("coco"),
}


def make_video(seed: int, fps: int, people: int, seconds: float, crossing: bool) -> Video:
    """Returns a video; the same arguments give the same one."""
    scene = sample_scene(np.random.default_rng([seed, 1]), SIZE, people, seconds, crossing)
    times = [frame / fps for frame in range(round(seconds * fps))]
    truth = [scene.truth(time) for time in times]
    detector = SimulatedDetector(np.random.default_rng([seed, 2]), SIZE)
    found = [detector(frame) for frame in truth]
    return Video(times, [recognisable(frame) for frame in truth], found)


def recognisable(truth: FrameTruth) -> FrameTruth:
    """Returns a frame without people who are almost completely hidden."""
    kept = truth.visible.sum(axis=1) >= LEAST_SEEN_KEYPOINTS
    columns = ("track_ids", "keypoints", "inside", "hidden_by", "heights")
    return replace(truth, **{name: getattr(truth, name)[kept] for name in columns})


def track(tracker, video: Video) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """Returns the poses of a video with identities, and the seconds that each frame took."""
    tracked, seconds = [], []
    for timestamp, poses in zip(video.times, video.found, strict=True):
        start = time.perf_counter()
        tracked.append(tracker.update(poses, timestamp))
        seconds.append(time.perf_counter() - start)
    return tracked, seconds


def compare_trackers(videos: list[Video], fps: int) -> list[list[str]]:
    """Returns the rows of the table of trackers."""
    rows = []
    for name, make_tracker in TRACKERS.items():
        metric, seconds = TrackingMetric("coco"), []
        for video in videos:
            tracked, frame_seconds = track(make_tracker(fps), video)
            metric.update(video.truth, tracked)
            seconds += frame_seconds
        scores = metric.compute()
        shares = [f"{scores[each]:.3f}" for each in ("HOTA", "AssA", "IDF1", "MOTA")]
        counts = [str(scores[each]) for each in ("IDSW", "false_tracks")]
        rows.append([name, *shares, *counts, f"{1000 * median(seconds):.2f}"])
    return rows


def average_precision(videos: list[Video], smoothed: list[list[dict[str, torch.Tensor]]]) -> float:
    """Returns COCO's average precision of the poses that belong to a track."""
    images, annotations, predictions = [], [], []
    for video, frames in zip(videos, smoothed, strict=True):
        for truth, poses in zip(video.truth, frames, strict=True):
            image_id = len(images)
            images.append({"id": image_id, "file_name": str(image_id), "height": SIZE[0], "width": SIZE[1]})
            annotations += [{**person, "image_id": image_id} for person in annotate(truth)]
            is_tracked = poses["track_id"] >= 0
            scored = {name: poses[name][is_tracked] for name in ("scores", "keypoints")}
            predictions.append({**scored, "labels": torch.ones(len(scored["scores"]), dtype=torch.int64)})
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    category = {"id": 1, "name": "person", "keypoints": list(COCO_PERSON.names)}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    metric = CocoKeypoints(content, COCO_PERSON)
    metric.update(range(len(images)), predictions)
    return metric.compute()["AP"]


def annotate(truth: FrameTruth) -> list[dict]:
    """Returns the annotations of the people in a frame in COCO's form, except for ids."""
    annotations = []
    for points, inside, visible in zip(truth.keypoints, truth.inside, truth.visible, strict=True):
        flags = np.where(inside, np.where(visible, 2, 1), 0)[:, None]
        low, sides = points.min(axis=0), np.ptp(points, axis=0)
        keypoints = np.concatenate([np.where(flags > 0, points, 0), flags], axis=1)
        annotations.append({
            "category_id": 1,
            "keypoints": keypoints.ravel().tolist(),
            "bbox": [*low.tolist(), *sides.tolist()],
            "area": float(PERSON_TO_BOX_AREA * sides.prod()),
            "iscrowd": 0,
        })  # fmt: skip
    return annotations


def compare_smoothers(videos: list[Video]) -> list[list[str]]:
    """Returns the rows of the table of smoothers."""

    def stream(make_smoother: Callable) -> Callable:
        def smooth(tracked, times):
            smoother = make_smoother()
            return [smoother.update(poses, timestamp) for poses, timestamp in zip(tracked, times, strict=True)]

        return smooth

    def one_frame_late(tracked, times):
        smoother, smoothed = PoseSmoother(), []
        for poses, timestamp in zip(tracked, times, strict=True):
            latest = smoother.update(poses, timestamp)
            smoothed.append(smoother.previous)
        return [*smoothed[1:], latest]

    smoothers = {
        "none": lambda tracked, times: tracked,
        "One-Euro": stream(OneEuroSmoother),
        "PoseSmoother, at once": stream(PoseSmoother),
        "PoseSmoother, one frame later": one_frame_late,
        "smooth_tracks": smooth_tracks,
    }
    tracked = [track(PoseTracker("coco"), video)[0] for video in videos]
    rows, raw = [], None
    for name, smooth in smoothers.items():
        smoothed = [smooth(poses, video.times) for video, poses in zip(videos, tracked, strict=True)]
        results = [
            measure_smoothness(video.truth, poses, "coco") for video, poses in zip(videos, smoothed, strict=True)
        ]
        precision = average_precision(videos, smoothed)
        jitter, lag, similarity = (mean(result[each] for result in results) for each in ("jitter", "lag", "KS"))
        raw = raw or jitter
        shown = [f"{1000 * jitter:.1f}", f"{jitter / raw - 1:+.0%}", f"{lag:+.2f}"]
        rows.append([name, *shown, f"{similarity:.3f}", f"{precision:.3f}"])
    return rows


def print_table(title: str, columns: list[str], rows: list[list[str]]):
    """Prints a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    print(f"\n{title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))


def main(argv: list[str] | None = None) -> int:
    """Prints the tables, and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--fps", type=int, nargs="+", default=[10, 30, 60], help="frames per second")
    parser.add_argument("--videos", type=int, default=4, help="number of videos of each kind and frame rate")
    parser.add_argument("--seconds", type=float, default=15, help="duration of each video")
    parser.add_argument("--people", type=int, default=6, help="people per video")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the first video")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    for fps in args.fps:
        for crossing, kind in ((True, "people who cross each other"), (False, "people who leave and come back")):
            seeds = tqdm(range(args.seed, args.seed + args.videos), f"{fps} frames per second, {kind}", leave=False)
            videos = [make_video(seed, fps, args.people, args.seconds, crossing) for seed in seeds]
            columns = ["tracker", "HOTA", "AssA", "IDF1", "MOTA", "identity switches", "false tracks", "ms per frame"]
            print_table(f"{kind[0].upper()}{kind[1:]}, {fps} frames/s", columns, compare_trackers(videos, fps))
        columns = ["smoother", "jitter (height / 1000 / frame²)", "change", "lag (frames)", "keypoint similarity", "AP"]
        print_table(f"The latter smoothed, {fps} frames/s", columns, compare_smoothers(videos))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
