"""A model of how the keypoints of a body move together, which smooths where they are.

Each keypoint has a position and a velocity, and is accelerated at random: alone, and as much along with the whole body,
so that what is seen of one keypoint tells something about all others. A Kalman filter with the covariances of all
keypoints; `Motion` does without, as a tracker must be fast.
"""

from dataclasses import dataclass

import numpy as np

from ..pose_arrays import pose_areas, squared_length
from .motion import OUTLIER, SIZE_CHANGE

ACCELERATION = 1.3  # in person sizes per second^1.5; a person's size is the root of their area
FIRST_SPEED = 5.0  # standard deviation of the velocity of a new track, in sizes per second


@dataclass(frozen=True)
class BodyMotion:
    """Estimated keypoints of a person, in x and y alike: K positions in pixels, then K velocities in pixels per second.

    Args:
        mean: (2 K, 2).
        covariance: (2 K, 2 K).
        size: Root of the area in pixels.
    """

    mean: np.ndarray
    covariance: np.ndarray
    size: float

    @classmethod
    def begin(cls, keypoints: np.ndarray, noise: np.ndarray) -> "BodyMotion":
        """Returns a person who is seen for the first time, with keypoints (K, 2) of a variance (K,)."""
        size, zeros = _size(keypoints), np.zeros((len(keypoints), len(keypoints)))
        speed = (FIRST_SPEED * size) ** 2 * _alone_and_together(len(keypoints))
        mean = np.concatenate([keypoints, np.zeros_like(keypoints)])
        return cls(mean, np.block([[np.diag(noise), zeros], [zeros, speed]]), size)

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints, K."""
        return len(self.mean) // 2

    @property
    def position(self) -> np.ndarray:
        """`np.ndarray` of shape `(K, 2)`: keypoints in pixels."""
        return self.mean[: self.num_keypoints]

    @property
    def variance(self) -> np.ndarray:
        """`np.ndarray` of shape `(K,)`: variances of the keypoints in x and in y."""
        return np.diag(self.covariance)[: self.num_keypoints]

    def predicted(self, elapsed: float, acceleration: float = ACCELERATION) -> "BodyMotion":
        """Returns the person after some seconds, given the `ACCELERATION` of keypoints."""
        transition = self._transition(elapsed)
        growth = np.array([[elapsed**3 / 3, elapsed**2 / 2], [elapsed**2 / 2, elapsed]])
        added = (acceleration * self.size) ** 2 * np.kron(growth, _alone_and_together(self.num_keypoints))
        return BodyMotion(transition @ self.mean, transition @ self.covariance @ transition.T + added, self.size)

    def corrected(self, keypoints: np.ndarray, noise: np.ndarray) -> "BodyMotion":
        """Returns the person after they are seen with keypoints (K, 2) of a variance (K,)."""
        offset = keypoints - self.position
        surprise = squared_length(offset) / (2 * OUTLIER**2 * (self.variance + noise))
        seen = self.covariance[: self.num_keypoints]
        total = seen[:, : self.num_keypoints] + np.diag(noise * np.maximum(1, surprise))
        gain = np.linalg.solve(total, seen).T
        covariance = self.covariance - gain @ seen
        size = self.size + SIZE_CHANGE * (_size(keypoints) - self.size)
        return BodyMotion(self.mean + gain @ offset, 0.5 * (covariance + covariance.T), size)

    def looked_back(self, elapsed: float, predicted: "BodyMotion", later: "BodyMotion") -> "BodyMotion":
        """Returns the person as what was seen later tells them to be (Rauch, Tung and Striebel, 1965).

        Args:
            elapsed: Seconds until then.
            predicted: The person then, as `predicted` says.
            later: What is known of the person then.
        """
        gain = np.linalg.solve(predicted.covariance, self._transition(elapsed) @ self.covariance).T
        return BodyMotion(
            self.mean + gain @ (later.mean - predicted.mean),
            self.covariance + gain @ (later.covariance - predicted.covariance) @ gain.T,
            self.size,
        )

    def scaled(self, factor: np.ndarray) -> "BodyMotion":
        """Returns the person in an image that is larger by a factor in x and in y, (2,)."""
        mean = np.sqrt(factor.prod())
        return BodyMotion(self.mean * factor, self.covariance * mean**2, self.size * mean)

    def _transition(self, elapsed: float) -> np.ndarray:
        return np.kron([[1, elapsed], [0, 1]], np.eye(self.num_keypoints))


def _size(keypoints: np.ndarray) -> float:
    return float(np.sqrt(pose_areas(keypoints[None])[0]))


def _alone_and_together(num_keypoints: int) -> np.ndarray:
    """Returns the covariance (K, K) of what moves each keypoint alone, and all of them alike."""
    return np.eye(num_keypoints) + 1
