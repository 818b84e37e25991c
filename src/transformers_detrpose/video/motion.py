"""A model of how the keypoints of people move: it predicts where they will be, and smooths where they are.

Each keypoint has a position and a velocity, and is accelerated at random: a Kalman filter, isotropic in x and y. All
arrays hold n people at once, because a loop over people would be too slow.
"""

from dataclasses import dataclass, fields

import numpy as np

from ..pose_arrays import pose_areas, squared_length

FIRST_SPEED = 8.0  # standard deviation of the velocity of a new track, in person sizes per second
SWING_TIME = 0.3  # seconds for which arms and legs keep swinging; the body as a whole keeps its velocity
SIZE_CHANGE = 0.2  # weight of a new size
OUTLIER = 3.0  # standard deviations; keypoints further off are trusted less


@dataclass
class Motion:
    """Estimated keypoints of n people.

    Args:
        position: (n, K, 2), x, y in pixels.
        velocity: (n, K, 2), in pixels per second.
        variance: (n, K, 3), of a position, of a position with its velocity, and of a velocity.
        size: (n,), roots of the areas in pixels.
    """

    position: np.ndarray
    velocity: np.ndarray
    variance: np.ndarray
    size: np.ndarray

    @classmethod
    def begin(cls, keypoints: np.ndarray, noise: np.ndarray) -> "Motion":
        """Returns people who are seen for the first time, with keypoints (n, K, 2) of a variance (n, K)."""
        size = np.sqrt(pose_areas(keypoints))
        speed = np.broadcast_to(np.square(FIRST_SPEED * size)[:, None], noise.shape)
        return cls(keypoints.copy(), np.zeros_like(keypoints), np.stack([noise, 0 * noise, speed], axis=-1), size)

    def __getitem__(self, index) -> "Motion":
        return Motion(*(getattr(self, each.name)[index] for each in fields(self)))

    def __setitem__(self, index, other: "Motion"):
        for each in fields(self):
            getattr(self, each.name)[index] = getattr(other, each.name)

    def joined(self, other: "Motion") -> "Motion":
        """Returns these people and others."""
        return Motion(*(np.concatenate([getattr(self, x.name), getattr(other, x.name)]) for x in fields(self)))

    def predicted(self, elapsed: float | np.ndarray, acceleration: float) -> "Motion":
        """Returns the people after some time.

        Args:
            elapsed: Seconds, a number or (n,).
            acceleration: Of keypoints, at random, in sizes of the person per second^1.5.
        """
        elapsed = np.broadcast_to(elapsed, self.size.shape)[:, None]
        position_variance, covariance, velocity_variance = np.moveaxis(self.variance, -1, 0)
        body = np.median(self.velocity, axis=1, keepdims=True)
        kept = np.exp(-elapsed / SWING_TIME)[..., None]
        swing = self.velocity - body
        push = np.square(acceleration * self.size)[:, None]  # spectral density of the acceleration
        variance = np.stack(
            [
                position_variance + 2 * elapsed * covariance + elapsed**2 * velocity_variance + push * elapsed**3 / 3,
                covariance + elapsed * velocity_variance + push * elapsed**2 / 2,
                velocity_variance + push * elapsed,
            ],
            axis=-1,
        )
        position = self.position + elapsed[..., None] * body + SWING_TIME * (1 - kept) * swing
        return Motion(position, body + kept * swing, variance, self.size)

    def corrected(self, keypoints: np.ndarray, noise: np.ndarray) -> "Motion":
        """Returns the people after they are seen with keypoints (n, K, 2) of a variance (n, K)."""
        position_variance, covariance, velocity_variance = np.moveaxis(self.variance, -1, 0)
        offset = keypoints - self.position
        surprise = squared_length(offset) / (2 * OUTLIER**2 * (position_variance + noise))
        total = position_variance + noise * np.maximum(1, surprise)
        gain, velocity_gain = position_variance / total, covariance / total
        variance = np.stack(
            [(1 - gain) * position_variance, (1 - gain) * covariance, velocity_variance - velocity_gain * covariance],
            axis=-1,
        )
        return Motion(
            self.position + gain[..., None] * offset,
            self.velocity + velocity_gain[..., None] * offset,
            variance,
            self.size + SIZE_CHANGE * (np.sqrt(pose_areas(keypoints)) - self.size),
        )

    def scaled(self, factor: np.ndarray) -> "Motion":
        """Returns the people in an image that is larger by a factor in x and in y, (2,)."""
        mean = np.sqrt(factor.prod())
        return Motion(self.position * factor, self.velocity * factor, self.variance * mean**2, self.size * mean)
