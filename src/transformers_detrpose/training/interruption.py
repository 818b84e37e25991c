"""Stopping a training on Ctrl-C or on a cluster's SIGTERM."""

import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .progress import Progress

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INSISTENCE = 3  # launchers send some signals twice


class Interrupted(Exception):
    """Raised when a signal has stopped the training; the message is meant for the user.

    Args:
        message: what has been saved, and how to continue.
        number: number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


class SignalWatch:
    """Context manager that records Ctrl-C and SIGTERM, so that the current step can finish and be saved.

    The third signal raises `KeyboardInterrupt`. Outside the main thread, which alone receives signals, it does nothing.
    """

    def __init__(self):
        self.number: int | None = None
        self._count = 0

    def __enter__(self) -> "SignalWatch":
        self._former = {}
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame):
        self.number = self.number or number
        self._count += 1
        if self._count >= _INSISTENCE:
            raise KeyboardInterrupt

    def watched(self, batches: Iterable[Any], progress: "Progress") -> Iterator[Any]:
        """Yields batches until a signal raises `Interrupted`; for work that leaves nothing to save."""
        for batch in batches:
            if self.number is not None:
                raise self.interruption(progress)
            yield batch

    def interruption(self, progress: "Progress") -> Interrupted:
        """Returns the exception that stops a training once its state has been saved."""
        number = self.number or signal.SIGTERM  # received by another process
        name = signal.Signals(number).name
        return Interrupted(
            f"stopped by {name} after step {progress.step}, which is saved: the same command with --resume goes on",
            number,
        )
