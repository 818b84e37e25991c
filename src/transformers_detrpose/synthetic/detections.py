"""What a detector might find in a scene: the true poses with noise, misses, duplicates and false poses."""

from dataclasses import dataclass, field

import numpy as np
import torch

from ..keypoint_schemas import COCO_PERSON
from .scenes import FrameTruth

LEAST_SEEN_SHARE = 0.18  # of the keypoints; people of whom less is visible are not found
SIGMAS = np.array(COCO_PERSON.sigmas)


@dataclass(frozen=True)
class DetectorErrors:
    """How large and how frequent errors are.

    Args:
        noise: Standard deviation in x and in y of a visible keypoint, as a fraction of the person's height, where σ is
            0.1; in proportion to σ.
        hidden_noise: Factor of that for hidden keypoints.
        slow_share: Share of the variance that lasts (`slow_time`), as a bias does; the rest is new in each frame.
        slow_time: Correlation time of the slow part in seconds.
        unsure: Standard deviation of the logarithm of the ratio of reported and true standard deviations.
        confusion: Probability that a hidden keypoint is found at that of the person in front.
        missed: Probability that a fully visible person is not found.
        duplicated: Probability that a person is found twice.
        false_rate: False poses per second.
        false_time: Mean duration of a false pose in seconds.
    """

    noise: float = 0.02
    hidden_noise: float = 3.0
    slow_share: float = 0.3
    slow_time: float = 0.5
    unsure: float = 0.3
    confusion: float = 0.3
    missed: float = 0.03
    duplicated: float = 0.02
    false_rate: float = 1.0
    false_time: float = 0.15


@dataclass
class SimulatedDetector:
    """Finds poses in the frames of one video, which must be passed in order.

    Args:
        rng: Random number generator.
        size: (height, width) of the image in pixels.
        errors: How large and how frequent errors are.
    """

    rng: np.random.Generator
    size: tuple[int, int]
    errors: DetectorErrors = DetectorErrors()
    _time: float = field(default=-np.inf, init=False)
    _slow: dict[int, np.ndarray] = field(default_factory=dict, init=False)  # by track id, of unit variance
    _false: list[tuple[float, np.ndarray, float, float]] = field(default_factory=list, init=False)

    def __call__(self, truth: FrameTruth) -> dict[str, torch.Tensor]:
        """Returns what is found in a frame, as `post_process_keypoint_detection` does, also with low scores.

        `keypoint_std` is the true standard deviation, except for random errors of its own.
        """
        elapsed, self._time = truth.time - self._time, truth.time
        found = [self._find(truth, index, elapsed) for index in range(len(truth.track_ids))]
        poses = [pose for pose in found if pose is not None]
        poses += [self._duplicate(pose) for pose in poses if self.rng.random() < self.errors.duplicated]
        poses += self._find_false(elapsed)
        poses.sort(key=lambda pose: -pose[0])
        scores, keypoints, deviations = zip(*poses, strict=True) if poses else ((), (), ())
        return _as_tensors(np.array(scores), np.array(keypoints), np.array(deviations))

    def _find(self, truth: FrameTruth, index: int, elapsed: float) -> tuple[float, np.ndarray, np.ndarray] | None:
        """Returns the score, keypoints and standard deviations of a pose, or `None` if the person is not found."""
        rng, errors, visible = self.rng, self.errors, truth.visible[index]
        fresh = rng.standard_normal((17, 2))
        slow = self._slow.get(int(truth.track_ids[index]), rng.standard_normal((17, 2)))
        kept = np.exp(-elapsed / errors.slow_time)
        slow = kept * slow + np.sqrt(1 - kept**2) * rng.standard_normal((17, 2))
        self._slow[int(truth.track_ids[index])] = slow
        share = visible.mean()
        if share < LEAST_SEEN_SHARE or rng.random() < errors.missed + 0.5 * (1 - share) ** 3:
            return None
        deviation = errors.noise * truth.heights[index] * SIGMAS / 0.1 * np.where(visible, 1, errors.hidden_noise)
        deviation = np.repeat(deviation[:, None], 2, axis=1) * np.exp(0.2 * rng.standard_normal((17, 1)))
        keypoints = truth.keypoints[index].copy()
        confused = (truth.hidden_by[index] >= 0) & (rng.random(17) < errors.confusion)
        keypoints[confused] = truth.keypoints[truth.hidden_by[index][confused], confused]
        keypoints += deviation * (np.sqrt(errors.slow_share) * slow + np.sqrt(1 - errors.slow_share) * fresh)
        score = np.clip(0.95 * np.sqrt(share) - abs(rng.normal(0, 0.06)), 0.05, 0.99)
        return score, keypoints, deviation * np.exp(errors.unsure * rng.standard_normal((17, 2)))

    def _duplicate(self, pose: tuple[float, np.ndarray, np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
        score, keypoints, deviations = pose
        noise = 0.5 * deviations * self.rng.standard_normal((17, 2))
        return score * self.rng.uniform(0.6, 0.9), keypoints + noise, deviations

    def _find_false(self, elapsed: float) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """Returns the false poses of a frame: random points around a place, which last for a while."""
        rng, now = self.rng, self._time
        expected = self.errors.false_rate * min(elapsed, 1.0)
        for _ in range(rng.poisson(expected)):
            height = self.size[0] * rng.uniform(0.15, 0.6)
            center = rng.uniform(0, 1, 2) * self.size[::-1]
            points = center + height * rng.uniform(-0.5, 0.5, (17, 2)) * (0.5, 1)
            end = now + rng.exponential(self.errors.false_time)
            self._false.append((end, points, 0.04 * height, rng.uniform(0.15, 0.85)))
        self._false = [each for each in self._false if each[0] >= now]
        return [
            (score, points + deviation * rng.standard_normal((17, 2)), np.full((17, 2), deviation))
            for _, points, deviation, score in self._false
        ]


def _as_tensors(scores: np.ndarray, keypoints: np.ndarray, deviations: np.ndarray) -> dict[str, torch.Tensor]:
    keypoints = torch.from_numpy(keypoints.reshape(-1, 17, 2)).float()
    scores = torch.from_numpy(scores.reshape(-1)).float()
    boxes = torch.cat([keypoints.amin(dim=1), keypoints.amax(dim=1)], dim=-1)
    return {
        "scores": scores,
        "labels": torch.zeros(len(scores), dtype=torch.int64),
        "keypoints": keypoints,
        "keypoint_scores": scores[:, None].expand(-1, 17),
        "keypoint_std": torch.from_numpy(deviations.reshape(-1, 17, 2)).float(),
        "boxes": boxes,
    }
