"""Ending a training on Ctrl-C or on a cluster's SIGTERM."""

import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .progress import Progress

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INSISTENCE = 3  # launchers send some signals twice


class Interrupted(Exception):
    """A signal has ended the training; the message is what the user needs to know.

    Args:
        message: what has been saved, and how to go on.
        number: of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


class SignalWatch:
    """Takes note of Ctrl-C and SIGTERM while it is entered, so that a step can end and be saved.

    The third signal raises `KeyboardInterrupt`. Other threads than the main one get no signals, and nothing happens.
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
        """Yields batches until there is a signal, which raises `Interrupted`; for work that needs no saving."""
        for batch in batches:
            if self.number is not None:
                raise self.interruption(progress)
            yield batch

    def interruption(self, progress: "Progress") -> Interrupted:
        """Returns the exception that ends a training whose state has been saved."""
        number = self.number or signal.SIGTERM  # that of another process
        name = signal.Signals(number).name
        return Interrupted(
            f"stopped by {name} after step {progress.step}, which is saved: the same command with --resume goes on",
            number,
        )
