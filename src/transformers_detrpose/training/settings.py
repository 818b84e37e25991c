"""What a resumed training has to have in common with the one that it goes on from."""

import logging
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The settings of a training, by the options that set them; values are those of JSON.

    Args:
        fixed: what cannot change without making it another training.
        changeable: what can, such as learning rates.
    """

    fixed: dict[str, Any] = field(default_factory=dict)
    changeable: dict[str, Any] = field(default_factory=dict)

    def compare(self, saved: dict[str, dict[str, Any]]):
        """Compares the settings with those of the training to resume; changes that can be taken over are logged.

        Args:
            saved: `dataclasses.asdict` of its settings.

        Raises:
            ValueError: if one that cannot change has another value.
        """
        for name, value in self.fixed.items():
            before = saved["fixed"].get(name)
            if before != value:
                raise ValueError(f"--resume: {name} was {before} and is {value} now, which would be another training")
        for name, value in self.changeable.items():
            before = saved["changeable"].get(name)
            if before != value:
                logger.warning("%s was %s and is %s from now on", name, before, value)
